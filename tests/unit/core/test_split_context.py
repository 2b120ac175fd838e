"""Context in users' own models: what stages see, against a loop; other runtimes, the merged model, and refusals."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
import user_models
from locallearn.errors import ConfigError


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def network(context, **changes):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU())
    last = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    example = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    settings = {"cuts": ["0", "1"], "head": "0c1f", "optimizer": sgd, "context": context, **changes}
    return ll.split(nn.Sequential(first, second, last), example=example, **settings).train(), example


def slow_losses(split, example):
    """Losses and gradients of the three stages, each from a pass through its own layers."""
    images, labels = example
    one, two, last = cast(Any, split.model)
    heads = [stage.objective.head for stage in list(split)[:2]]
    contexts = [images]

    def seen(place, features):
        context = images if split.model[0].context == split.model[1].context else contexts[-1]
        return features + place.adapter(context)

    losses, features = [], one.block(images)
    losses.append(F.cross_entropy(heads[0](features)[0], labels))
    given = seen(one, features.detach())
    features = two.block(given)
    losses.append(F.cross_entropy(heads[1](features)[0], labels))
    contexts.append(given.detach())
    losses.append(F.cross_entropy(last(seen(two, features.detach())), labels))
    gradients = {}
    for loss in losses:
        split.zero_grad()
        loss.backward()
        gradients |= {name: p.grad.clone() for name, p in split.named_parameters() if p.grad is not None}
    return losses, gradients


@pytest.mark.parametrize("context", ["image", "before"])
def test_a_step_is_that_of_a_slow_loop(context):
    expected, gradients = slow_losses(*network(context))
    split, example = network(context)
    found = split.step(example)
    for k, loss in enumerate(expected, 1):
        torch.testing.assert_close(found[f"loss/{k}"], loss.detach())
    for name, parameter in split.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    plain, _ = network("none")
    assert not torch.allclose(plain.step(example)["loss/3"], found["loss/3"])


@pytest.mark.parametrize("context", ["image", "before"])
def test_modules_at_once_train_the_same_and_the_merged_model_has_the_adapters(context):
    trained = {}
    for runtime in ("inline", "threads"):
        split, example = network(context)
        ll.Trainer(split, runtime=runtime, threads=1, optimizer=sgd).fit([example] * 3)
        trained[runtime] = split
    weights = trained["threads"].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in trained["inline"].state_dict().items())
    merged = trained["inline"].merge().eval()
    torch.testing.assert_close(merged(example[0]), trained["inline"].eval()(example[0]))
    other = merged(example[0].flip(0))
    assert not torch.allclose(other, merged(example[0]))


def test_adapters_are_counted_and_trained_by_the_stage_that_they_begin():
    split, example = network("image")
    names = split.module_parameters(2)
    assert any("0.adapter.0.weight" in name for name in names)
    assert not any("adapter" in name for name in split.module_parameters(1))
    plain, with_image = ll.cost(network("none")[0], example), ll.cost(split, example)
    adapter = (9 * 3 * 12 + 9 * 12 * 4) * 64
    assert with_image.modules[1].block_macs == plain.modules[1].block_macs + adapter
    assert with_image.modules[0].block_macs == plain.modules[0].block_macs
    _, _, last = ll.cost(network("before")[0], example).modules
    assert last.block_macs == plain.modules[2].block_macs + 4 * 8 * 64  # at the size of what the second was given


def test_context_goes_on_where_a_shortcut_hands_on_the_same_tensor():
    """A ResNet's empty shortcut gives the tensor that the context is, after the submodule that made it."""
    weights, batch = {}, user_models.images()
    for runtime in ("inline", "threads"):
        torch.manual_seed(0)
        split = ll.split(user_models.ResNet(), example=batch, depth=3, context="before", optimizer=sgd)
        ll.Trainer(split, runtime=runtime, threads=1, optimizer=sgd).fit([batch] * 2)
        weights[runtime] = split.state_dict()
    assert all(torch.equal(value, weights["threads"][name]) for name, value in weights["inline"].items())


def test_a_resnet_of_ones_own_learns_with_context_and_overlap():
    torch.manual_seed(0)
    batch = user_models.images()
    split = ll.split(user_models.ResNet(), example=batch, depth=3, context="image", overlap=1, optimizer=sgd)
    found = [split.step(batch)["loss/3"] for _ in range(6)]
    assert found[-1] < found[0]


def test_what_has_no_context_is_one_line():
    with pytest.raises(ConfigError, match="context: 'images' is not valid; expected one of none, image, before"):
        network("images")
    with pytest.raises(ConfigError, match="context: 'image' is not valid; expected none with depth 1"):
        network("image", cuts=None, depth=1)
    with pytest.raises(ConfigError, match="width: 2 is not valid; expected 1 with context image"):
        network("image", width=2)
    vectors = torch.randn(4, 6), torch.arange(4)
    upwards = nn.Sequential(
        nn.Linear(6, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)
    )
    with pytest.raises(
        ConfigError, match=r"expected none where a module is given \(3, 2, 2\) and its context \(6,\)"
    ):
        ll.split(upwards, example=vectors, cuts=["2"], context="image")
