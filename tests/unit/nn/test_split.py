"""Where models can be cut, and what is said where they cannot."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from locallearn.errors import ConfigError, UsageError
from locallearn.nn.copies import copied, without_data
from locallearn.nn.cut_places import chain, legal_cuts
from locallearn.nn.features import Axes
from locallearn.nn.pieces import Crossing, pieces
from locallearn.nn.recording import trace
from user_models import ResNet, Transformer, UNet, images, sequences


def _refused(model, inputs, cuts=None, depth=None):
    with pytest.raises(ConfigError) as caught:
        pieces(trace(model, (inputs,), {}), cuts, depth)
    return str(caught.value)


def test_pieces_of_a_resnet_hold_its_own_names_in_order():
    model, (x, _) = ResNet(), images()
    parts = pieces(trace(model, (x,), {}), ["layer1.0", "layer2"], None)
    assert [part.path for part in parts] == ["layer1.0", "layer2", ""]
    assert [part.shape for part in parts] == [(8, 8, 8), (16, 4, 4), (5,)]
    names = [name for part in parts for name in part.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert parts[0].parameters[:3] == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert parts[2].parameters == ("fc.weight", "fc.bias")


def test_multiply_accumulates_are_those_of_convolutions_and_products():
    model, (x, _) = ResNet(), images(n=1)
    parts = pieces(trace(model, (x,), {}), ["layer1.0"], None)
    assert parts[0].macs == 64 * (9 * 2 * 8 + 2 * 9 * 8 * 8)
    later = 64 * 2 * 9 * 64 + 16 * (9 * 8 * 16 + 8 * 16 + 3 * 9 * 256) + 16 * 5
    assert parts[1].macs == later


def test_balanced_pieces_cut_between_blocks_only():
    model, (x, _) = ResNet(), images()
    found = trace(model, (x,), {})
    assert [call.path for call in chain(found)] == ["bn1", "layer1.0", "layer1", "layer2.0", "layer2"]
    assert [part.path for part in pieces(found, None, 2)] == ["layer1", ""]
    parts = pieces(found, None, 7)  # one more than such places: some lie inside blocks
    assert len(parts) == 7
    assert any(part.crossing for part in parts)
    assert "depth: 99 is not valid; expected at most" in _refused(model, x, depth=99)


def test_residual_blocks_are_not_cut_inside_where_others_are_enough():
    model, (x, _) = ResNet(), images()
    found = trace(model, (x,), {})
    clean = {call.path for call in legal_cuts(found) if not found.crossing(call)}
    assert {"conv1", "bn1", "layer1.0", "layer1", "layer2.1", "fc"} <= clean
    assert not any(path.startswith("layer1.0.") for path in clean)


def test_tensors_that_cross_a_cut_are_listed_with_the_submodule_that_gives_them():
    class Skips(UNet):
        def forward(self, x):
            skip = self.down1(F.relu(self.stem(x)))
            x = self.up1(F.relu(self.down2(skip)))
            return self.fc(F.relu(self.merge(torch.cat([x, skip], 1))).mean((2, 3)))

    parts = pieces(trace(Skips(), (images()[0],), {}), ["down2"], None)
    assert parts[0].crossing == (Crossing("down1", 0, (6, 8, 8, 8)),)
    parts = pieces(trace(UNet(), (images()[0],), {}), ["down2"], None)  # its ReLU is no submodule's
    assert parts[0].crossing == (Crossing(None, 0, (6, 8, 8, 8)),)
    assert pieces(trace(UNet(), (images()[0],), {}), ["down1"], None)[0].crossing == ()


def test_class_tokens_tuples_and_dataclasses_pass():
    model, (x, _) = Transformer(), sequences()
    parts = pieces(trace(model, (x,), {}), ["layers.0", "layers.1"], None)
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

    assert "features with one row for every example (this one gives 6 x 4)" in _refused(
        Folded(), torch.randn(2, 3, 4), ["a"]
    )


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
    first, last = pieces(found, ["embed"], None)
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
    assert [call.path for call in legal_cuts(trace(model, (torch.randn(2, 4),), {}))] == ["a", "norm", "b"]
    assert model.norm.num_batches_tracked == 0
    assert not model.norm.running_mean.any()


@pytest.mark.parametrize("looks", [False, True])
def test_attention_counts_on_real_tensors_as_it_does_on_shapes(looks):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.score = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            if looks and x.abs().max() == 0:
                raise ValueError
            q = self.project(x)[:, None]
            return self.score(F.scaled_dot_product_attention(q, q, q)[:, 0].mean(1))

    found = trace(Attends(), (torch.rand(2, 5, 4),), {})
    assert found.macs == 2 * (5 * 4 * 4 + 2 * 5 * 5 * 4 + 4 * 2)


def test_a_model_that_does_not_run_says_so():
    with pytest.raises(UsageError, match="example: Linear does not run on it"):
        trace(nn.Linear(4, 3), (torch.randn(2, 5),), {})
    with pytest.raises(UsageError, match="has no tensor that gradients come from"):
        trace(nn.Identity(), (torch.randn(2, 5),), {})


class _Keeps(nn.Module):
    """A table in an attribute, made by the first forward pass; a layer and a weight under two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.table = nn.Embedding(30, 16), None
        self.a, self.b, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 30)
        self.alias = self.b
        self.out.weight = self.embed.weight
        self.scales = [torch.ones(16)]

    def forward(self, ids):
        if self.table is None:
            self.table = torch.randn(ids.shape[1], 16, device=ids.device)
        return self.out(self.alias(self.a(self.embed(ids) + self.table) * self.scales[0]))


