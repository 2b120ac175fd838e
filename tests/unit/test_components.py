"""Components with settings of their own: from Python, TOML and the command line, checked and remembered."""

import dataclasses
import json
import pickle
from dataclasses import dataclass
from typing import Annotated

import pytest
import torch
from pydantic import Field

import locallearn as ll
import small
from locallearn.cli.main import main
from locallearn.config import DataConfig, ObjectiveConfig, digest, from_toml, to_toml
from locallearn.data.datasets import load
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import Classification
from locallearn.nn.heads import build_head
from locallearn.registry import Registry


@dataclass(frozen=True)
class SharpOptions:
    """Settings of the sharp loss."""

    sharpness: Annotated[float, Field(gt=0)] = 1.0
    """What scores are multiplied by."""
    parts: tuple[int, ...] = (1, 2)
    """Parts [parts]."""
    kind: str | None = None
    """Kind, if any."""


@dataclass(frozen=True)
class WideOptions:
    """Settings of the wide head."""

    times: Annotated[int, Field(ge=1)] = 2
    """Hidden units of each output."""


class Sharp(Classification):
    """Cross entropy of sharper scores."""

    def __init__(self, given):
        super().__init__(given.head(given.classes), given.config)
        self.sharpness = given.options.sharpness

    def forward(self, features, batch):
        logits = self.head(features) * self.sharpness
        total = torch.stack([torch.nn.functional.cross_entropy(each, batch.labels) for each in logits])
        return ll.LocalLoss(total, {"sharp": total.detach()}, logits.detach())


def wide(given):
    """A head whose hidden units are its own setting."""
    return build_head("0c2f", given.shape, given.outputs, groups=given.groups, hidden=given.options.times)


@pytest.fixture(autouse=True)
def components():
    """The two, registered."""
    ll.objectives.add("sharp", Sharp, options=SharpOptions)
    ll.heads.add("wide", wide, options=WideOptions)


def config_of(**objective):
    return small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(**objective))


def test_options_reach_what_is_built():
    config = config_of(loss="sharp", head="wide", options={"sharpness": 3}, head_options=WideOptions(7))
    network = ll.build_network(config, ll.ImageShape(3, 8, 10))
    objective = network.stages[0].objective
    assert objective.sharpness == 3.0
    assert objective.head.linears[0].weight.shape[0] == 2 * 7
    assert isinstance(config.objective.options, SharpOptions)


def test_without_options_a_component_gets_its_defaults():
    network = ll.build_network(config_of(loss="sharp", head="wide"), ll.ImageShape(3, 8, 10))
    assert network.stages[0].objective.sharpness == 1.0
    assert network.stages[0].objective.head.linears[0].weight.shape[0] == 2 * 2


def test_options_survive_toml_and_pickle():
    config = config_of(loss="sharp", options=SharpOptions(0.5, (4,), "x"))
    text = to_toml(config)
    assert "[objective.options]\nsharpness = 0.5\nparts = [\n    4,\n]\nkind" in text
    assert from_toml(text) == config == pickle.loads(pickle.dumps(config)) == dataclasses.replace(config)
    assert "options" not in to_toml(config_of(loss="sharp"))


def test_options_at_their_defaults_are_no_part_of_a_digest():
    plain = digest(config_of(loss="sharp"))
    assert digest(config_of(loss="sharp", options={"sharpness": 1.0})) == plain
    assert digest(config_of(loss="sharp", options={"sharpness": 2.0})) != plain


