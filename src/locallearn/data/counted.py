"""How many images of the user's own there are to train on, found without reading them and without torch."""

from __future__ import annotations

from locallearn.config import DataConfig
from locallearn.data.datasets import data_root, n_held_out
from locallearn.data.folder import listed
from locallearn.data.packed import read_index


def training_images(config: DataConfig) -> int | None:
    """Images of a folder or a packed set that training goes through; None for sets of another kind.

    Raises:
        DataError: the folder is not there, or not laid out as these sets are.
    """
    if config.name == "folder":
        _, train, _ = listed(data_root(config))
        found = len(train)
    elif config.name == "packed":
        found = sum(shard.images for shard in read_index(data_root(config)).train)
    else:
        return None
    total = min(found, config.train_limit or found)
    return total - n_held_out(total, config.validation)
