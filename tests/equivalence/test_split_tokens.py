"""Language models whose stages score some tokens, or keep no scores: what it changes, and what it does not."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.core.last_layer import LastLayerLoss
from locallearn.core.local_step import DRAWING
from locallearn.core.rehearsal import SplitWarning
from locallearn.runtime.threads import ThreadsRuntime

IDS = torch.randint(5, 64, (4, 12), generator=torch.Generator().manual_seed(0))
LABELS = IDS.masked_fill(IDS % 7 == 0, -100)
TEXT = {"input_ids": IDS, "labels": LABELS}


def gpt2(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 4, "n_head": 2}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**shape, bos_token_id=0, eos_token_id=0, **changes)).train()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def split(model, head="shared", depth=3, objective="next-token", example=TEXT, **options):
    settings = ObjectiveConfig(options=options)
    return ll.split(
        model, example=example, depth=depth, objective=objective, head=head, optimizer=sgd, settings=settings
    )


def losses(network, batch=TEXT, steps=3):
    return [
        [each.total.item() for each in network.walk(network.steps, network.given_batch(batch), i)]
        for i in range(steps)
    ]


def near(network, other):
    return all(
        torch.allclose(a, b, atol=2e-6)
        for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["shared", "terminal", "0c1f", "0c2f"])
def test_scores_in_parts_train_the_same(head, tied):
    """Dropout is there too: both draw the same."""
    plain, parts = (split(gpt2(tie_word_embeddings=tied), head, **options) for options in ({}, {"chunk": 200}))
    assert isinstance(parts.stages[-1].objective, LastLayerLoss)
    assert not isinstance(plain.stages[-1].objective, LastLayerLoss)
    assert torch.allclose(torch.tensor(losses(parts)), torch.tensor(losses(plain)), atol=2e-6)
    assert near(parts, plain)


def test_other_gradients_of_the_last_layer_are_seen():
    """The comparison above can fail: with a share of the tokens the weights differ."""
    plain, parts = split(gpt2()), split(gpt2(), chunk=200, positions=0.5)
    losses(plain), losses(parts)
    assert not near(parts, plain)


def test_depth_one_is_plain_training():
    model = gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    network = split(model, depth=1, head=None, chunk=200)
    optimizer = sgd(model.parameters())
    for _ in range(3):
        network.step(TEXT)
        optimizer.zero_grad()
        model(**TEXT).loss.backward()
        optimizer.step()
    pairs = zip(network.merge().parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("options", [{"chunk": 200}, {"chunk": 200, "positions": 0.25}, {"positions": 0.5}])
def test_stages_on_threads_train_the_same_bits(options):
    whole = split(gpt2(), "0c1f", **options)
    apart = copy.deepcopy(whole)
    apart.set_optimizers(sgd)
    apart.run_apart()
    expected = losses(whole, steps=4)
    with ThreadsRuntime(apart.steps, 2, 2) as runtime:
        done = [each for i in range(4) for each in runtime.step(apart.given_batch(TEXT), i)] + runtime.settle()
    assert [[loss.total.item() for loss in each.losses] for each in done] == expected
    other = apart.state_dict()
    assert [name for name, value in whole.state_dict().items() if not torch.equal(value, other[name])] == []


def test_stages_on_threads_look_at_one_copy_of_what_they_all_read():
    """An unembedding is as large as many blocks: not once a stage, nor once a stage and batch."""
    network = split(gpt2(), "shared", depth=4)
    network.set_optimizers(sgd)
    network.run_apart()
    with ThreadsRuntime(network.steps, 2, 2) as runtime:
        for i in range(3):
            runtime.step(network.given_batch(TEXT), i)
        runtime.settle()
    pairs = [pair for stage in network.stages for pair in stage.reads.get(0, [])]
    assert len({id(source) for source, _ in pairs}) == 1 < len(pairs)
    assert len({copy.data_ptr() for _, copy in pairs} | {pairs[0][0].data_ptr()}) == 2
    assert all(torch.equal(source, copy) for source, copy in pairs)


def test_only_what_may_draw_keeps_others_from_drawing():
    """On threads the loss of the last layer, a large part of a step, is computed while other stages draw."""
    network, held = split(gpt2(), depth=2, chunk=200, positions=0.5), []
    network.run_apart()
    for stage in network.stages:
        stage.objective.register_forward_pre_hook(lambda *_: held.append(DRAWING.locked()))
    batch, features = network.given_batch(TEXT), IDS
    for step in network.steps:
        features, _ = step(features, batch)
    assert held == [True, False]


def test_a_share_of_the_tokens_is_drawn_anew_and_by_the_seed():
    one, other = split(gpt2(), positions=0.25), split(gpt2(), positions=0.25)
    for network in (one, other):  # the same weights at every step: what differs is drawn
        network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    found = losses(one)
    assert found == losses(other)
    assert len({step[0] for step in found}) == 3
    one.eval()
    scored = [loss.item() for _, _, loss in one.look(one.given_batch(TEXT))]
    whole = split(gpt2()).eval()
    assert scored == [loss.item() for _, _, loss in whole.look(whole.given_batch(TEXT))]


def test_a_share_is_in_the_mean_the_loss_of_all():
    """Unbiased: the mean over many draws is the loss of every token."""
    model = gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    batch = {"input_ids": IDS, "labels": IDS}
    still = [split(copy.deepcopy(model), example=batch, **o) for o in ({}, {"positions": 0.25})]
    for network in still:
        network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    whole = losses(still[0], batch, 1)[0]
    drawn = torch.tensor(losses(still[1], batch, 40)).mean(0)
    assert torch.allclose(drawn, torch.tensor(whole), atol=0.03)


class Plain(torch.nn.Module):
    """Its loss is the cross entropy of its last linear layer's scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = torch.nn.Embedding(64, 16), torch.nn.Sequential(torch.nn.Linear(16, 16))
        self.head = torch.nn.Linear(16, 64)

    def forward(self, input_ids, labels=None):
        scores = self.head(self.blocks(self.embed(input_ids)))
        return scores if labels is None else (self.loss(scores, labels), scores)

    def loss(self, scores, labels):
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Capped(Plain):
    def loss(self, scores, labels):
        return super().loss(scores.tanh(), labels)


