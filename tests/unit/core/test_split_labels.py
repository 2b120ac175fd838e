"""Labels of batches that are other than the example's, and integers that mark classes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def _mlp(outputs=5):
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool, torch.uint8])
def test_classes_that_integers_mark_are_probabilities(kind):
    labels, model = F.one_hot(torch.arange(4), 5).to(kind), _mlp()
    network = ll.split(model, depth=2, example=(X, labels))
    assert network.task.loss.kind == "cross-entropy"
    torch.testing.assert_close(network.step((X, labels))["loss"], F.cross_entropy(model(X), torch.arange(4)))
    several = labels | labels.roll(1, 1)
    assert ll.split(model, depth=2, example=(X, several)).task.loss.kind == "binary-cross-entropy"


@pytest.mark.parametrize(
    ("labels", "later", "message"),
    [
        (F.one_hot(torch.arange(4), 5).float(), torch.ones(4, 5), "sum to 1 over the classes"),
        (F.one_hot(torch.arange(4), 5), F.one_hot(torch.arange(4), 5) * 3, "sum to 1 over the classes"),
        (torch.tensor([[0.0, 1, 1, 0, 1]]).expand(4, 5), torch.full((4, 5), 37.5), "are from 0 to 1"),
    ],
)
def test_a_later_batch_that_asks_for_another_loss_is_refused_before_it_trains(labels, later, message):
    network = ll.split(_mlp(), depth=2, example=(X, labels))
    before = network.model[0].weight.clone()
    with pytest.raises(ll.LocalLearnError, match=message):
        network.step((X, later))
    assert torch.equal(network.model[0].weight, before)


def test_labels_of_any_integer_type():
    model = _mlp()
    network = ll.split(model, depth=2, example=(X, torch.arange(4).to(torch.uint16)))
    expected = F.cross_entropy(model(X), torch.arange(4))
    torch.testing.assert_close(network.step((X, torch.arange(4).to(torch.uint32)))["loss"], expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1.0, float("nan"), 0, 2]), "have NaN or infinity in them"),
        (torch.tensor([1.0, float("inf"), 0, 2]), "have NaN or infinity in them"),
        (torch.rand(4, dtype=torch.complex64), "are real numbers, not complex64"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(labels, message):
    with pytest.raises(ll.LocalLearnError, match=message):
        ll.split(_mlp(1), depth=2, example=(X, labels))


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, y: torch.where(y > 0.5, s, -s).mean(),
        lambda s, y: torch.maximum(s, y).mean(),
        lambda s, y: (s.exp() ** y).mean(),
        lambda s, y: torch.lerp(s, y, 0.5).mean(),
    ],
)
def test_losses_that_repeat_numbers_in_other_functions_are_refused(loss):
    with pytest.raises(ll.LocalLearnError, match="which repeats every example's numbers"):
        ll.split(_mlp(1), depth=2, example=(X, torch.rand(4)), objective=loss)
    ll.split(_mlp(1), depth=2, example=(X, torch.rand(4, 1)), objective=loss)


def test_losses_that_train_nothing_or_are_none_are_refused():
    with pytest.raises(ll.LocalLearnError, match="the loss has no gradient, so that it would train nothing"):
        ll.split(_mlp(), depth=2, example=(X, torch.arange(4)), objective=lambda s, y: F.cross_entropy(s.detach(), y))
    with pytest.raises(ll.LocalLearnError, match=r"expected a loss, as CrossEntropyLoss\(\) makes one"):
        ll.split(_mlp(), depth=2, example=(X, torch.arange(4)), objective=nn.CrossEntropyLoss)


class OneAToken(nn.Module):
    """A score of every token, as ELECTRA's discriminator has it: [B, T] -> [B, T]."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.score = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, ids):
        return self.score(self.first(self.embed(ids)).tanh()).squeeze(-1)


class ManyLabels(OneAToken):
    """As many scores of every text as the example has tokens."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(8, 6)

    def forward(self, ids):
        return self.score(self.first(self.embed(ids)).tanh().mean(1))


def test_one_score_of_every_token_is_learnt_token_by_token():
    """Heads score each token alone, whatever the length; scores of whole texts stay as many as they are."""
    torch.manual_seed(0)
    ids = torch.randint(20, (4, 6))
    network = ll.split(OneAToken(), cuts=["first"], example=(ids, (ids > 9).long()))
    head = network.stages[0].objective.head
    features = torch.randn(4, 9, 8)
    one_by_one = torch.stack([head(features[:, t : t + 1])[0, :, 0] for t in range(9)], 1)
    torch.testing.assert_close(head(features)[0], one_by_one)
    loss = network.step((ids[:, :3], (ids[:, :3] > 9).long()))["loss/1"]
    assert loss.item() == pytest.approx(0.69, abs=0.3)
    of_texts = ll.split(ManyLabels(), cuts=["first"], example=(ids, torch.randint(2, (4, 6)).float()))
    assert of_texts.stages[0].objective.head(torch.randn(4, 8)).shape == (1, 4, 6)


class Contrasts(nn.Module):
    """Texts against images of the same example, as CLIP; the loss is the model's own, and there are no labels."""

    def __init__(self):
        super().__init__()
        self.text, self.image = nn.EmbeddingBag(9, 8), nn.Linear(8, 8)

    def forward(self, tokens, pixels):
        scores = self.text(tokens) @ self.image(pixels).T
        return {"loss": F.cross_entropy(scores, torch.arange(len(scores))), "logits": scores}


def test_tokens_without_labels_are_trained_by_the_models_own_loss():
    batch = {"tokens": torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(0)), "pixels": X}
    model = Contrasts()
    network = ll.split(model, depth=1, example=batch, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    metrics = network.step(batch)
    torch.testing.assert_close(metrics["loss"], model(**batch)["loss"].detach(), rtol=0, atol=0)
    assert sorted(metrics) == ["loss", "loss/1"]
