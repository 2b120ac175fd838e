"""Outputs of models that are not ``logits`` alone: spans of tokens, losses that come first, losses without labels."""

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

import locallearn as ll

IDS = torch.randint(5, 64, (4, 9), generator=torch.Generator().manual_seed(0))
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def bert():
    torch.manual_seed(0)
    return tf.BertForQuestionAnswering(
        tf.BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )


def questions(ids=IDS, start=(0, 1, 2, 3), end=(2, 3, 4, 5)):
    return {"input_ids": ids, "start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}


def test_heads_of_a_model_that_answers_with_spans_learn_where_they_start_and_end():
    network = ll.split(bert(), depth=2, example=questions(), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    assert [tuple(p.shape) for p in network.objectives[0].parameters()][-2:] == [(2, 32), (2,)]
    first = network.step(questions())
    for _ in range(60):
        last = network.step(questions())
    assert float(first["loss/1"]) == pytest.approx(torch.log(torch.tensor(9.0)).item(), abs=0.3)
    assert float(last["loss/1"]) < 0.2
    assert float(last["loss/2"]) < 0.7


def test_the_loss_of_a_span_is_the_models_own_on_the_same_scores():
    model = bert().eval()
    batch = questions(end=(2, 3, 40, 5))  # one answer was cut off
    found = model(**batch)
    network = ll.split(model, depth=2, example=batch)
    scores = torch.stack([found.start_logits, found.end_logits], -1)
    labels = network.given_batch(batch).labels
    assert labels.tolist() == [[0, 2], [1, 3], [2, 40], [3, 5]]
    assert torch.allclose(network.task.loss(scores, labels), found.loss)


def test_questions_of_another_length_train_too():
    network = ll.split(bert(), depth=2, example=questions())
    longer = questions(torch.cat([IDS, IDS], 1), end=(2, 17, 4, 12)) | {"attention_mask": torch.ones(4, 18).long()}
    assert all(bool(torch.isfinite(value)) for value in network.step(longer).values())


class LossFirst(nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scores = scores

    def forward(self, x, labels):
        scores = self.c(self.b(self.a(x).relu()).relu())
        loss = F.cross_entropy(scores, labels)
        return (loss, scores) if self.scores else loss


def test_a_tuple_whose_first_item_is_the_loss_has_scores_second():
    batch = {"x": torch.rand(6, 8), "labels": torch.arange(6) % 3}
    network = ll.split(LossFirst(True), depth=2, example=batch)
    loss, scores = network.model(**batch)
    metrics = network.step(batch)
    assert torch.allclose(metrics["loss"], loss)
    assert scores.shape == (6, 3)


def test_a_model_that_gives_its_loss_alone_asks_for_one_of_scores():
    with pytest.raises(
        ll.LocalLearnError, match="objective: None is not valid; expected .* the model gives its loss alone"
    ):
        ll.split(LossFirst(False), depth=2, example={"x": torch.rand(6, 8), "labels": torch.arange(6) % 3})


def test_values_that_a_model_forecasts_are_labels():
    config = tf.PatchTSTConfig(
        num_input_channels=2,
        context_length=16,
        prediction_length=4,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_attention_heads=2,
        num_hidden_layers=4,
        ffn_dim=32,
    )
    batch = {"past_values": torch.randn(8, 16, 2), "future_values": torch.randn(8, 4, 2)}
    network = ll.split(tf.PatchTSTForPrediction(config), depth=2, example=batch)
    assert network.task.loss.kind == "mean-squared-error"
    losses = [network.step(batch) for _ in range(30)]
    assert losses[-1]["loss/1"] < losses[0]["loss/1"]
