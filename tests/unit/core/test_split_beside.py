"""What a model computes beside its prediction: idle heads with statistics, values without a gradient, latents."""

import copy

import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.core.local_step import walk

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(4)


def _conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class IdleHead(nn.Module):
    """An auxiliary classifier as FCN's: the prediction does not use it, and its batch norm runs."""

    def __init__(self, detached=False, kept=False):
        super().__init__()
        self.a, self.b, self.c = _conv(3, 8), _conv(8, 8), _conv(8, 8)
        self.fc, self.aux, self.detached, self.kept = nn.Linear(8, 4), _conv(8, 4), detached, kept

    def forward(self, x):
        a = self.a(x)
        c = self.c(self.b(a))
        if self.kept:
            return self.fc((c * (a.detach() > 0)).mean((2, 3)))
        out = self.fc(c.mean((2, 3)))
        return {"out": out, "aux": self.aux(a.detach() if self.detached else a)}


def _both(model, batch, **settings):
    """The network as it trains inline, and with stages that compute apart."""
    torch.manual_seed(0)
    whole = ll.split(model, example=batch, **settings)
    apart = copy.deepcopy(whole)
    apart.set_optimizers(lambda p: torch.optim.AdamW(p, lr=1e-3))
    apart.run_apart()
    return whole, apart


@pytest.mark.filterwarnings("ignore::locallearn.core.rehearsal.SplitWarning")
def test_statistics_of_an_idle_head_are_those_of_the_whole_model_in_stages_apart():
    batch = (IMAGES, CLASSES)
    whole, apart = _both(IdleHead(), batch, cuts=["a", "b"])
    assert [crossing.path for crossing in whole.pieces[1].crossing] == ["a"]
    for index in range(3):
        whole.walk(whole.steps, whole.given_batch(batch), index)
        walk(apart.steps, apart.given_batch(batch), index)
    found, wanted = apart.state_dict(), whole.state_dict()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    assert wanted["model.aux.1.running_mean"].abs().max() > 0


@pytest.mark.filterwarnings("ignore::locallearn.core.rehearsal.SplitWarning")
@pytest.mark.parametrize(
    ("model", "what"),
    [
        (IdleHead(detached=True), "aux.1.running_mean"),
        (IdleHead(kept=True), "what it gives"),
    ],
)
def test_values_without_a_gradient_that_a_stage_is_not_handed_are_refused_before_it_trains(model, what):
    batch = (IMAGES, CLASSES)
    whole, apart = _both(model, batch, cuts=["a", "b"])
    before = copy.deepcopy(apart.model_stages[2].weights())
    whole.walk(whole.steps, whole.given_batch(batch), 0)  # in one pass there is nothing to hand on
    with pytest.raises(ll.LocalLearnError, match=f"cuts: 'b' is not valid.*makes {what} of a value from before"):
        walk(apart.steps, apart.given_batch(batch), 0)
    after = apart.model_stages[2].weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Masks(nn.Module):
    """One submodule gives features and a mask of them, as ViLT's embeddings do; what it masks is small at first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = Masked(), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        a, mask = self.a(x)
        return self.fc(a.mean((2, 3)) + 1e-3 * self.b((a * mask).mean((2, 3))))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = _conv(3, 8)

    def forward(self, x):
        return self.conv(x), (x[:, :1] > 0).long()


def test_a_mask_that_changes_little_is_no_less_refused():
    batch = (IMAGES, CLASSES)
    _, apart = _both(Masks(), batch, cuts=["a"])
    with pytest.raises(ll.LocalLearnError, match="cuts: 'a' is not valid.*makes what it gives of a value"):
        walk(apart.steps, apart.given_batch(batch), 0)


class Positions(nn.Module):
    """Dropout of positions that every layer adds, as XLNet and Funnel have it; or of positions that none does."""

    def __init__(self, used=True):
        super().__init__()
        self.a, self.b, self.drop, self.used = _conv(3, 8), _conv(8, 8), nn.Dropout(0.5), used
        self.fc = nn.Sequential(nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x):
        positions = self.drop(torch.ones(8, 8))
        a = self.a(x)
        return self.fc(self.b(a + positions) + positions if self.used else self.b(a + positions[0, 0].clamp(0, 0)))


def test_what_is_drawn_before_a_cut_and_used_after_it_is_refused_before_stages_train_apart():
    batch = (IMAGES, CLASSES)
    whole, apart = _both(Positions(), batch, cuts=["a"])
    before = copy.deepcopy(apart.model_stages[1].weights())
    assert all(loss.total.isfinite() for loss in whole.walk(whole.steps, whole.given_batch(batch), 0))
    with pytest.raises(ll.LocalLearnError, match="cuts: 'a' is not valid.*makes .* of numbers drawn before the cut"):
        walk(apart.steps, apart.given_batch(batch), 0)
    after = apart.model_stages[1].weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_drawn_before_a_cut_and_not_used_after_it_trains_apart():
    batch = (IMAGES, CLASSES)
    whole, apart = _both(Positions(used=False), batch, cuts=["a"])
    for index in range(2):
        whole.walk(whole.steps, whole.given_batch(batch), index)
        walk(apart.steps, apart.given_batch(batch), index)
    found, wanted = apart.state_dict(), whole.state_dict()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_weights_that_are_not_a_number_are_not_taken_for_such_values():
    batch = (IMAGES, CLASSES)
    model = nn.Sequential(_conv(3, 8), _conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    whole, apart = _both(model, batch, cuts=["0"])
    for network in (whole, apart):
        nn.init.constant_(network.model[1][0].weight, torch.nan)
    losses = walk(apart.steps, apart.given_batch(batch), 0)
    assert losses[0].total.isfinite()
    assert losses[1].total.isnan()


class Unseeded(nn.Module):
    """Draws from a seed of its own making, as Reformer's layers do, so that no pass is like another."""

    def forward(self, x):
        return x * torch.rand(len(x), 1, 1, 1, generator=torch.Generator().manual_seed(torch.seed() % 2**60))


