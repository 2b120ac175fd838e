"""Where models can be cut, and what is said where they cannot."""

import pytest
import torch
from torch import nn

from locallearn.errors import ConfigError, UsageError
from locallearn.nn.split import chain, legal_cuts, pieces
from locallearn.nn.trace import trace
from user_models import ResNet, Transformer, UNet, images, sequences


def _refused(model, inputs, cuts=None, depth=None):
    with pytest.raises(ConfigError) as caught:
        pieces(trace(model, (inputs,), {}), len(inputs), cuts, depth)
    return str(caught.value)


def test_pieces_of_a_resnet_hold_its_own_names_in_order():
    model, (x, _) = ResNet(), images()
    parts = pieces(trace(model, (x,), {}), 6, ["layer1.0", "layer2"], None)
    assert [part.path for part in parts] == ["layer1.0", "layer2", ""]
    assert [part.shape for part in parts] == [(8, 8, 8), (16, 4, 4), (5,)]
    names = [name for part in parts for name in part.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert parts[0].parameters[:3] == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert parts[2].parameters == ("fc.weight", "fc.bias")


def test_multiply_accumulates_are_those_of_convolutions_and_products():
    model, (x, _) = ResNet(), images(n=1)
    parts = pieces(trace(model, (x,), {}), 1, ["layer1.0"], None)
    assert parts[0].macs == 64 * (9 * 2 * 8 + 2 * 9 * 8 * 8)
    later = 64 * 2 * 9 * 64 + 16 * (9 * 8 * 16 + 8 * 16 + 3 * 9 * 256) + 16 * 5
    assert parts[1].macs == later


def test_balanced_pieces_cut_between_blocks_only():
    model, (x, _) = ResNet(), images()
    found = trace(model, (x,), {})
    assert [call.path for call in chain(found, 6)] == ["bn1", "layer1.0", "layer1", "layer2.0", "layer2"]
    assert [part.path for part in pieces(found, 6, None, 2)] == ["layer1", ""]
    assert "depth: 7 is not valid; expected at most 6" in _refused(model, x, depth=7)


def test_residual_blocks_cannot_be_cut_inside():
    model, (x, _) = ResNet(), images()
    legal = {call.path for call in legal_cuts(trace(model, (x,), {}), 6)}
    assert {"conv1", "bn1", "layer1.0", "layer1", "layer2.1", "fc"} <= legal
    assert not any(path.startswith("layer1.0.") for path in legal)


def test_a_long_skip_is_named_with_the_nearest_legal_cuts():
    message = _refused(UNet(), images()[0], ["down2"])
    assert message == (
        "cuts: 'down2' is not valid; expected a place that nothing jumps over, but a tensor of 6 x 8 x 8 x 8 made in "
        "the model itself is used after it too; the nearest legal cuts are down1 and merge"
    )


def test_class_tokens_tuples_and_dataclasses_pass():
    model, (x, _) = Transformer(), sequences()
    parts = pieces(trace(model, (x,), {}), 6, ["layers.0", "layers.1"], None)
    assert [part.shape for part in parts] == [(7, 16), (7, 16), (5,)]
    assert {"token", "position", "embed.weight"} <= set(parts[0].parameters)
    assert parts[2].parameters[-2:] == ("head.weight", "head.bias")


def test_unknown_paths_get_the_nearest_names():
    assert "the nearest are layers.1, layers.2, layers.0" in _refused(Transformer(), sequences()[0], ["layer.1"])


def test_a_submodule_that_runs_twice_is_no_cut():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    message = _refused(Twice(), torch.randn(2, 4), ["a"])
    assert "a submodule that runs once in a forward pass (this one runs 2 times)" in message


def test_features_without_a_row_for_each_example_are_no_cut():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1))

    assert "for the 2 examples (this one gives 6 x 4)" in _refused(Folded(), torch.randn(2, 3, 4), ["a"])


def test_a_module_without_weights_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    message = _refused(model, torch.randn(2, 4), ["0", "1"])
    assert "cuts with parameters to train between 0 and 1, where there are none" in message


def test_tied_weights_belong_to_the_first_module_that_uses_them():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids):
            return self.out(self.body(self.embed(ids)))

    found = trace(Tied(), (torch.zeros(2, 3, dtype=torch.long),), {})
    first, last = pieces(found, 2, ["embed"], None)
    assert first.parameters == ("embed.weight",)
    assert last.parameters == ("body.weight", "body.bias")
    assert last.reads == ("embed.weight",)
    assert found.scorer == "out"


def test_tracing_changes_nothing_not_even_the_random_state():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, (images()[0],), {})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_models_that_look_at_values_are_traced_on_real_tensors():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

        def forward(self, x):
            x = self.norm(self.a(x))
            return self.b(x * 2 if x.sum().item() > 0 else x)

    model = Looks()
    assert [call.path for call in legal_cuts(trace(model, (torch.randn(2, 4),), {}), 2)] == ["a", "norm", "b"]
    assert model.norm.num_batches_tracked == 0


def test_a_model_that_does_not_run_says_so():
    with pytest.raises(UsageError, match="example: Linear does not run on it"):
        trace(nn.Linear(4, 3), (torch.randn(2, 5),), {})
    with pytest.raises(UsageError, match="has no tensor that gradients come from"):
        trace(nn.Identity(), (torch.randn(2, 5),), {})
