import pytest

from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.thesis.published import published_accuracy


@pytest.mark.parametrize(
    ("changes", "accuracy"),
    [
        ({"depth": 4, "width": (2,)}, 87.94),
        ({"depth": 4}, 88.62),
        ({}, 93.01),
        ({"method": "infopro", "depth": 2}, 92.35),
        ({"depth": 3}, None),
        ({"depth": 4, "cuts": ("balanced",)}, None),
        ({"depth": 4, "objective": ObjectiveConfig(head="0c2f")}, None),
        ({"depth": 2, "width": (2, 4)}, None),
    ],
)
def test_table_34(changes, accuracy):
    assert published_accuracy(RunConfig(**{"model": "resnet32", "method": "gn-dgl", **changes})) == accuracy


def test_other_models_have_none():
    assert published_accuracy(RunConfig(model="resnet110", method="dgl", depth=2)) is None
