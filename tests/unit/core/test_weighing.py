"""What the losses of a user's model are means over, and what looks at a whole batch in a way of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.core.weighing import by_examples, share_of
from locallearn.errors import ConfigError, UsageError
from user_models import Transformer, sequences

DRAW = torch.Generator().manual_seed(0)
TOKENS = torch.randint(9, (4, 6), generator=DRAW)
LABELS = torch.tensor([[1, 2, 3, 4, 0, 1], [1, 2, -100, -100, -100, -100], [2] * 6, [3, -100, 1, 1, 1, 1]])


class Tagger(nn.Module):
    def __init__(self, by_row=False):
        super().__init__()
        self.embed, self.one, self.score = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.by_row = by_row

    def forward(self, tokens, labels=None):
        logits = self.score(self.one(self.embed(tokens)).relu())
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counted = (labels != -100).float()
        rows = (losses * counted).sum(1) / counted.sum(1)
        return {"loss": rows.mean() if self.by_row else (losses * counted).sum() / counted.sum(), "logits": logits}


def weighings(model, batch, replicas=2, **settings):
    network = ll.split(model, depth=2, example=batch, **settings)
    given = network.given_batch(batch)
    network.replicate(replicas, given)
    return [stage.weighing for stage in network.model_stages], given


@pytest.mark.parametrize("by_row", [False, True])
def test_the_mean_of_tokens_is_told_from_the_mean_of_examples(by_row):
    (head, last), given = weighings(Tagger(by_row), {"tokens": TOKENS, "labels": LABELS})
    counted = (LABELS != -100).sum(1)
    upper = given.rows(range(2))
    assert share_of(upper, head) == pytest.approx(float(counted[:2].sum() / counted.sum()))
    assert (last is by_examples) == by_row
    assert share_of(upper, last) == (0.5 if by_row else pytest.approx(share_of(upper, head)))


def test_objectives_that_bring_scores_together_are_not_weighed():
    (head, last), _ = weighings(Transformer(), sequences())
    assert head is None
    assert last is not None


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 5)), {},
         "replicas: 2 is not valid; expected 1 with model.1, a BatchNorm1d"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)),
         {"objective": lambda scores, labels: F.cross_entropy(scores, labels, reduction="sum")},
         "expected 1 with the loss of stage 1, which is no mean over examples"),
    ],
)  # fmt: skip
def test_what_looks_at_the_whole_batch_is_refused(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        weighings(model, (torch.randn(6, 4), torch.arange(6) % 5), **settings)


def test_a_batch_with_fewer_examples_than_replicas_is_refused():
    with pytest.raises(UsageError, match="loader: a batch of 6 has no example for each of 7 replicas"):
        weighings(Transformer(), sequences(), 7)


def test_replicas_need_processes():
    network = ll.split(Transformer(), depth=2, example=sequences())
    with pytest.raises(ConfigError, match="replicas: 2 is not valid; expected 1 with runtime inline"):
        ll.Trainer(network, replicas=2)
    with pytest.raises(ConfigError, match="replicas: 2 is not valid; expected a divisor of the number of processes"):
        ll.Trainer(network, runtime="distributed", replicas=2)
    config = ll.RunConfig(model="tiny-resnet", method="dgl", depth=2, width=(1,))
    with pytest.raises(ConfigError, match="runtime: 'distributed' is not valid; expected inline or threads for a"):
        ll.Trainer(ll.build_network(config, ll.ImageShape(1, 8, 5)), runtime="distributed")
