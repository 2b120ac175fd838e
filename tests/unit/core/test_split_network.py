"""What a user sees of a split network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.errors import ConfigError, UsageError
from user_models import ResNet, Transformer, images, sequences


def _states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _resnet(**kwargs):
    torch.manual_seed(0)
    return ll.split(ResNet(), example=images(), **{"depth": 3, **kwargs})


def test_four_lines_are_enough_and_learn():
    torch.manual_seed(0)
    network = ll.split(ResNet(), example=images(), depth=3)
    batch = images(n=16)
    first = network.step(batch)
    for _ in range(30):
        last = network.step(batch)
    assert set(last) == {"loss", *(f"{name}/{k}" for name in ("loss", "accuracy") for k in (1, 2, 3))}
    assert all(last[f"loss/{k}"] < 0.8 * first[f"loss/{k}"] for k in (1, 2, 3))
    assert last["accuracy/3"] > 0.9
    assert last["loss"] == last["loss/3"]


def test_the_users_model_is_not_changed():
    model = ResNet()
    before, hooks = copy.deepcopy(model.state_dict()), repr(model)
    network = ll.split(model, example=images(), depth=3)
    network.step(images())
    assert _states_equal(model.state_dict(), before)
    assert repr(model) == hooks
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in [*model.modules(), *network.modules()])


def test_merging_gives_the_users_class_with_the_trained_weights():
    network = _resnet()
    network.step(images())
    merged, fresh = network.merge(), ResNet()
    assert type(merged) is ResNet
    fresh.load_state_dict(merged.state_dict())
    x = images(seed=1)[0]
    network.eval(), fresh.eval()
    assert torch.equal(fresh(x), network(x))
    kept = {name for name in network.state_dict() if name.startswith("model.")}
    assert kept == {f"model.{name}" for name in fresh.state_dict()}


def test_training_continues_from_a_file_bit_for_bit(tmp_path):
    batches = [images(seed=seed) for seed in range(4)]
    whole, half, later = (_resnet() for _ in range(3))
    for batch in batches:
        whole.step(batch)
    for batch in batches[:2]:
        half.step(batch)
    torch.save(half.training_state(), tmp_path / "state.pt")
    later.load_training_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in batches[2:]:
        later.step(batch)
    assert _states_equal(whole.state_dict(), later.state_dict())


def test_every_parameter_has_one_module():
    network = _resnet()
    names = [name for k in (1, 2, 3) for name in network.module_parameters(k)]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    held = [id(p) for each in network.optimizers for group in each.param_groups for p in group["params"]]
    assert len(set(held)) == len(held) == len(names)


def test_frozen_weights_stay():
    model = ResNet()
    model.conv1.requires_grad_(False)
    network = ll.split(model, example=images(), depth=3)
    network.step(images())
    assert torch.equal(network.model.conv1.weight, model.conv1.weight)
    assert not torch.equal(network.model.fc.weight, model.fc.weight)


def test_batches_may_be_mappings_pairs_or_nested():
    x, y = sequences()
    losses = []
    for batch in ((x, y), {"x": x, "labels": y}, ({"x": x}, y), ((x,), y)):
        torch.manual_seed(0)
        network = ll.split(Transformer(), example=batch, depth=2)
        losses.append(network.step(batch)["loss"].item())
    assert len(set(losses)) == 1
    with pytest.raises(UsageError, match="expected a mapping, inputs, or a pair"):
        network.step((x, y, y))
    for depth in (1, 2):
        with pytest.raises(UsageError, match="batch: there are no labels"):
            _resnet(depth=depth).step(images()[0])


def test_heads_see_the_class_token_or_the_mean():
    """With the class token alone, other tokens of the first module have no gradient."""
    for tokens, reached in (("class", False), ("mean", True)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(24, 5))
        network = ll.split(model, example=sequences(), cuts=["0"], tokens=tokens)
        x, y = sequences()
        x = x.requires_grad_()
        features = network.model[0](x)
        from locallearn.nn.features import seen_by_objective

        network.objectives[0](seen_by_objective(features, tokens), ll_batch(x, y)).total.sum().backward()
        assert bool(x.grad[:, 1:].any()) is reached
    with pytest.raises(ConfigError, match="tokens: 'last' is not valid; expected one of mean, class, all"):
        ll.split(Transformer(), example=sequences(), depth=2, tokens="last")


def ll_batch(x, y):
    from locallearn.data.store import Batch

    return Batch(images=x, labels=y, pixels=x, step=0)


def test_vectors_and_losses_of_the_users_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(32, 4)
    y = x.sum(1, keepdim=True)
    network = ll.split(model, example=(x, y), cuts=["1"], head="0c1f", objective=F.mse_loss)
    first = network.step((x, y))
    by_hand = F.mse_loss(model(x), y)
    assert first["loss"] == by_hand
    for _ in range(100):
        last = network.step((x, y))
    assert last["loss/1"] < 0.6 * first["loss/1"]
    assert last["loss/2"] < 0.5 * first["loss/2"]
    assert "accuracy/2" not in last


@pytest.mark.parametrize("objective", ["predsim", "cross-entropy"])
def test_registered_objectives_work_on_maps_and_on_tokens(objective):
    for model, batch in ((ResNet(), images()), (Transformer(), sequences())):
        metrics = ll.split(model, example=batch, depth=2, objective=objective).step(batch)
        assert all(torch.isfinite(value) for value in metrics.values())


def test_seeds_decide_the_heads_weights_and_nothing_else():
    state = torch.get_rng_state()
    a, b, other = (_resnet(seed=seed).state_dict() for seed in (1, 1, 2))
    assert _states_equal(a, b)
    differ = {key for key in a if not torch.equal(a[key], other[key])}
    assert differ
    assert all(key.startswith("stages.") for key in differ)
    torch.set_rng_state(state)


def test_clipping_limits_every_modules_gradient():
    network = _resnet(clip_norm=1e-3, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before = {k: {n: p.clone() for n, p in network.module_parameters(k).items()} for k in (1, 2, 3)}
    network.step(images())
    for k in (1, 2, 3):
        now = network.module_parameters(k)
        moved = sum((now[n] - before[k][n]).square().sum() for n in now).sqrt()
        assert 0.9e-3 < moved < 1.1e-3


def test_width_groups_of_a_convolutional_model():
    torch.manual_seed(0)
    model = ResNet()
    network = ll.split(model, example=images(), cuts=["layer1", "layer2.0"], width=2)
    assert network.model.layer1[0].conv1.groups == 2  # the stem comes before it
    assert network.model.conv1.groups == 1
    assert network.model.layer2[0].conv1.groups == network.model.layer2[0].shortcut.groups == 1
    assert network.model.layer2[0].conv2.groups == 2
    assert network.model.layer2[1].conv2.groups == 1  # the last module is not split
    own = model.layer2[0].conv2.weight[8:, 8:]
    assert torch.equal(network.model.layer2[0].conv2.weight[8:], own)
    batch = images(n=16)
    first = network.step(batch)
    for _ in range(20):
        last = network.step(batch)
    assert all(last[f"loss/{k}"] < first[f"loss/{k}"] for k in (1, 2, 3))
    merged = network.merge()
    ResNet().load_state_dict(merged.state_dict())
    network.eval(), merged.eval()
    torch.testing.assert_close(merged(batch[0]), network(batch[0]))


def test_what_cannot_be_split_in_width_is_said():
    with pytest.raises(ConfigError, match="only modules of dense convolutions and batch norm can be split in width"):
        ll.split(Transformer(), example=sequences(), depth=2, width=2)
    with pytest.raises(ConfigError, match=r"a divisor of the channels of bn1|a divisor of the channels of conv1"):
        ll.split(ResNet(), example=images(), depth=2, width=3)
    with pytest.raises(ConfigError, match="width: 2 is not valid; expected 1 with one module"):
        ll.split(ResNet(), example=images(), depth=1, width=2)

    class Mixing(ResNet):
        def forward(self, x):
            x = self.layer1(F.relu(self.bn1(self.conv1(x))))
            return self.fc(self.layer2(x.flip(1)).mean((2, 3)))

    class MixingInside(ResNet):
        def forward(self, x):
            x = self.layer1[0](F.relu(self.bn1(self.conv1(x)))).flip(1)
            return self.fc(self.layer2(self.layer1[1](x)).mean((2, 3)))

    class HiddenGate(ResNet):
        def __init__(self):
            super().__init__()
            self.gate = nn.BatchNorm2d(8)
            nn.init.zeros_(self.gate.weight)

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            x = self.layer1(x + self.gate(self.layer1[0].conv1(x).flip(1)))
            return self.fc(self.layer2(x).mean((2, 3)))

    class HiddenScale(ResNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.zeros(()))  # that a schedule of the user's sets later

        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)))
            return self.fc(self.layer2(self.layer1(x + self.scale * x.flip(1))).mean((2, 3)))

    ll.split(Mixing(), example=images(), cuts=["layer1"], width=2)  # after the cut every group sees every channel
    with pytest.raises(ConfigError, match="mixes groups"):
        ll.split(MixingInside(), example=images(), cuts=["layer1.1"], width=2)
    with pytest.raises(ConfigError, match="mixes groups"):
        ll.split(HiddenGate(), example=images(), cuts=["layer1.1"], width=2)
    with pytest.raises(ConfigError, match="mixes groups"):
        ll.split(HiddenScale(), example=images(), cuts=["layer1.1"], width=2)


def test_wrong_calls_are_one_line():
    for kwargs, message in (
        ({}, "either cuts or depth"),
        ({"cuts": ["layer1"], "depth": 2}, "either cuts or depth"),
        ({"depth": 0}, "depth: 0 is not valid"),
        ({"depth": 2, "width": 0}, "width: 0 is not valid"),
        ({"depth": 2, "head": "1x"}, "objective.head: '1x'"),
        ({"depth": 2, "objective": "crossentropy"}, "Did you mean cross-entropy"),
        ({"depth": 2, "objective": "next-token"}, "that are not B x T x C tokens"),
        ({"depth": 2, "objective": "nt-xent"}, "a loss on one view of every whole example"),
        ({"depth": 2, "objective": "infopro"}, r"images with pixels outside \[0, 1\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            ll.split(ResNet(), example=images(), **kwargs)
    with pytest.raises(ConfigError, match="tokens: 'all' is not valid; expected mean or class with predsim"):
        ll.split(Transformer(), example=sequences(), depth=2, tokens="all", objective="predsim")
