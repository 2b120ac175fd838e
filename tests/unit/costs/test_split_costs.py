"""``ll.cost`` of users' own models: by hand, against torch's counter, and against real steps."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import locallearn as ll
from locallearn.core.local_step import LocalStep
from locallearn.costs.memory import ActivationMeter
from locallearn.errors import ConfigError, LocalLearnError, UsageError
from locallearn.nn.products import ProductCounter
from user_models import ResNet, Transformer, UNet, images, sequences

VECTORS = torch.rand(16, 64), torch.arange(16) % 10
MAPS = torch.rand(4, 2, 8, 8), torch.arange(4) % 5


def mlp():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn():
    first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, second, nn.Linear(8, 5))


def test_an_mlp_by_hand():
    found = ll.cost(ll.split(mlp(), example=VECTORS, cuts=["1"]), VECTORS)
    one, two = found.modules
    head = 32 * 128 + 128 * 10  # 1c2f on vectors: two linear layers
    assert (one.block_macs, one.head_macs) == (64 * 32, head)
    assert (two.block_macs, two.head_macs) == (32 * 32 + 32 * 10, 0)
    assert one.parameters == 64 * 32 + 32 + head + 128 + 10
    assert two.parameters == 32 * 32 + 32 + 32 * 10 + 10
    loss = 16 * 10 * 4 + 16 * 8 + 4  # log probabilities, labels, and the sum of weights
    assert one.activation_bytes == 16 * (64 + 32 + 128) * 4 + loss
    assert two.activation_bytes == 16 * (32 + 32) * 4 + loss
    assert (one.output_bytes, two.output_bytes) == (16 * 32 * 4, 16 * 10 * 4)
    # the backward pass is two products a layer, but for the one by what is given to the stage
    assert one.step_macs == 2 * 64 * 32 + 3 * head
    assert two.step_macs == 2 * 32 * 32 + 3 * 32 * 10
    assert found.e2e_macs == found.inference_macs == 64 * 32 + 32 * 32 + 32 * 10
    assert found.training_speedup == found.e2e_macs / (64 * 32 + head)
    assert found.batch_size == 16
    assert found.precision == "fp32"


def test_a_cnn_by_hand():
    found = ll.cost(ll.split(cnn(), example=MAPS, cuts=["0"], head="0c1f"), MAPS)
    one, two = found.modules
    assert (one.block_macs, one.head_macs) == (2 * 9 * 4 * 64, 4 * 5)
    assert (two.block_macs, two.head_macs) == (4 * 9 * 8 * 16 + 8 * 5, 0)
    assert (one.parameters, two.parameters) == (2 * 9 * 4 + 4 + 4 * 5 + 5, 4 * 9 * 8 + 8 + 8 * 5 + 5)
    assert (one.output_bytes, two.output_bytes) == (4 * 4 * 64 * 4, 4 * 5 * 4)
    loss = 4 * 5 * 4 + 4 * 8 + 4
    assert two.activation_bytes == 4 * (4 * 64 + 8 * 16 + 8) * 4 + loss
    assert [stage.parameters for stage in found.stages] == [2 * 9 * 4 + 4, 4 * 9 * 8 + 8 + 8 * 5 + 5]
    assert [stage.features for stage in found.stages] == [4 * 64, 5]


def test_json_has_the_keys_of_a_built_network():
    built = ll.cost(ll.RunConfig(method="dgl", model="resnet8", depth=2)).to_json()
    split = ll.cost(ll.split(mlp(), example=VECTORS, depth=2), VECTORS).to_json()
    assert split.keys() == built.keys()
    assert split["nodes"][0].keys() == built["nodes"][0].keys()


@pytest.mark.parametrize(("kind", "batch"), [(ResNet, images()), (Transformer, sequences()), (UNet, images())])
@pytest.mark.parametrize("depth", [1, 2])
def test_stages_sum_to_what_torch_counts_of_the_model(kind, batch, depth):
    model = kind()
    found = ll.cost(ll.split(model, example=batch, depth=depth), batch)
    with FlopCounterMode(display=False) as counter:  # on the meta device, where attention is matrix products
        copy.deepcopy(model).to("meta")(batch[0].to("meta"))
    assert found.inference_macs == found.e2e_macs == counter.get_total_flops() // 2 // len(batch[0])
    if depth == 1:
        assert found.max_node_macs == found.e2e_macs
        assert found.training_speedup == found.inference_speedup == 1
        assert found.nodes[0].parameters == sum(p.numel() for p in model.parameters())


def test_attention_of_a_cpu_is_counted():
    query = torch.rand(2, 3, 5, 4, requires_grad=True)
    with ProductCounter() as counter:
        out = F.scaled_dot_product_attention(query, query, query)
        assert counter.macs == 2 * (2 * 3) * 5 * 5 * 4
        out.sum().backward()
    assert counter.macs == (2 + 5) * (2 * 3) * 5 * 5 * 4  # the backward pass makes the first product again


def measured(network, batch):
    """Activation bytes of every stage, of a real step of each alone."""
    network.train().run_apart()
    given = network.given_batch(batch)
    for _ in range(2):  # the first records what the model does
        features, found = batch[0], []
        for stage in network:
            step = LocalStep(stage, torch.optim.SGD(stage.own_parameters().values(), lr=0.1))
            with ActivationMeter(network.parameters()) as meter:
                features, _ = step(features, given)
            found.append(meter.peak_bytes)
    return found


@pytest.mark.parametrize(
    ("kind", "batch", "cuts"),
    [
        (mlp, VECTORS, ["1", "3"]),
        (cnn, MAPS, ["0"]),
        (ResNet, images(), ["layer1.0", "layer2.0"]),
        (Transformer, sequences(), ["layers.0", "layers.1"]),
    ],
)
def test_activations_are_those_of_a_real_step(kind, batch, cuts):
    network = ll.split(kind(), example=batch, cuts=cuts)
    found = [node.activation_bytes for node in ll.cost(network, batch).nodes]
    with ActivationMeter(network.parameters()) as meter:
        network.train().step(batch)
    assert max(found) == meter.peak_bytes
    assert found == measured(network, batch)


def test_a_stage_that_keeps_more_is_seen():
    class Wasteful(nn.ReLU):
        def forward(self, x):
            return super().forward(x.exp().log())

    network = ll.split(mlp(), example=VECTORS, cuts=["1"])
    before = ll.cost(network, VECTORS).modules
    network.model[1] = Wasteful()
    after = ll.cost(network, VECTORS).modules
    # the exponential is kept, once for both functions
    assert after[0].activation_bytes == before[0].activation_bytes + 16 * 32 * 4
    assert after[1] == before[1]


class Skip(nn.Module):
    """``first`` jumps over ``second``."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 24), nn.Linear(24, 8), nn.Linear(32, 10)

    def forward(self, x):
        x = self.first(x)
        return self.third(torch.cat([x, self.second(x).relu()], 1))


