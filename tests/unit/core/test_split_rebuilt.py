"""LoPT's reconstruction in users' own models, against a slow loop; modules at once train the same."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.errors import ConfigError

VOCABULARY = 11


class Language(nn.Module):
    """Embedding, two layers that keep their form, and scores of every token."""

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(VOCABULARY, 6), nn.Linear(6, VOCABULARY)
        self.first, self.second = (nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))

    def forward(self, ids):
        return self.unembed(self.second(self.first(self.embed(ids))))


def tokens():
    ids = torch.arange(12).view(3, 4) % VOCABULARY
    return Language(), (ids, (ids + 1) % VOCABULARY), ["first", "second"]


def maps():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    return model, (torch.rand(6, 3, 8, 8), torch.arange(6) % 5), ["0", "1"]


def split(case, **changes):
    torch.manual_seed(0)
    model, example, cuts = case()
    settings = ObjectiveConfig(options={"bottleneck": 2}, loss="rebuilt-input")
    network = ll.split(model, example=example, cuts=cuts, objective="rebuilt-input", settings=settings, **changes)
    return network, example


def slow_error(decoder, features, inputs, enlarge):
    """The mean over places of the squared error, place by place."""
    norm, narrow, _, wide = decoder.layers
    total = 0.0
    for b, *place in torch.cartesian_prod(*(torch.arange(n) for n in (len(inputs), *enlarge))).tolist():
        if len(enlarge) == 1:
            seen, target = features[b, place[0]], inputs[b, place[0]]
        else:
            i, j = (at * size // full for at, size, full in zip(place, features.shape[2:], enlarge, strict=True))
            seen, target = features[b, :, i, j], inputs[b, :, place[0], place[1]]
        total = total + (wide(F.gelu(narrow(norm(seen)))) - target).square().sum()
    return total / inputs.numel()


@pytest.mark.parametrize("case", [tokens, maps])
def test_stages_rebuild_what_they_are_given(case):
    network, example = split(case)
    before = split(case)[0]
    found, model = network.step(example), cast(Any, before.model)
    heads = [each.objective.decoder for each in list(before)[:2]]
    if case is tokens:
        given = model.embed(example[0]).detach()
        features = model.first(given)
        stages = (given, features, (4,)), (features, model.second(features), (4,))
    else:
        features = model[0](example[0])
        stages = (example[0], features, (8, 8)), (features, model[1](features), (4, 4))
    for k, (decoder, (inputs, made, places)) in enumerate(zip(heads, stages, strict=True), 1):
        expected = slow_error(decoder, made, inputs, places)
        torch.testing.assert_close(found[f"loss/{k}"], expected.detach())
    assert next(iter(network)).objective.source == ("embed" if case is tokens else "")


@pytest.mark.parametrize("case", [tokens, maps])
def test_modules_at_once_train_the_same(case):
    def trained(runtime):
        network, example = split(case)
        trainer = ll.Trainer(network, runtime=runtime, threads=1, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        trainer.fit([example] * 3)
        return network.state_dict()

    inline, threads, before = trained("inline"), trained("threads"), split(case)[0].state_dict()
    assert all(torch.equal(value, threads[name]) for name, value in inline.items())
    first = "model.first.0.weight" if case is tokens else "model.0.0.weight"
    assert not torch.equal(inline[first], before[first])


def test_an_input_of_another_form_is_refused_in_one_line():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), nn.Linear(6, 5))
    example = torch.rand(4, 3, 2, 2), torch.arange(4)
    text = r"objective.loss: 'rebuilt-input' is not valid; expected another loss, or cuts that keep positions"
    with pytest.raises(ConfigError, match=text):
        ll.split(model, example=example, cuts=["0", "1"], objective="rebuilt-input")
    with pytest.raises(ConfigError, match="tokens: 'mean' is not valid; expected all with rebuilt-input"):
        split(tokens, tokens="mean")
