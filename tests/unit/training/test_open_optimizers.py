"""Optimizers and schedules of torch's and of others, by name."""

import dataclasses
import json
import os
from dataclasses import dataclass

import pytest
import torch

import programs
import small
from locallearn import plugins
from locallearn.cli.main import main
from locallearn.config import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, from_toml, to_toml
from locallearn.errors import ConfigError, UsageError
from locallearn.training import runs
from locallearn.training.optim import build_optimizer, build_schedule, learning_rate, rates
from locallearn.training.optimizers import optimizers
from locallearn.training.schedules import schedules
from locallearn.training.tried import check_optimizer


def weight():
    return torch.nn.Parameter(torch.tensor([1.0, 2.0]))


def after(optimizer, parameter):
    parameter.grad = torch.tensor([0.5, -3.0])
    for _ in range(3):
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (
            OptimizerConfig("adamw", 0.1, weight_decay=0.2, options={"betas": (0.8, 0.9)}),
            lambda p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9)),
        ),
        (
            OptimizerConfig("adam", 0.1, weight_decay=0.0, options={"eps": 0.1, "amsgrad": True}),
            lambda p: torch.optim.Adam([p], lr=0.1, eps=0.1, amsgrad=True),
        ),
        (
            OptimizerConfig("torch.optim.RAdam", 0.1, weight_decay=0.3, options={"betas": [0.8, 0.9]}),
            lambda p: torch.optim.RAdam([p], lr=0.1, weight_decay=0.3, betas=(0.8, 0.9)),
        ),
        (OptimizerConfig("torch.optim.Rprop", 0.1), lambda p: torch.optim.Rprop([p], lr=0.1)),
    ],
)
def test_named_optimizers_are_those_of_torch(config, plain):
    ours, theirs = weight(), weight()
    assert torch.equal(after(build_optimizer(config, [ours]), ours), after(plain(theirs), theirs))
    assert from_toml(to_toml(RunConfig(optimizer=config))).optimizer == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerConfig("adma"), "optimizer.name: 'adma' is not known. Did you mean adam"),
        (lambda: OptimizerConfig("zzz"), "one of adam, adamw, lars, sgd, package.module.Class"),
        (
            lambda: OptimizerConfig("adamw", options={"betas": (0.9, 1.0)}),
            "optimizer.options.betas.1: 1.0 .* less than 1",
        ),
        (lambda: OptimizerConfig("sgd", options={"x": 1}), "optimizer.options: .* optimizer.name sgd has no options"),
        (lambda: built("torch.optim.RAdam", {"x": 1}), "optimizer.options: .* what torch.optim.RAdam takes"),
        (lambda: built("torch.optim.Nothing"), "optimizer.name: torch.optim.Nothing cannot be imported"),
        (lambda: built("os.system"), "optimizer.name: 'os.system' is not valid; expected a class of optimizers"),
        (lambda: ScheduleConfig("cosin"), "schedule.name: 'cosin' is not known. Did you mean cosine"),
        (lambda: rate_of("ExponentialLr"), "schedule.name: 'ExponentialLr' is not known. Did you mean Exp"),
        (lambda: rate_of("ReduceLROnPlateau"), "schedule.name: 'ReduceLROnPlateau' is not valid"),
        (lambda: rate_of("StepLR"), "schedule.options: .* what StepLR takes .*step_size"),
        (
            lambda: rate_of("OneCycleLR", {"max_lr": 1.0, "total_steps": 3}),
            "schedule.options: .*Tried to step 4 times",
        ),
        (lambda: rate_of("CyclicLR", {"base_lr": 0, "max_lr": 1, "cycle_momentum": True}), "momentum of a run stays"),
    ],
)
def test_what_does_not_fit_is_one_line(build, message):
    with pytest.raises(UsageError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def built(name, options=None):
    return build_optimizer(OptimizerConfig(name, options=options or {}), [weight()])


def rate_of(name, options=None):
    config = RunConfig(schedule=ScheduleConfig(name, options=options or {}), train=TrainConfig(epochs=5))
    return rates(config, 2)(9)


CLASSES = [
    ("ExponentialLR", {"gamma": 0.5}, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.5)),
    ("CosineAnnealingLR", {}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=15)),
    (
        "OneCycleLR",
        {"max_lr": 0.4},
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=15, cycle_momentum=False),
    ),
]


@pytest.mark.parametrize(("name", "options", "plain"), CLASSES)
def test_schedules_of_torch_by_step_are_torchs(name, options, plain):
    config = RunConfig(schedule=ScheduleConfig(name, unit="step", options=options), train=TrainConfig(epochs=5))
    ours, theirs = (torch.optim.SGD([weight()], lr=config.optimizer.learning_rate) for _ in range(2))
    schedule, scheduler = build_schedule(config, ours, 3), plain(theirs)
    for step in range(15):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == learning_rate(config, step, 3), step
        for each in (ours, theirs, schedule, scheduler) if step < 14 else ():
            each.step()
    assert len({learning_rate(config, step, 3) for step in range(15)}) > 10


def test_schedules_of_torch_by_epoch_stay_within_an_epoch_and_take_a_warm_up():
    schedule = ScheduleConfig("StepLR", warmup_epochs=1, warmup_rate=0.04, options={"step_size": 2, "gamma": 0.1})
    found = rates(RunConfig(schedule=schedule, train=TrainConfig(epochs=4)), 2)
    assert [found(step) for step in range(8)] == pytest.approx([0.04] * 2 + [0.1] * 2 + [0.01] * 4)