def test_what_crosses_beside_the_features_is_handed_on_too():
    network = ll.split(Skip(), example=VECTORS, cuts=["second"])
    few = VECTORS[0][:6], VECTORS[1][:6]
    found = ll.cost(network, few)
    assert found.modules[0].output_bytes == 6 * (8 + 24) * 4
    assert found.stages[0].features == 8 + 24
    unet = ll.split(UNet(), example=images(), cuts=["down2"])  # a skip that no submodule gives
    assert ll.cost(unet, images()).modules[0].output_bytes == 6 * (8 * 16 + 8 * 64) * 4


def test_frozen_weights_are_not_trained():
    model = mlp()
    model[0].weight.requires_grad_(False)
    whole, found = (
        ll.cost(ll.split(m, example=VECTORS, cuts=["1"]), VECTORS).nodes[0].parameters for m in (mlp(), model)
    )
    assert found == whole - 64 * 32


def test_width_groups_are_measured_against_the_model_without():
    batch = images()
    plain = ll.cost(ll.split(ResNet(), example=batch, depth=2), batch)
    network = ll.split(ResNet(), example=batch, depth=2, width=2)
    found = ll.cost(network, batch)
    assert [(node.module, node.group) for node in found.nodes] == [(1, 1), (1, 2), (2, 1)]
    assert found.reference == plain.stages
    assert found.e2e_macs == plain.e2e_macs > found.inference_macs
    assert ll.cost(network, batch, reference=network).inference_speedup == 1


