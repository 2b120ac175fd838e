"""``ll.Trainer``: what users bring trains as their own loops do, and has all that a run has."""

import json
import os
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import locallearn as ll
from locallearn.cli.main import main
from locallearn.errors import ConfigError, DivergedError, UsageError
from user_models import ResNet, images

DATA = [images(seed=seed) for seed in range(5)]
CHECK = [images(seed=seed) for seed in (10, 11)]


class Dropped(nn.Module):
    """A network that draws in every stage, by a layer and by a function."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Dropout(0.3))
        self.b = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.c = nn.Linear(16, 5)

    def forward(self, x):
        x = F.dropout(self.a(x), 0.2, self.training)
        return self.c(F.dropout(self.b(x), 0.2, self.training))


def network(kind=Dropped, depth=3, **settings):
    torch.manual_seed(0)
    return ll.split(kind(), example=DATA[0], depth=depth, **settings)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)


def trainer(of, **settings):
    return ll.Trainer(of, **{"optimizer": adam, "schedule": cosine, **settings})


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("break_it", [False, True])
def test_one_stage_is_plain_training(break_it):
    of, model = network(ResNet, 1), ResNet()
    model.load_state_dict(of.merge().state_dict())
    optimizer = adam(model.parameters())
    schedule = cosine(optimizer)
    for _ in range(2):
        for x, y in DATA:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if not break_it:
                schedule.step()
    trainer(of).fit(DATA, epochs=2)
    assert same(of.merge(), model) is not break_it


def test_accumulated_batches_are_one_larger_batch():
    of, model = network(ResNet, 1), ResNet().eval()
    for each in (of.model, model):
        each.load_state_dict(of.merge().state_dict())
    ll.Trainer(of, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), accumulate=2).fit(DATA[:3])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for part in (DATA[:2], DATA[2:3]):  # the last update of an epoch follows what is left
        optimizer.zero_grad()
        for x, y in part:
            (F.cross_entropy(model(x), y) / 2).backward()
        optimizer.step()
    assert same(of.merge(), model)


def test_threads_train_what_inline_does():
    one, other = network(), network()
    trainer(one).fit(DATA, epochs=2)
    trainer(other, runtime="threads", threads=2).fit(DATA, epochs=2)
    assert same(one, other)
    other = network()
    trainer(other, runtime="threads", threads=2, seed=1).fit(DATA, epochs=2)
    assert not same(one, other)
    assert torch.get_num_threads() == 1


class Noisy(TensorDataset):
    """Draws for every example, as augmentation does."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn_like(x), y


class Stops:
    """A loader that fails in the middle of the second epoch."""

    def __init__(self, loader):
        self.loader, self.left = loader, 7

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.left == 0:
                raise RuntimeError("stop")
            self.left -= 1
            yield batch


@pytest.mark.parametrize("break_it", [False, True])
def test_a_run_continues_in_the_middle_of_an_epoch(tmp_path, break_it):
    def loader():
        x, y = zip(*DATA, strict=True)
        return DataLoader(Noisy(torch.cat(x), torch.cat(y)), batch_size=7, shuffle=True)

    settings = {"average": 0.9, "accumulate": 2, "clip_norm": 0.5, "checkpoint_every": 2}
    whole = network()
    summary = trainer(whole, run=tmp_path / "whole", **settings).fit(loader(), epochs=3, validation=CHECK)
    with pytest.raises(RuntimeError, match="stop"):
        trainer(network(), run=tmp_path / "parts", **settings).fit(Stops(loader()), epochs=3, validation=CHECK)
    if break_it:  # the step that the checkpoint was written at is forgotten
        for path in (tmp_path / "parts" / "checkpoints").iterdir():
            path.unlink()
    other = network()
    again = trainer(other, run=tmp_path / "parts", **settings)
    if break_it:
        other.model.c.weight.data.add_(0.01)
    found = again.fit(loader(), epochs=3, validation=CHECK)
    equal = same(whole, other) and found["nodes"] == summary["nodes"] and found["accuracy"] == summary["accuracy"]
    assert equal is not break_it
    events = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "train"] == [1, 2, 3]


def test_more_epochs_continue_a_finished_run_and_the_same_give_its_summary(tmp_path):
    of = network()
    first = trainer(of, run=tmp_path / "run").fit(DATA, epochs=1, validation=CHECK)
    again = network()
    assert trainer(again, run=tmp_path / "run").fit(DATA, epochs=1, validation=CHECK) == first
    assert same(of, again)
    trainer(again, run=tmp_path / "run").fit(DATA, epochs=2, validation=CHECK)
    whole = network()
    trainer(whole).fit(DATA, epochs=2, validation=CHECK)
    assert same(again, whole)


def test_another_network_is_not_continued(tmp_path):
    trainer(network(), run=tmp_path / "run").fit(DATA)
    with pytest.raises(UsageError, match="holds another training"):
        trainer(network(depth=2), run=tmp_path / "run").fit(DATA, epochs=2)


def test_a_run_has_a_report_and_the_command_line_says_whose_it_is(tmp_path, capsys):
    trainer(network(), run=tmp_path / "run").fit(DATA, epochs=2, validation=CHECK)
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "run.html")]) == 0
    assert "Dropped" in (tmp_path / "run.html").read_text()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "ll.Trainer" in capsys.readouterr().err


