"""Loggers are told every event, are continued by a resume, and cannot end a training."""

import json
import sys
import types
from dataclasses import dataclass

import pytest

import locallearn as ll
import small
from locallearn.cli.main import main
from locallearn.config import LoggersConfig, digest, from_toml, to_toml
from locallearn.errors import ConfigError, UsageError
from locallearn.training import runs
from locallearn.training.loggers import LoggerInput, Loggers, MlflowOptions, WandbOptions, scalars

TRAINED = {
    "event": "train",
    "epoch": 1,
    "step": 5,
    "learning_rate": 0.1,
    "nodes": [{"module": 1, "group": 2, "loss": 2.5}],
}
FIGURES = {"train/learning_rate": 0.1, "train loss/module 1, group 2": 2.5}


@dataclass(frozen=True)
class TellOptions:
    """Settings of the logger that tells."""

    loud: bool = False
    """Louder."""


TOLD: list = []


class Tell:
    """Notes what it is told; fails at evaluations if it is loud."""

    def __init__(self, given):
        self.given = given

    def on_event(self, event):
        TOLD.append(event)
        if self.given.options.loud and event["event"] == "evaluate":
            raise RuntimeError("too loud")

    def close(self):
        TOLD.append("closed")


@pytest.fixture(autouse=True)
def tell():
    TOLD.clear()
    ll.loggers.add("tell", Tell, options=TellOptions)
    yield
    ll.loggers.remove("tell")


def config_of(names, **options):
    return small.config("dgl", 2, (1,), loggers=LoggersConfig(names, options))


def test_a_logger_is_told_what_the_record_holds(tmp_path):
    runs.train(config_of(("tell",)), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [*lines, "closed"] == TOLD
    assert not (tmp_path / "run" / "tensorboard").exists()


class Warned:
    """An observer that keeps warnings."""

    def __init__(self):
        self.lines = []

    def on_start(self, config, steps_per_epoch, epochs, step): ...
    def on_step(self, step): ...
    def on_event(self, event): ...

    def on_warning(self, message):
        self.lines.append(message)


def test_a_logger_that_fails_is_left_out_and_training_goes_on(tmp_path):
    observer = Warned()
    summary = runs.train(config_of(("tell",), tell={"loud": True}), tmp_path / "run", observer)
    assert summary["accuracy"]
    assert observer.lines == ["logger tell is left out from here on: RuntimeError: too loud"]
    assert [event["event"] for event in TOLD] == ["start", "train", "evaluate"]


def test_where_figures_are_shown_is_no_part_of_a_digest_and_survives_toml():
    config = config_of(("tell", "wandb"), wandb=WandbOptions(project="mine"), tell={"loud": True})
    assert digest(config) == digest(config_of(None))
    assert from_toml(to_toml(config)) == config
    assert "[loggers.options.tell]\nloud = true" in to_toml(config)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LoggersConfig(("wandbb",)), "loggers.names: 'wandbb' is not known. Did you mean wandb"),
        (lambda: LoggersConfig(("tell",), {"tell": {"lod": 1}}), r"loggers.options.tell.lod: 1 .*did you mean loud"),
        (lambda: LoggersConfig((), {"tell": {}}), "loggers.options.tell: .* a logger that loggers.names has"),
        (lambda: LoggersConfig(("wandb",), {"wandb": {"mode": "of"}}), "loggers.options.wandb.mode: 'of'"),
    ],
)
def test_wrong_loggers_are_one_line(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UsageError, match=r"wandb needs wandb, which is not there .*pip install 'locallearn\[wandb\]'"
    ):
        runs.train(config_of(("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_and_options_on_the_command_line(tmp_path, capsys):
    quick = ["--train.epochs", "1", "--data.train-limit", "64", "--data.test-limit", "16", "--json"]
    told = ["--loggers.names", "tell", "tensorboard", "--loggers.options.tell.loud"]
    assert main(["train", "e2e", *told, *quick, "--run", str(tmp_path / "run")]) == 0
    assert "logger tell is left out from here on: RuntimeError: too loud" in capsys.readouterr().err
    config = from_toml((tmp_path / "run" / "config.toml").read_text())
    assert config.loggers == LoggersConfig(("tell", "tensorboard"), {"tell": TellOptions(True)})
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert main(["train", "e2e", "--loggers.names", "wandb", "--help"]) == 0
    assert "--loggers.options.wandb.project" in capsys.readouterr().out


def test_figures_have_names_and_other_events_none():
    assert scalars(TRAINED) == FIGURES
    assert scalars({"event": "start", "step": 0, "time": "now"}) == {}


def test_wandb_begins_one_run_and_continues_it(tmp_path, monkeypatch):
    calls: list = []

    class Run:
        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finished")

    def init(**settings):
        calls.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        shown = Loggers(("wandb",), tmp_path, {"depth": 2}, {"wandb": {"project": "mine", "mode": "offline"}})
        shown.on_event({"event": "start", "step": 0})
        shown.on_event(TRAINED)
        shown.close()
    first, again = calls[0], calls[3]
    assert first == again
    assert (first["project"], first["mode"], first["resume"], first["config"]) == (
        "mine",
        "offline",
        "allow",
        {"depth": 2},
    )
    assert first["id"] == LoggerInput(tmp_path, {}).identity("wandb")
    assert first["id"] != LoggerInput(tmp_path / "other", {}).identity("wandb")
    assert calls[1:3] == [(FIGURES, 5), "finished"]


def test_mlflow_keeps_figures_and_continues_a_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    options = MlflowOptions(tracking_uri=(tmp_path / "store").as_uri(), experiment="mine")
    for step in (5, 10):
        shown = Loggers(("mlflow",), tmp_path / "run", {"train": {"epochs": 3}}, {"mlflow": options})
        shown.on_event({**TRAINED, "step": step})
        shown.close()
    client = mlflow.MlflowClient(options.tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.data.params == {"train.epochs": "3"}
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train loss/module 1 group 2")
    assert [(each.step, each.value) for each in history] == [(5, 2.5), (10, 2.5)]
