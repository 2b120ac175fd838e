"""The supervised contrastive objective against three loops."""

import pytest
import torch

import reference_losses
import small
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError

SUPERVISED = ObjectiveConfig(loss="supervised-contrastive", diversity_weight=0.0)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "projection": 3}])
def test_losses_are_those_of_the_loops(width, options):
    objective = ObjectiveConfig(loss="supervised-contrastive", diversity_weight=0.0, options=options)
    config = small.config("gn-dgl", 2, (width,), objective=objective)
    first = next(iter(build_network(config, ImageShape(3, 8, 5)))).double()
    torch.manual_seed(0)
    images, labels = torch.randn(7, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 0, 4])
    features = first(images)
    loss = first.objective(features, small.batch_of(images, labels))
    assert loss.logits is None
    projections = first.objective.head(features)
    assert projections.shape == (width, 7, options.get("projection", 128))
    for g in range(width):
        expected = reference_losses.plain_supervised_contrastive(
            projections[g], labels.tolist(), options.get("temperature", 0.1)
        )
        torch.testing.assert_close(loss.total[g], expected)


def test_a_diversity_penalty_is_refused():
    objective = ObjectiveConfig(loss="supervised-contrastive")
    with pytest.raises(ConfigError, match=r"objective.diversity_weight: 0.5 is not valid; expected 0"):
        build_network(small.config("gn-dgl", 2, (2,), objective=objective), ImageShape(3, 8, 5))