def test_a_schedule_of_ones_own():
    @dataclass(frozen=True)
    class Root:
        scale: float = 1.0

    schedules.add("root", lambda given: lambda step: given.initial / (1 + step / given.options.scale), options=Root)
    config = RunConfig(schedule=ScheduleConfig("root", options={"scale": 2.0}))
    schedules.remove("root")
    with pytest.raises(ConfigError, match="schedule.name: 'root'"):
        learning_rate(config, 2, 10)
    schedules.add("root", lambda given: lambda step: given.initial / (1 + step / given.options.scale), options=Root)
    assert learning_rate(config, 2, 10) == pytest.approx(0.05)
    schedules.remove("root")


class Whole(torch.optim.SGD):
    """Scales every gradient by the largest number of all."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = parameter.grad / parameter.grad.abs().max()
        super().step()


class Counting(torch.optim.SGD):
    """Counts in a plain number, which a checkpoint would lose."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1
        super().step()


@pytest.mark.parametrize(
    ("name", "groups", "message"),
    [
        ("torch.optim.RAdam", 2, None),
        ("torch.optim.Adamax", 4, None),
        (f"{__name__}.Whole", 1, None),
        (f"{__name__}.Whole", 2, "updates every number by itself where width is 2: the update of one group depends"),
        ("torch.optim.Adafactor", 2, "optimizer.name: 'torch.optim.Adafactor'"),
        ("torch.optim.LBFGS", 1, "whose step\\(\\) asks for nothing"),
        (f"{__name__}.Counting", 1, "state is tensors of the weights' shape, as 'step' is not"),
    ],
)
def test_an_optimizer_of_others_is_tried_first(name, groups, message):
    config = OptimizerConfig(name)
    if message is None:
        check_optimizer(config, (1, groups))
        return
    with pytest.raises(ConfigError, match=message):
        check_optimizer(config, (1, groups))


def test_a_run_with_an_optimizer_and_schedule_of_torchs_resumes_exactly(tmp_path):
    config = dataclasses.replace(
        small.config("gn-dgl", 2, (2,)),
        optimizer=OptimizerConfig("torch.optim.NAdam", 0.01),
        schedule=ScheduleConfig("ExponentialLR", unit="step", options={"gamma": 0.9}),
    )
    whole = runs.train(config, tmp_path / "whole")
    runs.train(config, tmp_path / "half")
    kept = sorted((tmp_path / "half" / "checkpoints").glob("step-*"))
    assert len(kept) > 1
    kept[-1].unlink()
    (tmp_path / "half" / "summary.json").unlink()
    assert runs.resume(tmp_path / "half")["nodes"] == whole["nodes"]
    last = [sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1] for name in ("whole", "half")]
    assert last[0].name == last[1].name


STRANGER = "from pathlib import Path\nPath('ran').touch()\nimport torch\nclass Opt(torch.optim.SGD):\n    pass\n"


def test_a_class_that_only_a_file_names_is_not_imported(tmp_path):
    (tmp_path / "stranger.py").write_text(STRANGER)
    config = dataclasses.replace(small.config("dgl", 2, (1,)), optimizer=OptimizerConfig("stranger.Opt"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(to_toml(config))
    command = ("-m", "locallearn", "train", "--resume", "run")
    variables = {"PYTHONPATH": str(tmp_path)}
    done = programs.run(*command, folder=tmp_path, variables=variables)
    assert done.returncode == 2
    assert (
        "stranger.Opt is not imported only because a file names it; write --optimizer.name stranger.Opt"
        in done.stderr
    )
    assert not (tmp_path / "ran").exists()
    named = (*command, "--optimizer.name")
    done = programs.run(*named, "adam", folder=tmp_path, variables=variables)
    assert "optimizer.name: 'adam' is not valid; expected stranger.Opt, with which the run began" in done.stderr
    done = programs.run(*named, "stranger.Opt", "--json", folder=tmp_path, variables=variables)
    assert done.returncode == 0
    assert (tmp_path / "ran").exists()


QUICK = ("--train.epochs", "1", "--data.train-limit", "64", "--data.test-limit", "16", "--json")


def test_the_command_line_names_a_class_and_its_arguments(tmp_path, monkeypatch, capsys):
    (tmp_path / "friendly.py").write_text("import torch\nclass Opt(torch.optim.Adam):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.IMPORTS, "")
    named = ["--optimizer.name", "friendly.Opt", "--optimizer.options.betas", "0.8", "0.9"]
    timed = ["--schedule.name=StepLR", "--schedule.options.step-size=3", "--schedule.options.gamma", "0.5"]
    assert main(["train", "dgl", *named, *timed, *QUICK, "--run", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["depth"] == 4
    config = from_toml((tmp_path / "run" / "config.toml").read_text())
    assert config.optimizer.options == {"betas": (0.8, 0.9)}
    assert config.schedule.options == {"step_size": 3, "gamma": 0.5}
    assert os.environ[plugins.IMPORTS] == "friendly.Opt"  # for processes that it starts
    assert main(["train", "dgl", "--optimizer.name", "adamw", "--help"]) == 0
    assert "--optimizer.options.betas" in capsys.readouterr().out


def test_optimizers_that_ship():
    assert list(optimizers) == ["adam", "adamw", "lars", "sgd"]
    assert list(schedules) == ["constant", "cosine", "milestones"]
