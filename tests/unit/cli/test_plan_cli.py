import dataclasses
import json
import shlex

import pytest

from locallearn.cli import plan_call
from locallearn.cli.config_source import SHORT, start
from locallearn.cli.main import main
from locallearn.cli.options import parse
from locallearn.cli.plan_options import parse_bytes
from locallearn.cli.train_command import TrainOptions
from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig, TrainConfig
from locallearn.core.methods import methods
from locallearn.errors import ConfigError

SMALL = ["plan", "--model", "tiny-resnet", "--image-size", "8", "--batch-size", "8", "--depths", "1", "2"]


def test_json(capsys):
    assert main([*SMALL, "--widths", "1", "2", "--devices", "4", "--memory", "2MiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] == 2**21
    proposal = found["proposal"]
    assert {key: proposal[key] for key in ("depth", "width", "devices")} == {"depth": 2, "width": 2, "devices": 4}
    assert max(node["memory"] for node in proposal["nodes"]) == proposal["memory"] <= 2**21
    assert [row["makespan"] for row in found["fits"]] == sorted(row["makespan"] for row in found["fits"])
    assert {row["name"] for row in found["alternatives"]} == {
        "backpropagation", "accumulation", "smaller-batch", "checkpointing", "gpipe", "1f1b", "data-parallel",
    }  # fmt: skip
    assert (
        "train tiny-resnet-e2e --batch-size 8 --runtime distributed --processes 4 --mesh.data 4" in found["command"]
    )


@pytest.mark.parametrize("model", ["resnet32", "vgg6a"])
def test_the_command_of_a_plan_makes_its_configuration(model):
    objective = ObjectiveConfig(diversity_weight=0.25, stop_gradient=False, label_smoothing=0.1, head="2c1f")
    planned = RunConfig(
        method="gn-dgl",
        model=model,
        depth=4,
        width=(2,),
        cuts=("balanced",),
        objective=objective,
        optimizer=OptimizerConfig(name="adam"),
        train=TrainConfig(batch_size=64, precision="bf16"),
    )
    images = plan_call.Images(32, 3, 10)
    _, base, rest = start(plan_call.of_candidate(planned, 8, images)[2:], "train", "")
    options = parse(TrainOptions, rest, "train", "", TrainOptions(base), SHORT)
    found = options.config
    for name in ("method", "model", "depth", "width", "cuts"):
        assert getattr(found, name) == getattr(planned, name)
    loss = methods.build("gn-dgl", planned).modules[0].objective.loss
    assert dataclasses.replace(found.objective, loss=loss) == dataclasses.replace(objective, loss=loss)
    assert methods.build("gn-dgl", found).modules[0].objective.loss == loss
    assert (found.train.batch_size, found.train.precision, found.optimizer.name) == (64, "bf16", "adam")
    assert (options.processes, found.runtime, found.mesh.depth, found.mesh.width) == (8, "distributed", 4, 2)


def test_the_rate_of_a_command_fits_its_batch():
    planned = RunConfig(method="dgl", model="resnet32", train=TrainConfig(batch_size=128, precision="fp32"))
    command = plan_call.of_candidate(planned, 1, plan_call.Images(32, 3, 10))
    assert float(command[command.index("--lr") + 1]) == pytest.approx(0.8 / 8)


def test_accumulation_fits_where_no_local_plan_does_and_its_command_trains(capsys, tmp_path):
    arguments = [*SMALL, "--widths", "1", "--memory", "230KiB", "--channels", "1", "--classes", "10"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["proposal"] is None
    (advice,) = found["advice"]
    assert "No K x G network fits. Use accumulation over" in advice
    fits = [row for row in found["alternatives"] if row["fits"]]
    assert {row["name"] for row in fits} == {"accumulation", "smaller-batch"}
    command = shlex.split(found["command"])
    given = {name: command[command.index(name) + 1] for name in ("--batch-size", "--train.accumulate")}
    assert int(given["--batch-size"]) * int(given["--train.accumulate"]) == 8
    command = command[1 : command.index("--data")]  # on the digits, which are as small
    shorter = [
        "--epochs",
        "1",
        "--data.train-limit",
        "64",
        "--data.validation",
        "0",
        "--data.test-limit",
        "40",
        "--run",
        str(tmp_path / "run"),
    ]
    assert main([*command, *shorter, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 64 // int(given["--batch-size"])
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("--data folder --data-root DIR --image-size 8")
    assert "are not proposed: --all shows them and why" in shown
    assert "not proposed, more memory than there is" not in shown
    assert main([*arguments, "--all"]) == 0
    assert "not proposed, more memory than there is: KxG" in " ".join(capsys.readouterr().out.split())


def test_no_head_of_a_table_is_cut_off_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*SMALL, "--widths", "1", "2", "--devices", "4", "--memory", "2MiB", "--all"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith(("locallearn", "not proposed")))


def test_the_table_shows_the_proposal_and_the_measurement(capsys):
    arguments = ["--devices", "2", "--memory", "1MiB", "--device-flops", "1e9", "--bandwidth", "1e8", "--measure"]
    assert main([*SMALL, "--widths", "1", *arguments, "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "Plans for 2 devices of 1.0 MiB" in text
    assert "One step here" in text
    assert "not proposed" in text or "fits" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "many"], "--memory: 'many' is not valid"),
        (["--memory", "1KiB"], "no plan fits 1 KiB a device: the smallest (K = 2"),
        (["--memory", "1GiB", "--devices", "0"], "--devices: 0 is not valid"),
        (["--memory", "1GiB", "--bandwidth", "1e9"], "--bandwidth needs --device-flops"),
        (["--memory", "1GiB", "--method", "dgssl"], "method: 'dgssl' is not valid; expected a method with labels"),
        (["--memory", "1GiB", "--cuts", "2.0"], "--cuts: ('2.0',) is not valid"),
    ],
)
def test_a_wrong_call_is_one_line(capsys, arguments, message):
    assert main([*SMALL, "--widths", "1", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_sizes():
    assert parse_bytes("m", "1.5 GiB") == 3 * 2**29
    assert parse_bytes("m", "8gb") == 8 * 10**9
    assert parse_bytes("m", "1024") == 1024
    for wrong in ("9" * 400, "99999999999999999999GB", "", "-1", "2 TB", "0", "0.1"):
        with pytest.raises(ConfigError, match="512MiB"):
            parse_bytes("m", wrong)


def test_a_recipe_is_answered_with_the_options_that_it_stands_for(capsys):
    assert main(["plan", "resnet32-auglocal", "--memory", "2GiB"]) == 2
    expected = "try: locallearn plan --model resnet32 --method dgl --heads auglocal --memory 2GiB"
    assert expected in capsys.readouterr().err
    assert main(["plan", "resnet32-auglokal"]) == 2
    assert "RECIPE: 'resnet32-auglokal' is not known. Did you mean" in capsys.readouterr().err
