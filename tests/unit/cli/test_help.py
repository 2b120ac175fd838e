import itertools
import json
import re

import pytest

from locallearn.cli import help as helping
from locallearn.cli.config_source import SHORT
from locallearn.cli.main import main
from locallearn.cli.options import suggestions
from locallearn.config import RunConfig, to_toml
from locallearn.recipes.common import METHODS
from locallearn.recipes.named import recipe, recipe_names
from locallearn.recipes.newer import VARIANTS


def printed(capsys, *arguments):
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def flags_of(text):
    names = re.findall(r"^  (--?\S.*?)(?:  |$)", text, re.MULTILINE)
    return [flag for name in names for flag in re.findall(r"(?<!\S)--?[\w.-]+", name)]


def test_help_of_train_shows_fifteen_options_and_help_all_the_rest(capsys):
    few = flags_of(printed(capsys, "train", "resnet32-gn-dgl", "--help"))
    every = flags_of(printed(capsys, "train", "resnet32-gn-dgl", "--help-all"))
    assert len(few) == 15
    assert {"--run", "--config", "--epochs", "--batch-size", "--lr", "--depth", "--width", "--device"} <= set(few)
    assert len(every) > 100
    assert set(few) <= set(every)
    assert "--checkpoint.keep-last" in every


def test_help_keeps_sentences_whole_at_80_columns(capsys, monkeypatch):
    """Lines end where the next word does not fit, and nowhere else."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, "train", "gn-dgl", "--help-all").splitlines()
    assert max(map(len, lines)) <= 80
    for line, following in itertools.pairwise(lines):
        if line.startswith(" " * 28) and following.startswith(" " * 28):
            assert len(line) + 1 + len(following.split()[0]) > 80, line


def test_help_all_names_each_short_form_beside_its_option(capsys):
    text = printed(capsys, "train", "gn-dgl", "--help-all")
    assert "--lr, --learning-rate, --optimizer.learning-rate FLOAT" in text
    for name, whole in SHORT.items():
        assert re.search(rf"^  .*{re.escape(name)}, .*{re.escape(whole)}\b", text, re.MULTILINE), name


def test_a_box_of_tyro_is_read_back():
    text = """usage: x [-h]

What it does.

╭─ data options ──────────────────────────────╮
│ Which images.                               │
│ ─────────────────────────────────────────── │
│ --data.name STR  The set. (default: digits) │
│ --data.limits [INT [INT ...]]               │
│       First of two                          │
│       lines. (default: )                    │
│ --data.on, --data.no-on                     │
│       A switch. (default: False)            │
╰─────────────────────────────────────────────╯
"""
    head, [group] = helping.read(text)
    assert head == "usage: x [-h]\n\nWhat it does."
    assert (group.title, group.text) == ("data options", "Which images.")
    assert [(entry.names, entry.text) for entry in group.entries] == [
        ("--data.name STR", "The set. (default: digits)"),
        ("--data.limits INT ...", "First of two lines."),
        ("--data.on", "A switch."),
    ]


FLAGS = ("--depth", "--train.batch-size", "--train.epochs", "--objective.modification.scorer", "--data.name",
         "--optimizer.name", "--optimizer.learning-rate", "--patch-size", "--schedule.unit",
         "--objective.head-options.units")  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--batchsize", ["--train.batch-size"]),
        ("--train.batchsize", ["--train.batch-size"]),
        ("--training.batch_size", ["--train.batch-size"]),
        ("--batch-sise", ["--train.batch-size"]),
        ("--scorer", ["--objective.modification.scorer"]),
        ("--modification.scorer", ["--objective.modification.scorer"]),
        ("--train.lr", ["--optimizer.learning-rate"]),
        ("--train.learning-rate", ["--optimizer.learning-rate"]),
        ("--epoch", ["--train.epochs"]),
        ("--dept", ["--depth"]),
        ("--objective.head-options.unit", ["--objective.head-options.units"]),
        ("--unit", ["--schedule.unit"]),
        ("--name", ["--data.name", "--optimizer.name"]),
        ("--zzz", []),
    ],
)
def test_a_near_miss_of_any_part_of_a_dotted_name_is_answered(typed, meant):
    assert suggestions(typed, FLAGS, SHORT) == meant


def test_an_unknown_option_is_one_line_with_the_option_that_was_meant(capsys):
    assert main(["train", "gn-dgl", "--batchsize", "12"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "locallearn: unrecognized option --batchsize. Did you mean --train.batch-size?; "
        "see locallearn train gn-dgl --help\n"
    )


@pytest.mark.parametrize("short", [["--epochs", "1", "--lr=0.5", "--batch_size", "32"], ["--train.epochs=1",
                         "--optimizer.learning-rate", "0.5", "--train.batch-size", "32"]])  # fmt: skip
def test_short_forms_mean_the_whole_names(short, tmp_path, capsys):
    quick = ["--model", "tiny-resnet", "--data.train-limit", "64", "--data.test-limit", "20", "--threads", "1"]
    folder = tmp_path / "run"
    assert main(["train", "dgl", *quick, *short, "--warmup-epochs", "0", "--run", str(folder), "--json"]) == 0
    from locallearn.training.record import RunFolder

    config = RunFolder(folder).config()
    assert (config.train.epochs, config.optimizer.learning_rate, config.train.batch_size) == (1, 0.5, 32)


def trained_as(tmp_path, capsys, *arguments):
    """The configuration that a call would train, which is then refused because its folder is taken."""
    from locallearn.cli.config_source import start

    _, config, rest = start(arguments, "train", "")
    return config, rest


def test_a_configuration_comes_from_a_file_and_options_win(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text('method = "dgl"\ndepth = 3\n[train]\nepochs = 7\n')
    alone, rest = trained_as(tmp_path, capsys, "--config", str(file), "--lr", "1")
    assert (alone.depth, alone.train.epochs, alone.model) == (3, 7, RunConfig().model)
    assert rest == ["--config", str(file), "--lr", "1"]
    over, _ = trained_as(tmp_path, capsys, "resnet32-dgl", f"--config={file}")
    assert (over.depth, over.train.epochs) == (3, 7)
    assert (over.model, over.optimizer) == ("resnet32", recipe("resnet32-dgl").optimizer)
    file.write_text(to_toml(recipe("vgg6a-gn-dgl")))
    assert trained_as(tmp_path, capsys, "--config", str(file))[0] == recipe("vgg6a-gn-dgl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth = ", "is not TOML"),
        ("depth = 0", "depth: 0 is not valid"),
        ("[train]\nepoch = 3", "train.epoch: 3 is not valid; expected a known setting"),
        ('plugins = ["/nowhere/theirs.py"]', "names the plugin /nowhere/theirs.py; name it with --plugin"),
    ],
)
def test_a_wrong_file_is_one_line(text, message, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert main(["train", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"locallearn: --config: {file}")
    assert message in error
    assert error.count("\n") == 1


def test_recipes_is_a_table_by_method_and_json_all_names(capsys):
    text = printed(capsys, "recipes")
    assert re.findall(r"^  ([\w-]+) +\d x \d", text, re.MULTILINE) == [*METHODS, *VARIANTS]
    assert len(text.splitlines()) < len(recipe_names()) / 2
    assert json.loads(printed(capsys, "recipes", "--json")) == recipe_names()
