import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("locallearn", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("locallearn")


@pytest.fixture(autouse=True)
def _one_thread():
    """Results that are compared bit for bit must not depend on how work is shared out."""
    torch.set_num_threads(1)
