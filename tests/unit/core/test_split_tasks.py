"""What a split finds out about a model and its labels, and decides."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import locallearn as ll
from locallearn.core.rehearsal import SplitWarning


def _mlp(outputs=10, layers=2):
    body = [layer for _ in range(layers) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(*body, nn.Linear(8, outputs))


X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
LABELS = {
    "classes": (torch.arange(4), 10, "cross-entropy", F.cross_entropy),
    "classes in a column": (torch.arange(4)[:, None], 10, "cross-entropy", lambda s, y: F.cross_entropy(s, y[:, 0])),
    "small integers": (
        torch.arange(4, dtype=torch.uint8),
        10,
        "cross-entropy",
        lambda s, y: F.cross_entropy(s, y.long()),
    ),
    "mixup": (torch.rand(4, 10).softmax(1), 10, "cross-entropy", F.cross_entropy),
    "several": (
        torch.eye(10)[:4] + torch.eye(10)[4:8],
        10,
        "binary-cross-entropy",
        F.binary_cross_entropy_with_logits,
    ),
    "regression": (torch.rand(4, 3), 3, "mean-squared-error", F.mse_loss),
    "one number": (torch.rand(4), 1, "mean-squared-error", lambda s, y: F.mse_loss(s[:, 0], y)),
    "yes or no": (
        torch.tensor([0, 1, 1, 0]),
        1,
        "binary-cross-entropy",
        lambda s, y: F.binary_cross_entropy_with_logits(s[:, 0], y.float()),
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_choose_the_loss(name):
    labels, outputs, kind, by_hand = LABELS[name]
    model = _mlp(outputs)
    network = ll.split(model, depth=2, example=(X, labels))
    assert network.task.loss.kind == kind
    metrics = network.step((X, labels))
    torch.testing.assert_close(metrics["loss"], by_hand(model(X), labels))
    assert metrics["loss/1"].isfinite()


def test_labels_that_do_not_fit_are_one_line_before_anything_is_trained():
    for labels, message in (
        (torch.arange(4) + 8, "label 11 is not one of the model's 10 classes"),
        (torch.rand(4, 7), "for labels \\(4, 7\\) float32 and scores \\(4, 10\\)"),
        ({"y": torch.arange(4)}, "for batches with labels in a dict"),
    ):
        with pytest.raises(ll.LocalLearnError, match=message):
            ll.split(_mlp(), depth=2, example=(X, labels))
    with pytest.raises(ll.LocalLearnError, match="NaN or infinity in them"):
        ll.split(_mlp(), depth=2, example=(X * float("nan"), torch.arange(4)))
    network = ll.split(_mlp(), depth=2, example=(X, torch.arange(4)))
    before = network.model[0].weight.clone()
    with pytest.raises(ll.LocalLearnError, match="label 12 is not one"):
        network.step((X, torch.tensor([0, 1, 2, 12])))
    assert torch.equal(network.model[0].weight, before)


def test_losses_of_the_users_own_take_any_labels_and_the_whole_batch():
    labels = {"y": torch.arange(4), "weight": torch.tensor([1.0, 0.0, 0.0, 0.0])}

    def loss(scores, labels, batch):
        assert batch[0] is not None
        return (F.cross_entropy(scores, labels["y"], reduction="none") * labels["weight"]).mean()

    model = _mlp()
    network = ll.split(model, depth=2, example=(X, labels), objective=loss)
    expected = F.cross_entropy(model(X)[:1], torch.tensor([0])) / 4
    torch.testing.assert_close(network.step((X, labels))["loss"], expected)


def test_losses_that_repeat_numbers_by_accident_are_refused():
    for loss in (F.mse_loss, lambda s, y: ((s - y) ** 2).mean()):
        with pytest.raises(ll.LocalLearnError, match="which repeats every example's numbers"):
            ll.split(_mlp(1), depth=2, example=(X, torch.rand(4)), objective=loss)
    with pytest.raises(ll.LocalLearnError, match="a loss gives one number"):
        ll.split(_mlp(1), depth=2, example=(X, torch.rand(4, 1)), objective=lambda s, y: s - y)


def test_a_registered_objective_is_every_stages():
    class Regress(ll.Objective):
        def __init__(self, width):
            super().__init__()
            self.head = nn.Linear(width, 1)

        def forward(self, features, batch):
            return ll.LocalLoss(F.mse_loss(self.head(features), batch.labels)[None], {}, None)

    ll.objectives.register("split-regress")(lambda given: Regress(given.shape[0]))
    model, y = _mlp(1), torch.rand(4, 1)
    network = ll.split(model, depth=2, objective="split-regress", example=(X, y))
    torch.testing.assert_close(network.step((X, y))["loss"], F.mse_loss(model(X), y))


def test_a_criterion_with_weights_is_every_stages_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, scores, labels):
            return F.cross_entropy(scores * self.scale, labels)

    criterion = Scaled()
    network = ll.split(_mlp(), depth=2, objective=criterion, example=(X, torch.arange(4)))
    names = [name for name, _ in network.named_parameters() if name.endswith("scale")]
    assert len(names) == 2
    network.step((X, torch.arange(4)))
    assert criterion.scale == 1
    assert all(network.get_parameter(name) != 1 for name in names)


class _Nhwc(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_channels_last_features_learn_what_channels_first_ones_do():
    losses = []
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)
    for last in (nn.Identity(), _Nhwc()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 12, 4, 4), last), nn.Flatten(), nn.Linear(48, 10))
        network = ll.split(model, cuts=["0"], head="0c1f", example=(x, y))
        assert network.pieces[0].shape == (12, 2, 2)
        losses.append(network.step((x, y))["loss/1"])
    assert losses[0] == losses[1]


def test_volumes_and_the_users_word_for_axes():
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, 1, 1),
        nn.ReLU(),
        nn.Conv3d(4, 4, 3, 1, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    batch = (torch.rand(4, 1, 4, 4, 4), torch.arange(4))
    network = ll.split(model, cuts=["1"], example=batch)
    assert network.pieces[0].shape == (4, 16, 4)
    assert network.step(batch)["loss/1"].isfinite()
    flat = nn.Sequential(nn.Linear(6, 6), nn.Flatten(), nn.Linear(24, 10))
    y = torch.arange(4)
    assert ll.split(flat, cuts=["0"], layout="BCT", example=(torch.rand(4, 4, 6), y)).pieces[0].shape == (4, 1, 6)
    with pytest.raises(ll.LocalLearnError, match="layout: 'BTT' is not valid; expected one letter an axis"):
        ll.split(flat, cuts=["0"], layout="BTT", example=(torch.rand(4, 4, 6), y))


@pytest.mark.parametrize("objective", [None, F.cross_entropy])
def test_pixels_are_learnt_at_their_places(objective):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Upsample(scale_factor=2),
    )
    x, y = torch.rand(2, 3, 8, 12), torch.randint(4, (2, 8, 12))
    network = ll.split(
        model, cuts=["1"], objective=objective, example=(x, y), optimizer=lambda p: torch.optim.Adam(p, 0.05)
    )
    features = model[:2](x)
    scores = F.interpolate(network.objectives[0].head.head.layers(features), (8, 12), mode="bilinear")
    first = network.step((x, y))
    torch.testing.assert_close(first["loss/1"], F.cross_entropy(scores, y), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first["loss"], F.cross_entropy(model(x), y))
    for _ in range(30):
        last = network.step((x, y))
    assert last["loss/1"] < first["loss/1"] - 0.1


@pytest.mark.parametrize("reentrant", [False, True])
def test_cuts_inside_checkpointed_segments_train_as_without(reentrant):
    class Net(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.checkpointed = checkpointed
            self.body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))
            self.fc = nn.Linear(8, 10)

        def forward(self, x):
            if self.checkpointed:
                return self.fc(checkpoint_sequential(self.body, 2, x, use_reentrant=reentrant))
            return self.fc(self.body(x))

    ends = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        network = ll.split(Net(checkpointed), cuts=["body.0", "body.2"], example=(X, torch.arange(4)))
        for _ in range(3):
            network.step((X, torch.arange(4)))
        ends.append(network.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


def test_freezing_and_unfreezing_after_the_split():
    model = _mlp()
    model[0].requires_grad_(False)
    network = ll.split(model, cuts=["3"], example=(X, torch.arange(4)))
    whole = network.model
    whole[0].requires_grad_(True)
    whole[4].requires_grad_(False)
    before = {name: p.clone() for name, p in whole.named_parameters()}
    network.step((X, torch.arange(4)))
    moved = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_wrapped_and_compiled_models_are_refused():
    model = _mlp()
    with pytest.raises(ll.LocalLearnError, match="is compiled"):
        ll.split(torch.compile(model), depth=2, example=(X, torch.arange(4)))
    with pytest.raises(ll.LocalLearnError, match="in DataParallel"):
        ll.split(nn.DataParallel(model), depth=2, example=(X, torch.arange(4)))
    network = ll.split(model, depth=2, example=(X, torch.arange(4)))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ll.LocalLearnError, match="DistributedDataParallel does not average"):
            nn.parallel.DistributedDataParallel(network)
        with pytest.raises(ll.LocalLearnError, match="the model is in DistributedDataParallel"):
            ll.split(nn.parallel.DistributedDataParallel(model), depth=2, example=(X, torch.arange(4)))
    finally:
        dist.destroy_process_group()


def test_what_nothing_trains_and_uneven_stages_are_warned_of():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc, self.unused = nn.Linear(8, 8), nn.Linear(8, 10), nn.Linear(8, 4)
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)) for _ in range(3)
            )

        def forward(self, x):
            self.kept = self.unused(x)
            x = self.stem(x)
            for layer in self.layers:
                x = x + layer(x)
            return self.fc(x)

    with pytest.warns(SplitWarning) as caught:
        ll.split(Extra(), cuts=["stem"], example=(X, torch.arange(4)))
    said = " ".join(str(each.message) for each in caught)
    assert "nothing trains unused.bias, unused.weight" in said
    assert "of the multiply-accumulates" in said


def test_heads_are_functions_and_modules_too():
    x, y = X, torch.arange(4)
    seen = []

    def make(given):
        seen.append((given.shape, given.outputs))
        return nn.Linear(given.shape[-1], given.outputs)

    network = ll.split(_mlp(), cuts=["1"], head=make, example=(x, y))
    assert seen == [((8,), 10)]
    assert network.step((x, y))["loss/1"].isfinite()
    own = nn.Linear(8, 10)
    network = ll.split(_mlp(), cuts=["1", "3"], head=own, example=(x, y))
    heads = [each.head for each in network.objectives]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight is not heads[1].weight
    with pytest.raises(ll.LocalLearnError, match="head is 3; expected str or Module or a function"):
        ll.split(_mlp(), cuts=["1"], head=3, example=(x, y))


def test_padding_has_no_part_in_what_heads_see():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer, self.fc = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, input_ids, attention_mask):
            x = self.layer(self.embed(input_ids)) * attention_mask[..., None]
            return self.fc(x.sum(1))

    losses = []
    for filler in (0, 7):
        torch.manual_seed(0)
        ids = torch.arange(24).view(4, 6) % 16
        mask = torch.ones(4, 6, dtype=torch.long)
        mask[:, 3:] = 0
        ids = ids.masked_fill(mask == 0, filler)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(4)}
        losses.append(ll.split(Encoder(), cuts=["embed"], example=batch).step(batch)["loss/1"])
    assert losses[0] == losses[1]
