import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from locallearn.cli.main import COMMANDS, main
from locallearn.config import from_toml

QUICK = [
    "--model", "tiny-resnet", "--depth", "2", "--train.epochs", "1", "--schedule.warmup-epochs", "0",
    "--data.train-limit", "96", "--data.test-limit", "40", "--train.threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "gn-dgl", *QUICK, "--run", str(folder), "--json"]) == 0
    return folder


def one_line(capsys):
    """The single line on standard error."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("locallearn: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "'tarin' is not a command; expected one of demo, train"),
        (["train"], "RECIPE is missing"),
        (["train", "gn_dgl"], "RECIPE: 'gn_dgl' is not known. Did you mean gn-dgl"),
        (["train", "resnet33-dgl"], "model: 'resnet33' is not known. Did you mean resnet"),
        (["train", "gn-dgl", "--depht", "3"], "unrecognized option --depht. Did you mean --depth"),
        (["train", "gn-dgl", "--depth", "x"], "parsing --depth: invalid literal for int() with base 10: 'x'"),
        (["train", "gn-dgl", "--depth", "0"], "depth: 0 is not valid; expected a whole number of at least 1"),
        (["train", "gn-dgl", "--depth"], "Missing value for argument '--depth'"),
        (["train", "gn-dgl", "--depth", "9"], "depth: 9 is not valid; expected at most 4"),
        (["train", "gn-dgl", "--width", "3"], "width: 3 is not valid; expected a divisor"),
        (["train", "e2e", "--depth", "2"], "depth: 2 is not valid; expected 1 with method e2e"),
        (["train", "gn-dgl", "--optimizer.name", "lion"], "optimizer.name: 'lion' is not valid"),
        (["train", "gn-dgl", "--train.device", "tpu"], "train.device: 'tpu' is not valid; expected cpu or cuda"),
        (["train", "resnet32-dgl", "--data.root", "/nowhere"], "/nowhere"),
        (["train", "gn-dgl", "--data.name", "mnist"], "data.name: 'mnist' is not valid; expected one of"),
        (["train", "--resume", "/nowhere"], "/nowhere is not a run folder"),
        (["train", "gn-dgl", "--run", ""], "--run: '' is not valid; expected the name of a folder"),
        (["evaluate", "/nowhere"], "/nowhere is not a run folder"),
        (["evaluate"], "evaluate: DIR is missing; see locallearn evaluate --help"),
        (["predict"], "predict: DIR and FOLDER are missing; see"),
        (["embed", "a", "b"], "embed: --out is missing; see"),
        (["train", "gn-dgl", "--data", "."], "--data: . is a folder; images in it are read with --data folder"),
        (["predict", "/nowhere", "/nowhere"], "/nowhere is not a run folder"),
        (["report", "/nowhere"], "/nowhere"),
        (["recipes", "--show", "nothing"], "RECIPE: 'nothing' is not known"),
    ],
)
def test_wrong_calls_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert "usage: locallearn" in capsys.readouterr().out


def test_help_tells_units_and_defaults(capsys):
    main(["train", "resnet32-gn-dgl", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Passes over the training images [epochs]. (default: 160)" in text
    assert "K: depth modules that the backbone is cut into. (default: 4)" in text


def test_train_writes_a_report_and_json(run):
    assert (run / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert json.loads((run / "summary.json").read_text())["depth"] == 2


def test_an_existing_run_is_not_overwritten_without_being_told(run, capsys):
    before = (run / "summary.json").read_bytes()
    assert main(["train", "gn-dgl", *QUICK, "--run", str(run)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is there already; continue it with --resume" in line
    assert (run / "summary.json").read_bytes() == before


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert main(["train", "dgl", *QUICK, "--run", str(mine), "--overwrite"]) == 2
    assert "is not a run" in one_line(capsys)
    assert (mine / "thesis.txt").read_text() == "years of work"
    run = tmp_path / "run"
    for seed in ("1", "2"):
        assert main(["train", "dgl", *QUICK, "--seed", seed, "--run", str(run), "--overwrite", "--json"]) == 0
    assert json.loads((run / "summary.json").read_text())["seed"] == 2


def test_overwrite_with_a_wrong_option_keeps_the_old_run(run, capsys):
    before = (run / "summary.json").read_bytes()
    assert main(["train", "gn-dgl", *QUICK, "--width", "3", "--run", str(run), "--overwrite"]) == 2
    capsys.readouterr()
    assert (run / "summary.json").read_bytes() == before


def test_evaluate_agrees_with_training(run, capsys):
    summary = json.loads((run / "summary.json").read_text())
    assert main(["evaluate", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["last_layer"] == summary["accuracy"]["last_layer"]
    assert found["ensemble"] == summary["accuracy"]["ensemble"]
    assert found["nodes"] == summary["nodes"]
    assert found["images"] == 40
    assert main(["evaluate", str(run), "--checkpoint", "best"]) == 0
    assert "Test accuracy of every node" in capsys.readouterr().out


def test_a_damaged_only_checkpoint_is_a_failed_run(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").glob("step-*"):
        path.write_bytes(b"rubbish")
    assert main(["evaluate", str(copy)]) == 1
    assert "no checkpoint in" in one_line(capsys)


def test_resume_of_a_finished_run_prints_its_summary(run, capsys):
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "summary.json").read_text())


def test_predict_gives_a_row_an_image(run, tmp_path, capsys):
    digits = load_digits()
    for i in range(3):
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(tmp_path / f"{i}.png")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert all(
        row["last_layer"] in list("0123456789") and 0 < float(row["ensemble_probability"]) <= 1 for row in rows
    )
    out = tmp_path / "out.json"
    assert main(["predict", str(run), str(tmp_path), "--json", "--output", str(out)]) == 0
    assert [row["last_layer"] for row in json.loads(out.read_text())] == [row["last_layer"] for row in rows]


def test_predict_of_an_empty_folder_is_one_line(run, tmp_path, capsys):
    assert main(["predict", str(run), str(tmp_path)]) == 2
    assert str(tmp_path) in one_line(capsys)


def test_report_of_several_runs(run, tmp_path, capsys):
    output = tmp_path / "all.html"
    assert main(["report", str(run), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert output.stat().st_size > 10_000


def test_recipes_are_complete_configurations(capsys):
    assert main(["recipes", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert {"e2e", "dgl", "gn-dgl", "single-thread", "resnet32-gn-dgl", "vgg6a-dgl"} <= set(names)
    assert main(["recipes", "--show", "resnet32-gn-dgl"]) == 0
    config = from_toml(capsys.readouterr().out)
    assert (config.model, config.depth, config.width) == ("resnet32", 4, (2,))


def test_demo_compares_three_methods(tmp_path, capsys, monkeypatch):
    """The demo itself, shortened; its accuracies are tested in tests/golden."""
    import dataclasses

    from locallearn.cli import demo_command

    def short(name):
        config = recipe(name)
        return dataclasses.replace(
            config,
            model="tiny-resnet",
            data=dataclasses.replace(config.data, train_limit=96, test_limit=40),
            train=dataclasses.replace(config.train, epochs=2),
        )

    recipe = demo_command.recipe
    monkeypatch.setattr(demo_command, "recipe", short)
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("e2e", "dgl", "gn-dgl", "images/s"))
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    assert main(["demo", "--json"]) == 0
    assert [s["method"] for s in json.loads(capsys.readouterr().out)] == ["e2e", "dgl", "gn-dgl"]
    assert (tmp_path / "runs" / "demo-2" / "report.html").is_file()
    assert main(["demo", "--run", "runs/demo"]) == 2


def test_an_edited_configuration_of_a_finished_run_is_answered(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace("epochs = 1\n", "epochs = 60\n", 1))
    assert main(["train", "--resume", str(copy), "--json"]) == 2
    assert "has already finished, and its config.toml was changed since" in one_line(capsys)


def test_a_finished_run_says_that_nothing_is_trained(run, capsys):
    assert main(["train", "--resume", str(run), "--json"]) == 0
    assert f"{run} has already finished, so nothing is trained; --epochs N" in one_line(capsys)


def test_a_finished_run_goes_on_for_longer_with_another_rate(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert main(["train", "--resume", str(copy), "--epochs", "2", "--lr", "0.05", "--schedule", "constant"]) == 0
    assert ", from step " in capsys.readouterr().err
    config = from_toml((copy / "config.toml").read_text())
    assert (config.train.epochs, config.optimizer.learning_rate, config.schedule.name) == (2, 0.05, "constant")
    assert re.search(r"[0-9a-f]{16} until step \d+, then [0-9a-f]{16}", (copy / "report.html").read_text())
    assert main(["train", "--resume", str(copy), "--epochs", "1"]) == 2
    assert "train.epochs: 1 is not valid; expected more than the 2 that are done (--epochs)" in one_line(capsys)
    assert main(["train", "--resume", str(copy), "--optimizer", "adam"]) == 2
    assert "expected sgd, with which the run began" in one_line(capsys)


def test_a_report_is_html(run, tmp_path, capsys):
    output = tmp_path / "report.pdf"
    assert main(["report", str(run), "--output", str(output)]) == 2
    assert "expected a file name ending in .html or .htm" in one_line(capsys)
    assert not output.exists()