def test_bf16_halves_features_and_a_16_bit_model_is_counted_so():
    network = ll.split(mlp(), example=VECTORS, cuts=["1"])
    single, half = ll.cost(network, VECTORS, precision="fp32"), ll.cost(network, VECTORS, precision="bf16")
    assert half.precision == "bf16"
    assert half.nodes[0].output_bytes * 2 == single.nodes[0].output_bytes
    assert half.nodes[0].macs == single.nodes[0].macs
    own = VECTORS[0].bfloat16(), VECTORS[1]
    assert ll.cost(ll.split(mlp().bfloat16(), example=own, cuts=["1"]), own).precision == "bf16"


class Looks(nn.Module):
    """It looks at values, so only real tensors go through it."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.norm(self.body(x))
        return self.head(F.dropout(x if x.mean() > -1e9 else -x, 0.5, self.training))


@pytest.mark.parametrize("kind", [mlp, Looks])
def test_the_network_itself_is_left_as_it_was(kind):
    network = ll.split(kind(), example=VECTORS, depth=2)
    network.step(VECTORS)
    before, generator = copy.deepcopy(network.training_state()), torch.get_rng_state()
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    found = ll.cost(network.eval(), VECTORS)
    assert not network.training
    assert found.inference_macs == sum(piece.macs for piece in network.pieces) // 16
    after = network.training_state()
    assert all(torch.equal(after["network"][name], value) for name, value in before["network"].items())
    assert str(after["optimizers"]) == str(before["optimizers"])
    assert torch.equal(torch.get_rng_state(), generator)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


KINDS = []


class Noted(nn.Linear):
    """It notes what kind of tensor goes through it."""

    def forward(self, x):
        KINDS.append(type(x))
        return super().forward(x)


def test_nothing_is_computed():
    network = ll.split(nn.Sequential(Noted(64, 32), nn.ReLU(), nn.Linear(32, 10)), example=VECTORS, cuts=["1"])
    KINDS.clear()
    ll.cost(network, VECTORS)
    assert [kind.__name__ for kind in KINDS] == ["FakeTensor"]


def test_a_model_without_data_is_counted_as_one_with():
    network = ll.split(mlp(), example=VECTORS, cuts=["1"])
    whole = ll.cost(network, VECTORS)
    empty = ll.cost(network.to("meta"), (VECTORS[0].to("meta"), VECTORS[1].to("meta")))
    assert dataclasses.asdict(empty) == dataclasses.asdict(whole)


def test_wrong_arguments_are_named():
    network = ll.split(mlp(), example=VECTORS, depth=2)
    config = ll.RunConfig(method="dgl", model="resnet8", depth=2)
    with pytest.raises(ConfigError, match="image is an ImageShape, the default; a network of ll.split needs"):
        ll.cost(network)
    with pytest.raises(ConfigError, match="batch_size: 4 is not valid; expected none"):
        ll.cost(network, VECTORS, batch_size=4)
    with pytest.raises(ConfigError, match="reference: 'LocalNetwork'"):
        ll.cost(network, VECTORS, reference=ll.build_network(config, ll.ImageShape(3, 8, 10)))
    with pytest.raises(LocalLearnError, match="cost: image is .*; expected ImageShape"):
        ll.cost(config, VECTORS)
    with pytest.raises(UsageError, match="batch: there are no labels"):
        ll.cost(network, VECTORS[0])
    with pytest.raises(UsageError, match="batch: a step on it fails: RuntimeError: mat1"):
        ll.cost(network, (torch.rand(16, 63), VECTORS[1]))
