"""``Trainer.features``: what a stage's head sees of every example."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.errors import UsageError
from user_models import ResNet, Transformer, images, sequences

DATA = [images(seed=0), images(seed=1)]
TOKENS = [sequences(seed=0), sequences(seed=1)]


def test_maps_are_averaged_and_the_last_stage_has_what_its_scorer_is_given():
    network = ll.split(ResNet(), example=DATA[0], cuts=["layer1.0"])
    for batch in DATA:
        network.step(batch)
    trainer = ll.Trainer(network)
    model = network.merge().eval()
    x = torch.cat([inputs for inputs, _ in DATA])
    with torch.no_grad():
        maps = model.layer1[0](F.relu(model.bn1(model.conv1(x))))
        ends = model.layer2(model.layer1[1](maps)).mean((2, 3))
    torch.testing.assert_close(trainer.features(DATA, stage=1), maps.mean((2, 3)))
    torch.testing.assert_close(trainer.features(DATA), ends)
    torch.testing.assert_close(trainer.features(DATA, stage=2), ends)
    assert network.training
    assert not trainer.features(DATA, stage=1).requires_grad
    assert all(not layer._forward_hooks for layer in network.model.modules())


@pytest.mark.parametrize("tokens", ["mean", "class"])
def test_tokens_are_chosen_as_the_objective_sees_them(tokens):
    network = ll.split(Transformer(), example=TOKENS[0], cuts=["layers.0"], tokens=tokens)
    seen = []
    network.objectives[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    trainer = ll.Trainer(network)
    trainer.evaluate(TOKENS)
    torch.testing.assert_close(trainer.features(TOKENS, stage=1), torch.cat(seen))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block, self.scorer = nn.Embedding(7, 12), nn.Linear(12, 12), nn.Linear(12, 7)

    def forward(self, ids, attention_mask=None):
        return self.scorer(self.block(self.embed(ids)).relu())


def test_where_all_tokens_are_seen_their_mean_has_no_padding():
    ids = torch.arange(30).view(5, 6) % 7
    kept = torch.ones(5, 6, dtype=torch.int64)
    kept[:, 4:] = 0
    batch = {"ids": ids, "attention_mask": kept, "labels": ids}
    network = ll.split(Language(), example=batch, cuts=["embed"], objective="token")
    trainer = ll.Trainer(network)
    with torch.no_grad():
        first = network.model.embed(ids)
        second = network.model.block(first).relu()
    for stage, features in ((1, first), (2, second)):
        expected = F.layer_norm(features[:, :4].mean(1), (12,))
        torch.testing.assert_close(trainer.features([batch], stage), expected)


def test_built_networks_have_stages_too():
    config = ll.RunConfig(method="dgl", model="resnet8", depth=2)
    network = ll.build_network(config, ll.ImageShape(2, 8, 5))
    trainer = ll.Trainer(network)
    first, second = network
    network.eval()
    with torch.no_grad():
        maps = first(DATA[0][0])
        torch.testing.assert_close(trainer.features(DATA[:1], stage=1), maps.mean((2, 3)))
        torch.testing.assert_close(trainer.features(DATA[:1]), second(maps).mean((2, 3)))


def test_averaged_weights_are_read():
    network = ll.split(ResNet(), example=DATA[0], cuts=["layer1.0"])
    trainer = ll.Trainer(network, average=0.9)
    trainer.fit(DATA, epochs=2)
    plain = ll.Trainer(network)
    assert not torch.equal(trainer.features(DATA, 1), plain.features(DATA, 1))


@pytest.mark.parametrize("stage", [0, 3, -1, True, "1"])
def test_a_wrong_stage_is_named(stage):
    trainer = ll.Trainer(ll.split(ResNet(), example=DATA[0], cuts=["layer1.0"]))
    with pytest.raises(UsageError, match=f"stage: {stage!r} is not valid; expected a number from 1 to 2"):
        trainer.features(DATA, stage)


def test_scores_that_no_linear_layer_makes_are_said():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.Linear(8, 5), nn.LogSoftmax(1))
    trainer = ll.Trainer(ll.split(model, example=DATA[0], cuts=["1"]))
    with pytest.raises(UsageError, match="stage: 2 is not valid; expected 1 to 1: no linear layer makes"):
        trainer.features(DATA)
    assert trainer.features(DATA, 1).shape == (12, 8)
    with pytest.raises(UsageError, match="loader: it gave no batch"):
        trainer.features([], 1)