def test_options_wait_for_the_method_to_name_the_loss():
    config = small.config("dgl", 2, (1,), objective=ObjectiveConfig(options={"sharpness": 2}))
    assert config.objective.options == {"sharpness": 2}
    assert dataclasses.replace(config.objective, loss="sharp").options == SharpOptions(2.0)
    with pytest.raises(ConfigError, match="objective.options: .* objective.loss cross-entropy has no options"):
        ll.build_network(config, ll.ImageShape(3, 8, 10))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"options": {"sharpness": 0}}, "objective.options.sharpness: 0 is not valid; expected greater than 0"),
        ({"options": {"sharpnes": 1}}, r"objective.options.sharpnes: 1 .* known setting \(did you mean sharpness\)"),
        ({"options": {"zzz": 1}}, r"objective.options.zzz: 1 .* \(one of sharpness, parts, kind\)"),
        ({"options": {"parts": [1, "x"]}}, "objective.options.parts.1: 'x' is not valid; expected a valid integer"),
        ({"options": SharpOptions(-1.0)}, "objective.options.sharpness: -1.0 is not valid"),
        ({"options": WideOptions()}, "objective.options: WideOptions.* expected settings of SharpOptions, by name"),
        ({"options": {"sharpness": None}}, "objective.options.sharpness: None .* leave it out for 1.0"),
        ({"head_options": {"times": 2}}, "objective.head_options: .* objective.head 1c2f has no options"),
    ],
)
def test_wrong_options_are_one_line(objective, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(loss="sharp", **objective)
    assert "\n" not in str(caught.value)


def test_what_is_registered_as_options_is_checked():
    @dataclass(frozen=True)
    class NoDefault:
        weight: float

    @dataclass
    class NotFrozen:
        weight: float = 1.0

    things: Registry[object] = Registry("thing")
    with pytest.raises(ConfigError, match="options is 3; expected type or None"):
        things.add("x", 1, options=3)  # type: ignore[arg-type]
    for wrong, found in ((NoDefault, "NoDefault.weight has none"), (NotFrozen, "this is")):
        with pytest.raises(UsageError, match=rf"thing 'x' \(.*py:\d+\): expected options to be a frozen .*{found}"):
            things.add("x", 1, options=wrong)  # type: ignore[arg-type]
    assert "x" not in things


def test_help_shows_the_options_of_what_is_chosen(capsys):
    assert main(["train", "gn-dgl", "--objective.loss", "sharp", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--objective.options.sharpness FLOAT What scores are multiplied by. (default: 1.0)" in text
    assert "head-options" not in text
    assert main(["train", "gn-dgl", "--help"]) == 0
    assert "objective.options" not in capsys.readouterr().out


QUICK = ("--train.epochs", "1", "--data.train-limit", "64", "--data.test-limit", "16", "--json")


def test_options_on_the_command_line_reach_the_run(capsys, tmp_path):
    chosen = ["--objective.loss=sharp", "--objective.options.sharpness", "2", "--objective.options.parts", "3", "4"]
    assert main(["train", "gn-dgl", *chosen, *QUICK, "--run", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "gn-dgl"
    config = from_toml((tmp_path / "run" / "config.toml").read_text())
    assert config.objective.options == SharpOptions(2.0, (3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--objective.loss", "sharp", "--objective.options.sharpnes", "2"],
            "Did you mean --objective.options.sharpness",
        ),
        (["--objective.loss", "sharp", "--objective.options.sharpness", "x"], "--objective.options.sharpness"),
        (["--objective.loss", "sharp", "--objective.options.sharpness", "-2"], "objective.options.sharpness: -2.0"),
        (["--objective.options.sharpness", "2"], "name objective.loss as well, whose option this is"),
        (["--objective.head-options.times", "2"], "--objective.head-options.times: objective.head 1c2f has no such"),
    ],
)
def test_wrong_options_on_the_command_line_are_one_line(arguments, message, capsys, tmp_path):
    assert main(["train", "gn-dgl", *arguments, "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_data_set_has_options_too():
    @dataclass(frozen=True)
    class Shade:
        level: int = 7

    @ll.datasets.register("shaded", options=Shade)
    def shaded(config):
        images = torch.full((4, 1, 8, 8), config.options.level, dtype=torch.uint8)
        part = ll.ImageSet(images, torch.tensor([0, 1, 0, 1]))
        return ll.Dataset("shaded", part, part, ("a", "b"), (0.5,), (0.5,), ll.RunConfig().augment, "one shade")

    assert load(DataConfig("shaded")).train.images[0, 0, 0, 0] == 7
    assert load(DataConfig("shaded", options={"level": 9})).train.images[0, 0, 0, 0] == 9
