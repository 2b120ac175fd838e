import contextlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import locallearn as ll
from locallearn import plugins, processor
from locallearn.nn import group_conv, groups
from locallearn.nn.native import build

NEEDS = {
    "bench": (
        "equivalence/test_bf16_equals_loop.py",
        "equivalence/test_operator_counts.py",
        "equivalence/test_other_device.py",
        "distributed/test_hosts.py",
        "unit/bench",
        "unit/costs/test_traffic.py",
    ),
    "kernels": ("unit/kernels",),
    "thesis": ("golden/test_digests.py", "unit/thesis"),
}
"""What tests a house of its own, and is left out where the house is not there."""

collect_ignore = [path for house, paths in NEEDS.items() if not find_spec(f"locallearn.{house}") for path in paths]

LONGEST = (
    "distributed/test_exact.py",
    "docs/test_blocks.py",
    "golden/test_demo.py",
    "distributed/test_faults.py",
    "docs/test_examples.py",
    "distributed/test_asynchronous.py",
    "unit/bench/test_bench_cli.py",
    "distributed/test_split_processes.py",
    "unit/test_houses.py",
    "unit/bench/test_own_processes.py",
    "unit/costs/test_nodes.py",
    "unit/recipes/test_variants.py",
    "unit/thesis/test_reproduce_cli.py",
    "equivalence/test_masked_autoencoding.py",
    "distributed/test_self_supervised_exact.py",
    "unit/core/test_methods_combine.py",
    "equivalence/test_resume.py",
    "unit/kernels/test_kernels.py",
    "equivalence/test_split_devices.py",
)
"""Files that take longest come first, so that of two processes none is left alone with one of them at the end."""

settings.register_profile("locallearn", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("locallearn")


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True, scope="session")
def _no_notes_of_the_users(tmp_path_factory):
    """Plugins that tests name are not trusted afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """A power cut is nothing that a test makes, and to wait for the disk is a tenth of a short training; processes
    that tests start do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # an error where there is no such file, as before
        yield


@pytest.fixture(autouse=True, scope="session")
def _copies_start_fast(_no_notes_of_the_users):
    if "programs" in sys.modules:  # where tests start some
        sys.modules["programs"].start()


@pytest.fixture(autouse=True)
def _registries_as_before():
    """What a test registers, itself or by a plugin, is forgotten after it."""
    registries = (ll.augmentations, ll.backbones, ll.datasets, ll.heads, ll.loggers, ll.methods)
    with contextlib.ExitStack() as scopes:
        for scoped in (plugins, *registries, ll.objectives, ll.optimizers, ll.schedules):
            scopes.enter_context(scoped.scope())
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """Results that are compared bit for bit must not depend on how work is shared out."""
    torch.set_num_threads(1)


@pytest.fixture
def torch_kernels(monkeypatch):
    monkeypatch.setattr(build, "kernels", lambda: build.Kernels())


@pytest.fixture
def pack_nothing(monkeypatch):
    """Groups are computed as what they are."""
    monkeypatch.setattr(group_conv, "WHOLE", 0)
    monkeypatch.setattr(group_conv, "LANES", 1)
    monkeypatch.setattr(groups, "GRADIENT_LANES", 1)


@pytest.fixture(params=["pairs", "float", "torch"])
def kernels(request, monkeypatch):
    """With kernels of our own that multiply bf16 in pairs or as float, and with torch's."""
    if request.param == "torch":
        request.getfixturevalue("torch_kernels")
        yield request.param
        return
    monkeypatch.setattr(processor, "prefers_float", lambda: request.param == "float")
    monkeypatch.setattr(processor, "slow_in_bf16", lambda: request.param == "float")
    monkeypatch.setattr(processor, "multiplies_tiles", lambda: False)
    build.kernels.cache_clear()
    if len(build.kernels().libraries) < 2:
        pytest.skip(f"no native kernels here: {build.kernels()}")
    yield request.param
    build.kernels.cache_clear()
