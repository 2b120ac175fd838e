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


class OwnNorm(nn.BatchNorm1d):
    """Batch norm by sums of its own in training."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.var(0) + self.eps).sqrt() if self.training else super().forward(x)


class Centred(nn.Module):
    """Keeps the mean of every batch, and does not use it in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean.copy_(x.detach().mean(0))
            return x
        return x - self.mean


class Ranked(nn.Module):
    """What it gives for an example depends on those before it."""

    def forward(self, x):
        return x.cumsum(0)


class Six(nn.Module):
    def forward(self, x):
        return x.view(6, 8) * 1


class Mixed(nn.Module):
    """Tokens that are mixed by a matrix of tokens by tokens, which is an argument."""

    def __init__(self):
        super().__init__()
        self.one, self.score = nn.Linear(4, 8), nn.Linear(8, 5)

    def forward(self, x, mixing=None):
        return self.score((mixing @ self.one(x).relu()).mean(1))


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
        (nn.Sequential(nn.Linear(4, 8), OwnNorm(8, affine=False), nn.ReLU(), nn.Linear(8, 5)), {},
         "replicas: 2 is not valid; expected 1 with a model whose examples depend on others, not by torch's "
         "batch_norm alone: 1"),
        (nn.Sequential(nn.Linear(4, 8), Centred(), nn.ReLU(), nn.Linear(8, 5)), {},
         "expected 1 with model.1.mean, which training sets to what a whole batch has"),
        (nn.Sequential(nn.Linear(4, 8), Ranked(), nn.ReLU(), nn.Linear(8, 5)), {},
         "1 with a model that does not compute some rows of a batch as it does all of them: their scores or"),
        (nn.Sequential(nn.Linear(4, 8), Six(), nn.ReLU(), nn.Linear(8, 5)), {},
         "1 with a model that does not compute some rows of a batch as it does all of them: RuntimeError: shape"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)),
         {"objective": lambda scores, labels: F.cross_entropy(scores, labels, reduction="sum")},
         "expected 1 with the loss of stage 1, which is no mean over examples"),
    ],
)  # fmt: skip
def test_what_looks_at_the_whole_batch_is_refused(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        weighings(model, (torch.randn(6, 4), torch.arange(6) % 5), **settings)


@pytest.mark.parametrize("examples", [4, 6])
def test_an_argument_that_is_as_long_as_the_batch_by_chance_is_not_cut(examples):
    x, mixing = torch.randn(examples, 6, 4, generator=DRAW), torch.rand(6, 6, generator=DRAW)
    network = ll.split(Mixed(), depth=2, example=((x, mixing), torch.arange(examples) % 5))
    network.replicate(2, network.given_batch(((x, mixing), torch.arange(examples) % 5)))
    for n in (examples, 3):
        call = network.given_batch(((x[:n], mixing), torch.arange(n) % 5)).rows(range(2)).call
        assert call.args[1] is mixing
        assert [len(call.args[0]), len(call.labels)] == [2, 2]


def test_trying_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 5))
    batch = torch.randn(6, 4), torch.arange(6) % 5
    network = ll.split(model, depth=2, example=batch)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    network.replicate(2, network.given_batch(batch))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


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
