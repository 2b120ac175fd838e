"""Copies of blocks that are given masks and positions, and adapters of tokens, against plain code."""

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.errors import ConfigError

WORDS, LENGTH, WIDTH = 11, 6, 8


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Layer(nn.Module):
    """A block that attends where a mask lets it, and is told where its tokens are."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, _cache, *, mask, places):
        query, key, value = (self.mix(self.norm(x)) + places.repeat(1, 3)).chunk(3, -1)
        scores = query @ key.mT / WIDTH**0.5
        return x + self.out(torch.softmax(scores + mask, -1) @ value)


class Words(nn.Module):
    """A language model that makes mask and positions once, for all of its blocks."""

    def __init__(self, blind=True):
        super().__init__()
        self.blind = blind
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.last = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        ahead = torch.full((ids.shape[1], ids.shape[1]), -torch.inf if self.blind else 0.0).triu(1)
        places = torch.arange(ids.shape[1])[:, None] / 10 + torch.zeros(1, WIDTH)
        x, cache = self.embed(ids), object()
        for layer in self.layers:
            x = layer(x, cache, mask=ahead, places=places)
        return self.last(x)


def network(head="auglocal", blind=True, **changes):
    torch.manual_seed(0)
    ids = torch.randint(WORDS, (4, LENGTH))
    chosen = {"cuts": ["layers.0", "layers.1"], "objective": "next-token", "optimizer": sgd, **changes}
    split = ll.split(Words(blind), example=(ids, ids), head=head, **chosen)
    return split, (ids, ids)


def loss_of(head, x, ids):
    """The plain loss of a head's last part on what it is given."""
    scores = F.linear(F.layer_norm(x, [WIDTH], head.norm.weight, head.norm.bias), head.linears[0].weight)
    return F.cross_entropy((scores + head.linears[0].bias)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def seen_by_layers(ids):
    length = ids.shape[1]
    places = torch.arange(length)[:, None] / 10 + torch.zeros(1, WIDTH)
    return {"_cache": None, "mask": torch.full((length, length), -torch.inf).triu(1), "places": places}


def losses(split, ids):
    """Losses of both heads by a loop over plain layers with the copies' weights."""
    model = cast(Any, split.model)
    given, x, found = seen_by_layers(ids), model.embed(ids), []
    for layer, stage in zip(model.layers, list(split)[:2], strict=False):
        x = layer(x, **given).detach()
        head = stage.objective.head
        if hasattr(head, "bias"):
            y = head.bias.block(x, **given) + head.follower.block(x, **given)
            found.append(loss_of(head.head, y, ids))
        else:
            y = x
            for copied in list(head)[:-1]:
                y = copied.block(y, **given)
            found.append(loss_of(head[-1], y, ids))
    return found


@pytest.mark.parametrize("head", ["auglocal", "momentum"])
def test_copies_see_what_the_blocks_see_in_the_same_pass(head):
    settings = ObjectiveConfig(head=head, head_options={"of": "0c1f"} if head == "momentum" else {})
    split, batch = network(head, settings=settings)
    expected = losses(copy.deepcopy(split), batch[0])
    found = split.step(batch)
    for k, loss in enumerate(expected, 1):
        torch.testing.assert_close(found[f"loss/{k}"], loss.detach())
    longer = torch.randint(WORDS, (3, LENGTH + 3))  # whose mask is another one
    for head_now in (stage.objective for stage in list(split)[:2]):
        head_now.eval()
    expected = losses(copy.deepcopy(split), longer)
    with torch.no_grad():
        looked = [loss for _, _, loss in split.look(split.given_batch((longer, longer)))]
    for loss, value in zip(looked, expected, strict=False):
        torch.testing.assert_close(loss[0], value.detach())


@pytest.mark.parametrize("blind", [True, False])
@pytest.mark.parametrize("head", ["auglocal", "momentum"])
def test_no_head_sees_ahead_and_with_another_mask_it_would(head, blind):
    split, (ids, _) = network(head, blind)
    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % WORDS

    def first_tokens(given):
        seen = []
        stage = cast(Any, next(iter(split)))
        hook = stage.objective.head.register_forward_hook(lambda _m, _a, out: seen.append(out[:, :-1]))
        with torch.no_grad():
            list(split.look(split.given_batch((given, given))))
        hook.remove()
        return seen[0]

    assert torch.equal(first_tokens(ids), first_tokens(later)) == blind


@pytest.mark.parametrize("head", ["auglocal", "momentum"])
def test_scores_are_as_well_computed_in_parts_and_at_some_tokens(head):
    whole, batch = network(head)
    parts, _ = network(head, settings=ObjectiveConfig(loss="next-token", head=head, options={"chunk": 30}))
    torch.testing.assert_close(whole.step(batch), parts.step(batch), rtol=1e-4, atol=1e-5)


def test_copies_are_counted_as_the_blocks_are():
    split, batch = network("auglocal", settings=ObjectiveConfig(head="auglocal", head_options={"layers": 1}))
    one, _, last = ll.cost(split, batch).modules
    block = LENGTH * (4 * WIDTH * WIDTH + 2 * LENGTH * WIDTH)
    assert one.block_macs == block
    assert one.head_macs == block + LENGTH * WIDTH * WORDS
    assert last.block_macs == 2 * block + LENGTH * WIDTH * WORDS
    follows, _ = network("momentum")
    reads = {(each.reader, each.owner): each.n_bytes for each in ll.cost(follows, batch).reads}
    assert set(reads) == {(1, 2), (2, 3)}


def test_what_a_language_model_has_no_use_for_is_one_line():
    for changes, expected in (
        ({"head": "mlp-sr"}, "objective.head: 'mlp-sr' is not valid; expected 0c1f or another <n>c<m>f, shared"),
        ({"head": None, "objective": "predsim"}, "objective: 'predsim' is not valid; expected another loss"),
        (
            {"head": "0c1f", "objective": "transport"},
            "settings.options.of: 'cross-entropy' is not valid; expected next",
        ),
        (
            {"head": "auglocal", "objective": "rebuilt-input"},
            "head: 'auglocal' is not valid; expected none with objective rebuilt-input",
        ),
    ):
        with pytest.raises(ConfigError, match=expected):
            network(**changes)


def test_transport_of_tokens_is_their_loss_and_how_far_they_move():
    settings = ObjectiveConfig(loss="transport", options={"of": "next-token"})
    moved, batch = network("0c1f", objective="transport", settings=settings)
    plain, _ = network("0c1f")
    model = cast(Any, plain.model)
    x = model.embed(batch[0])
    far = (model.layers[0](x, **seen_by_layers(batch[0])) - x).square().mean() / 2
    found = plain.step(batch)["loss/1"]
    torch.testing.assert_close(moved.step(batch)["loss/1"], found + far.detach())


@pytest.mark.parametrize("context", ["image", "before"])
def test_context_of_tokens_is_that_of_a_slow_loop_and_no_token_sees_a_later_one(context):
    split, (ids, _) = network("0c1f", context=context)
    model, given = cast(Any, split.model), seen_by_layers(ids)
    contexts, x, expected = [ids], model.embed(ids), []
    for place, stage in zip(model.layers[:2], list(split)[:2], strict=True):
        x = place.block(x, **given).detach()
        expected.append(loss_of(stage.objective.head, x, ids))
        embedding, linear, norm, _ = place.adapter if len(place.adapter) == 4 else (None, *place.adapter)
        seen = contexts[0 if context == "image" else -1]
        seen = seen if embedding is None else F.embedding(seen, embedding.weight)
        x = x + F.layer_norm(seen @ linear.weight.T, [WIDTH], norm.weight, norm.bias).relu()
        contexts.append(x.detach())
    found = split.step((ids, ids))
    for k, loss in enumerate(expected, 1):
        torch.testing.assert_close(found[f"loss/{k}"], loss.detach())
    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % WORDS
    assert torch.equal(split(ids)[:, :-1], split(later)[:, :-1])
    plain, batch = network("0c1f")
    assert not torch.allclose(plain.step(batch)["loss/2"], found["loss/2"])


@pytest.mark.parametrize("context", ["image", "before"])
def test_a_vision_transformer_of_ones_own_has_context_at_the_places_of_its_patches(context):
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    model = nn.Sequential(
        Patches(), *(nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True) for _ in range(3)), First()
    )
    split = ll.split(model, example=(images, labels), cuts=["1", "2"], context=context, optimizer=sgd)
    adapter = cast(Any, split.model)[1].adapter
    given = adapter(images)
    assert given.shape == (4, 5, WIDTH)
    assert torch.equal(given[:, 0], torch.zeros(4, WIDTH))
    maps = adapter[:-1](images)
    torch.testing.assert_close(given[:, 2], maps[:, :, :4, 4:].mean((2, 3)))
    weights = {}
    for runtime in ("inline", "threads"):
        trained = copy.deepcopy(split)
        ll.Trainer(trained, runtime=runtime, threads=1, optimizer=sgd).fit([(images, labels)] * 2)
        weights[runtime] = trained.state_dict()
    assert all(torch.equal(value, weights["threads"][name]) for name, value in weights["inline"].items())


class Patches(nn.Module):
    """A class token and four patches."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).mT], 1)


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.linear(x[:, 0])
