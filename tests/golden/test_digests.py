"""Digests name what was trained, in records that are published: a change of the settings must leave them as they are.

``digests.json`` holds those of every cell and recipe of version 0.1. Cells and recipes may be added; none may change.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from locallearn.config import digest
from locallearn.recipes.named import recipe
from locallearn.thesis.protocols import Study

GOLDEN = json.loads((Path(__file__).parent / "digests.json").read_text())


@pytest.mark.parametrize("protocol", sorted(GOLDEN["cells"]))
def test_cells_have_the_digests_of_their_records(protocol):
    expected = GOLDEN["cells"][protocol]
    assert {cell: Study(protocol).digest(cell) for cell in expected} == expected


def test_recipes_have_the_digests_that_they_had():
    """Where they hold no images out, as they did not then."""
    found = {}
    for name in GOLDEN["recipes"]:
        config = recipe(name)
        assert config.data.validation == 0.1
        data = dataclasses.replace(config.data, validation=0.0)
        found[name] = digest(dataclasses.replace(config, data=data))
    assert found == GOLDEN["recipes"]
