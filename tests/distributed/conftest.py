import pytest
import torch

from distributed.compare import inline, without_mesh
from locallearn.config import to_toml


@pytest.fixture(scope="session")
def inline_run(tmp_path_factory):
    """Gives the run of a configuration that is trained inline, in the default type of now; the same one once."""
    folder, runs = tmp_path_factory.mktemp("inline"), {}

    def run(config):
        key = (to_toml(without_mesh(config)), torch.get_default_dtype())
        if key not in runs:
            runs[key] = folder / str(len(runs))
            inline(config, runs[key])
        return runs[key]

    return run