@pytest.mark.parametrize("ran", [False, True])
def test_tracing_leaves_attributes_aliases_and_gradients_of_the_model_alone(ran):
    model, ids = _Keeps(), torch.randint(30, (4, 10))
    if ran:
        model(ids).sum().backward()
    table, grads = model.table, {name: p.grad for name, p in model.named_parameters()}
    parts = pieces(trace(model, (ids,), {}), ["alias"], None)
    assert parts[0].path == "b"
    assert model.table is table
    assert all(p.grad is grads[name] and not p.is_meta for name, p in model.named_parameters())
    assert model.alias is model.b
    assert not model.scales[0].is_meta
    assert model(ids).device.type == "cpu"


def test_copies_keep_what_the_model_has_twice_as_one():
    model = _Keeps()
    for make in (copied, without_data):
        twin = make(model)
        assert twin.alias is twin.b
        assert twin.out.weight is twin.embed.weight
        assert twin.embed.weight is not model.embed.weight
        assert twin.scales[0] is not model.scales[0]


def test_the_older_weight_norm_can_be_copied():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(2, 4)
    model(x)
    parts = pieces(trace(model, (x,), {}), ["0"], None)
    assert set(parts[0].parameters) == {"0.bias", "0.weight_g", "0.weight_v"}
    assert torch.equal(copied(model)(x), model(x))


def test_models_that_cannot_be_copied_say_so():
    class Locked(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.lock = threading.Lock()

    with pytest.raises(UsageError, match=r"model: Locked cannot be copied, .*cannot pickle '_thread.lock'"):
        trace(Locked(), (torch.randn(2, 4),), {})

    class Closure(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 3)
            self.run = lambda x: self.fc(self.norm(x))

        def forward(self, x):
            return self.run(x)

    model = Closure()
    with pytest.raises(UsageError, match="still calls norm, through a function"):
        trace(model, (torch.randn(2, 4),), {})
    assert model.norm.num_batches_tracked == 0
    with pytest.raises(UsageError, match="model: weight has no shape yet; run the model once"):
        trace(nn.LazyLinear(3), (torch.randn(2, 4),), {})


def test_random_layer_drop_hides_no_layer_from_the_trace():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x):
            for layer in self.layers:
                if not self.training or torch.rand([]) > 0.9:
                    x = layer(x)
            return x

    model = Drops()
    assert len(legal_cuts(trace(model, (torch.randn(2, 4),), {}))) == 6
    assert model.training


def test_parts_that_run_without_gradient_are_no_cuts_and_hide_no_others():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(4, 4)
            self.top = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))

        def forward(self, x):
            with torch.no_grad():
                x = self.backbone(x)
            return self.top(x)

    assert pieces(trace(Frozen(), (torch.randn(2, 4),), {}), None, 2)[0].path == "top.1"
    assert "frozen, or runs under no_grad" in _refused(Frozen(), torch.randn(2, 4), ["backbone"])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_segments_are_seen(reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(checkpoint_sequential(self.body, 2, x, use_reentrant=reentrant))

    before = torch.utils.checkpoint.CheckpointFunction
    found = trace(Net(), (torch.randn(2, 4),), {})
    assert torch.utils.checkpoint.CheckpointFunction is before
    again = [call.path for call in found.calls if call.recomputed]
    assert {"body.0", "body.1"} <= set(again)
    assert "fc" not in again
    assert found.reached == {name for name, _ in Net().named_parameters()}


class _Nhwc(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


AXES = {
    "B x C x H x W": (nn.Conv2d(2, 8, 1), (3, 2, 8, 8), (0, 1)),
    "B x H x W x C": (nn.Sequential(nn.Conv2d(2, 8, 1), _Nhwc()), (3, 2, 8, 8), (0, 3)),
    "B x H x W x C, linear": (nn.Linear(8, 8), (3, 8, 8, 8), (0, 3)),
    "B x C x L": (nn.Conv1d(2, 8, 1), (3, 2, 8), (0, 1)),
    "B x C x D x H x W": (nn.Conv3d(2, 8, 1), (3, 2, 8, 8, 8), (0, 1)),
    "B x T x C": (nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.GELU()), (3, 3, 2), (0, 2)),
    "joined by a residual": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (3, 4, 4), (0, 2)),
    "flattened and back": (
        nn.Sequential(nn.Linear(2, 3), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3))),
        (3, 3, 2),
        (0, 2),
    ),
}


@pytest.mark.parametrize("name", AXES)
def test_examples_and_channels_are_found_where_sizes_do_not_tell(name):
    part, shape, expected = AXES[name]
    model = nn.Sequential(part, nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(shape))
    call = next(call for call in trace(model, (torch.randn(shape),), {}).calls if call.path == "0")
    assert (call.batch, call.channels) == expected


def test_sequences_with_examples_on_the_second_axis_are_found():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.layer(x.transpose(0, 1)).mean(0))

    call = next(c for c in trace(Encoder(), (torch.randn(4, 4, 4),), {}).calls if c.path == "layer")
    assert (call.batch, call.channels) == (1, 2)
    x = torch.randn(5, 3, 7)
    assert torch.equal(Axes(1, 2).ordered(x), x.transpose(0, 1))


def test_an_axis_that_nothing_tells_is_asked_for():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum(-1)

        @staticmethod
        def backward(ctx, grad):
            return grad[..., None].expand(*grad.shape, 6)

    class Sums(nn.Module):
        def forward(self, x):
            return Own.apply(x)

    model = nn.Sequential(nn.Linear(4, 6), Sums(), nn.Flatten(), nn.Linear(12, 5))
    message = _refused(model, torch.randn(3, 2, 6, 4), ["1"])
    assert "layout= beside it: nothing tells which axis of its 3 x 2 x 6 features is the channels" in message