def test_what_differs_from_pass_to_pass_is_not_taken_for_such_values():
    batch = (IMAGES, CLASSES)
    model = nn.Sequential(
        _conv(3, 8), Unseeded(), _conv(8, 8), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    )
    _, apart = _both(model, batch, cuts=["0"])
    losses = walk(apart.steps, apart.given_batch(batch), 0)
    assert all(loss.total.isfinite() for loss in losses)
    assert apart.model[2][1].num_batches_tracked == 1


class Latents(nn.Module):
    """Attention of a few latent vectors to the tokens, as in a Perceiver."""

    def __init__(self, prefix=0):
        super().__init__()
        self.embed, self.latents = nn.Embedding(16, 8), nn.Parameter(torch.randn(4, 8) * 0.1)
        self.read, self.mix, self.fc = _Read(), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask):
        latents = self.read(self.latents.expand(len(input_ids), -1, -1), self.embed(input_ids), attention_mask)
        return self.fc(self.mix(latents).mean(1))


class _Read(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, latents, tokens, mask):
        return latents + self.attention(latents, tokens, tokens, key_padding_mask=mask == 0)[0]


class WithPatches(nn.Module):
    """Patches of an image after the tokens of a text, as in ViLT."""

    def __init__(self):
        super().__init__()
        self.embed, self.patch = nn.Embedding(16, 8), nn.Conv2d(3, 8, 2, 2)
        self.join, self.fc = _Join(), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask, pixel_values):
        patches = self.patch(pixel_values).flatten(2).transpose(1, 2)
        x = self.join(self.embed(input_ids), patches)
        return self.fc(x[:, 0])


class _Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, tokens, patches):
        return self.layer(torch.cat([tokens, patches], 1))


class Prompted(WithPatches):
    """Eight learnt vectors before the tokens, as prompt tuning has them."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Identity()
        self.prompt = nn.Parameter(torch.randn(1, 8, 8))

    def forward(self, input_ids, attention_mask):
        return self.fc(self.join(self.prompt.expand(len(input_ids), -1, -1), self.embed(input_ids))[:, 0])


MASK = torch.ones(4, 6, dtype=torch.long)
MASK[:, 3:] = 0
TEXT = {"input_ids": torch.arange(24).view(4, 6) % 16, "attention_mask": MASK, "labels": CLASSES}


@pytest.mark.parametrize(
    ("model", "cut", "more", "place", "seen"),
    [
        (Latents(), "read", {}, "none", [1] * 4),
        (WithPatches(), "join", {"pixel_values": IMAGES}, "first", [1, 1, 1, 0, 0, 0] + [1] * 16),
        (Prompted(), "join", {}, "last", [1] * 8 + [1, 1, 1, 0, 0, 0]),
    ],
)
def test_a_mask_is_of_the_features_that_are_tokens(model, cut, more, place, seen):
    network = ll.split(model, cuts=[cut], example=TEXT | more)
    piece = network.pieces[0]
    assert piece.mask_place == place
    features = torch.randn(4, len(seen), 8)
    mean = network.given_batch(TEXT | more).seen(features, "mean", piece.mask_place)
    kept = features[:, torch.tensor(seen, dtype=torch.bool)].mean(1)
    torch.testing.assert_close(mean, nn.functional.layer_norm(kept, (8,)))


def test_a_model_without_a_legal_cut_says_why():
    class Choices(nn.Module):
        """Several rows for every example, as models of multiple choice have them."""

        def __init__(self):
            super().__init__()
            self.layers, self.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 1)

        def forward(self, x):
            return self.fc(self.layers(x.flatten(0, 1))).view(len(x), -1)

    with pytest.raises(
        ll.LocalLearnError, match=r"depth: 2 .*no legal cut \(a cut after layers.* would need .*12 x 8"
    ):
        ll.split(Choices(), depth=2, example=(torch.rand(4, 3, 8), torch.arange(4) % 3))