def test_regression_has_losses_and_the_best_has_the_smallest(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(32, 4)
    data = [(x, x.sum(1, keepdim=True))]
    of = ll.split(model, example=data[0], depth=2, objective=F.mse_loss)
    run = ll.Trainer(of, optimizer=lambda p: torch.optim.Adam(p, lr=0.02), run=tmp_path / "run")
    summary = run.fit(data, epochs=40, validation=data)
    found = run.evaluate(data)
    assert found["last_layer"] is None
    assert found["nodes"][-1]["loss"] == pytest.approx(F.mse_loss(of(x), data[0][1]).item(), rel=1e-5)
    assert summary["nodes"][-1]["loss"] == found["nodes"][-1]["loss"] < 1.0
    assert torch.allclose(run.predict(data), of(x))


def test_a_schedule_by_epoch_may_follow_the_validation_loss():
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10.0)

    run = trainer(network(), schedule=plateau, schedule_unit="epoch")
    run.fit(DATA, epochs=3, validation=CHECK)
    assert run.rates == pytest.approx([3e-6] * 3)  # never better by ten: each of three epochs divides it by ten
    with pytest.raises(UsageError, match="needs validation"):
        trainer(network(), schedule=plateau, schedule_unit="epoch").fit(DATA)


def test_averaged_weights_are_evaluated_and_the_trained_ones_stay():
    of = network(ResNet, 2)
    run = trainer(of, average=0.5)
    run.fit(DATA, epochs=1)
    weights = {name: value.clone() for name, value in of.state_dict().items()}
    averaged = run.predict(CHECK)
    assert all(torch.equal(weights[name], value) for name, value in of.state_dict().items())
    of.eval()
    assert not torch.equal(averaged, torch.cat([of(x) for x, _ in CHECK]))


def test_fp16_scales_losses_a_stage():
    of = network(ResNet, 2)
    run = trainer(of, precision="fp16")
    summary = run.fit(DATA[:2], validation=CHECK)
    assert all(node["loss"] < 10 for node in summary["nodes"])


WRONG = [
    ({"optimizer": 3}, "optimizer"),
    ({"runtime": "fast"}, "runtime"),
    ({"precision": "int8"}, "precision"),
    ({"accumulate": 0}, "accumulate"),
    ({"average": 1.0}, "average"),
    ({"clip_norm": -1}, "clip_norm"),
    ({"run": 5}, "run"),
    ({"loggers": "tensorboard"}, "loggers"),
    ({"schedule_unit": "day"}, "schedule_unit"),
]


@pytest.mark.parametrize(("settings", "name"), WRONG)
def test_wrong_arguments_are_named(settings, name):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        ll.Trainer(network(), **settings)


def test_what_is_no_network_or_no_loader_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ll.split"):
        ll.Trainer(nn.Linear(2, 2))
    run = trainer(network(), run=tmp_path / "run")
    for loader, what in ((5, "expected an iterable"), (iter(DATA), "only once"), ([], "no batch")):
        with pytest.raises(UsageError, match=what):
            run.fit(loader)
    with pytest.raises(ConfigError, match="epochs"):
        run.fit(DATA, epochs=0)


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint(tmp_path):
    bad = [*DATA[:2], (DATA[2][0] * torch.inf, DATA[2][1])]
    with pytest.raises(DivergedError, match="module 1"):
        trainer(network(ResNet), run=tmp_path / "run").fit(bad)
    assert not (tmp_path / "run" / "checkpoints").exists() or not os.listdir(tmp_path / "run" / "checkpoints")


def test_a_built_network_trains_too(tmp_path):
    config = ll.RunConfig(method="gn-dgl", model="resnet8", depth=2, width=(2,))
    of = ll.build_network(config, ll.ImageShape(2, 8, 5))
    summary = trainer(of, run=tmp_path / "run").fit(DATA, epochs=2, validation=CHECK)
    assert [(node["module"], node["group"]) for node in summary["nodes"]] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
        ("classifier", 1),
    ]
    metrics = of.step(DATA[0]) if of.steps else None
    assert metrics is None
    of.set_optimizers(adam)
    assert set(of.step(DATA[0])) >= {"loss/1", "loss/2", "loss/classifier", "loss", "accuracy/classifier"}


class Slow:
    """Takes its time between the draws that it makes for a batch."""

    def __iter__(self):
        for inputs, labels in DATA:
            torch.rand(1)
            time.sleep(0.02)
            yield inputs + torch.rand(1), labels

    def __len__(self):
        return len(DATA)


def test_what_a_loader_draws_does_not_reach_stages_that_train_meanwhile():
    networks = [network(), network()]
    for of, runtime in zip(networks, ("inline", "threads"), strict=True):
        trainer(of, runtime=runtime, threads=1).fit(Slow(), epochs=3)
    assert same(*networks)


def test_processes_need_to_know_how_many_batches_come():
    class Endless:
        def __iter__(self):
            return iter(DATA)

    with pytest.raises(UsageError, match=r"loader: Endless has no length, which processes need"):
        trainer(network(), runtime="distributed").fit(Endless())