class AlwaysWithLoss(Plain):
    def forward(self, input_ids, labels=None):
        scores = self.head(self.blocks(self.embed(input_ids)))
        return self.loss(scores, labels), scores


@pytest.mark.parametrize(("model", "keeps"), [(Plain, False), (Capped, True), (AlwaysWithLoss, True)])
def test_another_loss_than_that_of_the_last_layer_keeps_its_scores(model, keeps):
    batch = {"input_ids": IDS, "labels": IDS}
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = split(model(), head="0c1f", depth=2, example=batch, chunk=100)
    kept = [str(each.message) for each in said if each.category is SplitWarning and "keeps its scores" in str(each)]
    assert bool(kept) is keeps
    assert isinstance(network.stages[-1].objective, LastLayerLoss) is not keeps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"positions": 0.0}, "objective.options.positions: 0.0 is not valid; expected greater than 0"),
        ({"positions": 1.5}, "objective.options.positions: 1.5 is not valid; expected less than or equal to 1"),
        ({"chunk": -1}, "objective.options.chunk: -1"),
        ({"share": 0.5}, "objective.options.share: 0.5"),
        ({"positions": 0.5, "head": torch.nn.Linear(32, 64)}, "no options with a head of your own"),
        ({"positions": 0.5, "objective": "mean-squared-error"}, "has no options|settings.options|mean-squared"),
    ],
)
def test_what_does_not_fit_is_one_line(call, message):
    with pytest.raises(ll.LocalLearnError, match=message):
        split(gpt2(), **call)
