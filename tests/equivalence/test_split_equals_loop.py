"""Split models train as a loop written by hand, with detach and nothing of the package, does: bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F

import locallearn as ll
from locallearn.core.local_step import LocalStep
from user_models import ResNet, Transformer, UNet, images, sequences


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _resnet_stages(model):
    """The blocks of the model one after the other, as its forward pass has them."""
    return [
        lambda x: model.layer1[0](F.relu(model.bn1(model.conv1(x)))),
        lambda x: model.layer1[1](x),
        lambda x: model.layer2[0](x),
        lambda x: model.fc(model.layer2[1](x).mean((2, 3))),
    ]


def _transformer_stages(model):
    def stem(x):
        return torch.cat([model.token.expand(len(x), -1, -1), model.embed(x)], 1) + model.position

    return [
        lambda x: model.layers[0](stem(x))[0],
        lambda x: model.layers[1](x).hidden,
        lambda x: model.head(model.layers[2](x)[0][:, 0]),
    ]


CASES = {
    "resnet": (ResNet, images, ["layer1.0", "layer1.1", "layer2.0"], _resnet_stages),
    "transformer": (Transformer, sequences, ["layers.0", "layers.1"], _transformer_stages),
}


def _by_hand(network, make_stages, batches):
    """Train copies of the network's model and heads in a loop."""
    model, heads = copy.deepcopy(network.model), [copy.deepcopy(each.head) for each in network.objectives]
    stages = make_stages(model)
    optimizers = [sgd([model.get_parameter(name) for name in part.parameters]) for part in network.pieces]
    for optimizer, head in zip(optimizers, heads, strict=False):
        optimizer.add_param_group({"params": list(head.parameters())})
    losses = []
    for x, y in batches:
        for k, stage in enumerate(stages):
            out = stage(x.detach())
            if k < len(heads):  # objectives take the mean over the batch after the losses, and so must this
                seen = F.layer_norm(out.mean(1), out.shape[-1:]) if out.dim() == 3 else out
                loss = F.cross_entropy(heads[k](seen)[0], y, reduction="none").mean()
            else:
                loss = F.cross_entropy(out, y)
            optimizers[k].zero_grad()
            loss.backward()
            optimizers[k].step()
            x = out
            losses.append(loss.item())
    return model, heads, losses


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("break_it", [False, True])
def test_k_modules_equal_a_loop_with_detach(name, break_it):
    torch.manual_seed(0)
    kind, data, cuts, stages = CASES[name]
    network = ll.split(kind(), example=data(), cuts=cuts, optimizer=sgd)
    batches = [data(seed=seed) for seed in range(3)]
    model, heads, losses = _by_hand(network, stages, batches)
    if break_it:  # a halved gradient
        next(iter(network.module_parameters(1).values())).register_hook(lambda gradient: gradient / 2)
    found = [network.step(batch) for batch in batches]
    equal = (
        _same(network.merge(), model)
        and all(_same(a.head, b) for a, b in zip(network.objectives, heads, strict=True))
        and [m[f"loss/{k}"].item() for m in found for k in range(1, network.depth + 1)] == losses
    )
    assert equal is not break_it


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_module_is_plain_backpropagation(name, precision):
    torch.manual_seed(0)
    kind, data, _, _ = CASES[name]
    model = kind()
    network = ll.split(model, example=data(), depth=1, optimizer=sgd)
    optimizer = sgd(model.parameters())
    for seed in range(3):
        x, y = data(seed=seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            network.step((x, y))
            output = model(x)
            loss = F.cross_entropy((output["logits"] if name == "transformer" else output).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert _same(network.merge(), model)


@pytest.mark.parametrize("break_it", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_gradient_passes_a_cut(name, break_it, monkeypatch):
    """Each module's loss alone, differentiated for every parameter of the network, reaches its own only."""
    torch.manual_seed(0)
    kind, data, cuts, _ = CASES[name]
    network = ll.split(kind(), example=data(), cuts=cuts)
    if break_it:
        monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    reached = {}

    class Looking(LocalStep):
        def backward(self, loss):
            grads = torch.autograd.grad(
                loss.total.sum(), list(network.parameters()), retain_graph=True, allow_unused=True
            )
            named = zip(network.named_parameters(), grads, strict=True)
            reached[int(self.module.name)] = {name for (name, _), grad in named if grad is not None}

    network.steps = [Looking(step.module, step.optimizer, None) for step in network.steps]
    network.step(data())
    monkeypatch.undo()
    own = all(reached[k] == set(network.module_parameters(k)) for k in range(1, network.depth + 1))
    assert own is not break_it


@pytest.mark.parametrize("break_it", [False, True])
def test_a_skip_that_crosses_a_cut_leaks_no_gradient(break_it):
    """A U-Net cut between a skip's two ends equals a loop in which the skip is detached there."""
    torch.manual_seed(0)
    network = ll.split(UNet(), example=images(), cuts=["down2"], optimizer=sgd)
    model, head = copy.deepcopy(network.model), copy.deepcopy(network.objectives[0].head)
    optimizers = [sgd([model.get_parameter(name) for name in part.parameters]) for part in network.pieces]
    optimizers[0].add_param_group({"params": list(head.parameters())})
    for seed in range(3):
        x, y = images(seed=seed)
        network.step((x, y))
        skip = F.relu(model.down1(F.relu(model.stem(x))))
        h = model.down2(skip)
        optimizers[0].zero_grad()
        F.cross_entropy(head(h)[0], y, reduction="none").mean().backward(retain_graph=break_it)
        if not break_it:
            optimizers[0].step()
            skip = skip.detach()
        up = model.up1(F.relu(h.detach()))
        optimizers[1].zero_grad()
        F.cross_entropy(model.fc(F.relu(model.merge(torch.cat([up, skip], 1))).mean((2, 3))), y).backward()
        optimizers[1].step()
        if break_it:
            optimizers[0].step()
    assert _same(network.merge(), model) is not break_it


def test_graphs_are_freed_before_the_next_module_starts():
    """What autograd keeps peaks at the largest module and not at the sum."""
    from locallearn.costs.memory import ActivationMeter

    def peak(**kwargs):
        network = ll.split(ResNet(), example=images(), head="0c1f", **kwargs)
        with ActivationMeter(network.parameters()) as meter:
            network.step(images())
        return meter.peak_bytes

    assert peak(cuts=["layer1.0", "layer1.1", "layer2.0"]) < 0.6 * peak(depth=1)
