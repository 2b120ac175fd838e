import os

import pytest
import torch
from hypothesis import settings

from locallearn.nn.native import build

settings.register_profile("locallearn", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("locallearn")


@pytest.fixture(autouse=True)
def _one_thread():
    """Results that are compared bit for bit must not depend on how work is shared out."""
    torch.set_num_threads(1)


@pytest.fixture
def torch_kernels(monkeypatch):
    monkeypatch.setattr(build, "kernels", lambda: build.Kernels(why_not="torch's are tested"))


@pytest.fixture(params=["native", "torch"])
def kernels(request):
    """With kernels of our own, and with torch's."""
    if request.param == "torch":
        request.getfixturevalue("torch_kernels")
    elif len(build.kernels().libraries) < 2:
        pytest.skip(f"no native kernels here: {build.kernels()}")
    return request.param
