"""A wrong argument of a public function or class is named in one line, and nothing is begun."""

import dataclasses
import inspect

import pytest
import torch
from torch import nn

import locallearn as ll
import small
from locallearn.config import TrainConfig
from locallearn.training import runs
from locallearn.training.export import export
from refusals import refused

IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.zeros(4, dtype=torch.int64)
MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    runs.train(small.config(train=dataclasses.replace(small.TRAIN, epochs=1)), run)
    return run


@pytest.fixture(scope="module")
def opened(run):
    return ll.open_run(str(run))


def right(name, run, opened, folder):
    """Arguments that are right, of everything that takes some."""
    config, image = small.config(), ll.ImageShape(3, 8, 3)
    images = ll.ImageSet(IMAGES, LABELS)
    layout = ll.methods.build("gn-dgl", config)
    return {
        "BackboneInput": {"name": "resnet8", "channels": 3, "image_size": 32},
        "Batch": {"images": IMAGES, "labels": LABELS, "pixels": IMAGES, "step": 0},
        "Block": {"name": "a", "channels": 3, "make": lambda *args: None},
        "Dataset": {
            "name": "a",
            "train": images,
            "test": images,
            "classes": ("a", "b"),
            "mean": (0.0,),
            "std": (1.0,),
            "augment": small.config().augment,
            "source": "here",
        },
        "HeadInput": {"shape": (8, 4, 4), "outputs": 3},
        "ImageSet": {"images": IMAGES, "labels": LABELS},
        "ImageShape": {"channels": 3, "size": 8, "classes": 3},
        "Layout": {"modules": layout.modules, "decoupled_classifier": False},
        "LocalLoss": {"total": torch.zeros(1), "terms": {}, "logits": None},
        "LocalNetwork": {"stages": []},
        "ModuleLayout": {"groups": 1, "channel_groups": 1, "objective": config.objective},
        "ObjectiveInput": {
            "config": config.objective,
            "shape": (8, 4, 4),
            "groups": 1,
            "classes": 3,
            "image": (8, 8),
            "widen": 1.0,
            "family": "resnet",
            "position": (0, 1),
        },
        "OptimizerInput": {"parameters": [], "config": config.optimizer},
        "ProbeConfig": {"epochs": 1},
        "RunConfig": {"method": "dgl"},
        "ScheduleInput": {"config": config, "steps_per_epoch": 3, "initial": 0.1},
        "build_network": {"config": config, "image": image},
        "cost": {"of": config, "image": image},
        "embed": {"run": opened, "folder": str(folder), "output": str(folder / "a.npz")},
        "from_toml": {"text": "depth = 2"},
        "load_exported": {"path": str(folder)},
        "open_run": {"run": str(run)},
        "probe": {"run": opened, "config": ll.ProbeConfig(epochs=1)},
        "recipe": {"name": "dgl"},
        "resume": {"run": str(run)},
        "split": {"model": MODEL, "example": torch.zeros(2, 4), "depth": 2, "classes": 3},
        "to_toml": {"config": config},
        "train": {"config": config, "run": str(folder / "new")},
    }[name]


NAMES = [
    *("BackboneInput", "Batch", "Block", "Dataset", "HeadInput", "ImageSet", "ImageShape", "Layout", "LocalLoss"),
    *("LocalNetwork", "ModuleLayout", "ObjectiveInput", "OptimizerInput", "ProbeConfig"),
    *("RunConfig", "ScheduleInput", "build_network", "cost"),
    *("embed", "from_toml", "load_exported", "open_run", "probe", "recipe", "resume", "split", "to_toml", "train"),
]
STEPS = ("Batch", "LocalLoss", "ScheduleInput")
"""Every step makes them, so that their fields are not looked at."""
REGISTRIES = ("backbones", "datasets", "heads", "methods", "objectives", "optimizers", "schedules")


def test_every_public_name_is_tried_or_names_an_unknown_argument_at_least():
    for name in {name for name in ll.__all__ if callable(getattr(ll, name))} - {*NAMES, *REGISTRIES}:
        with pytest.raises(Exception, match="bogus|no keyword arguments|missing a required argument"):
            getattr(ll, name)(bogus=1)


@pytest.mark.parametrize("name", NAMES)
def test_missing_unknown_and_too_many_arguments_are_named(name, run, opened, tmp_path):
    function, arguments = getattr(ll, name), right(name, run, opened, tmp_path)
    refused(lambda: function(**arguments, bogus=1), name, "bogus")
    refused(lambda: function(*[object()] * 40), name, "too many positional arguments")
    needed = [
        key
        for key, value in inspect.signature(function).parameters.items()
        if value.default is inspect.Parameter.empty
    ]
    for missing in needed if needed != ["args", "kwargs"] else []:
        refused(lambda m=missing: function(**{k: v for k, v in arguments.items() if k != m}), name, missing)


class Thing:
    """Of no type that anything takes."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STEPS])
def test_arguments_of_other_types_are_named(name, run, opened, tmp_path):
    function, arguments = getattr(ll, name), right(name, run, opened, tmp_path)
    for argument in [*arguments, *_optional(function)]:
        if argument not in ("example", "on_epoch", "observer"):  # anything at all, or what has the methods asked for
            refused(lambda a=argument: function(**{**arguments, a: Thing()}), argument)
    assert not (tmp_path / "new").exists()


def _optional(function):
    return [
        name for name, value in inspect.signature(function).parameters.items() if value.kind == value.KEYWORD_ONLY
    ]


@pytest.mark.parametrize("name", REGISTRIES)
def test_registries_name_wrong_arguments(name):
    registry = getattr(ll, name)
    refused(lambda: registry.get(3), "name")
    refused(lambda: registry.get("no-such-thing"), "no-such-thing")
    refused(lambda: registry.add("a"), "entry")
    refused(lambda: registry.register(3), "name")
    refused(lambda: registry.build(None, 3), "name")
    if registry.takes is not None:
        refused(lambda: registry.add("a", 3), "'a'", registry.takes)


WRONG_VALUES = {
    "train": [{"run": ""}, {"run": "a\0b"}, {"observer": 3}],
    "open_run": [{"run": "no-such"}, {"checkpoint": "x"}, {"device": "x"}, {"device": ""}, {"run": "a\0b"}],
    "resume": [
        {"observer": True},
        {"run": "no-such"},
        {"threads": 0},
        {"threads": -1},
        {"runtime": "x"},
        {"device": "x"},
    ],
    "embed": [
        {"pool": 0},
        {"pool": -1},
        {"module": 9},
        {"module": 0},
        {"output": "a.txt"},
        {"folder": "no-such"},
        {"folder": "x" * 5000},
    ],
    "recipe": [{"name": ""}, {"name": "no-such"}],
    "from_toml": [{"text": "depth = ["}, {"text": "depth = 0"}, {"text": "bogus = 1"}, {"text": "data = 1"}],
    "load_exported": [{"path": "no-such"}, {"path": ""}, {"path": "x" * 5000}],
    "cost": [{"batch_size": 0}, {"batch_size": -1}, {"precision": "fp64"}],
    "ImageShape": [{"channels": 0}, {"size": 0}, {"size": (8, 0)}, {"size": (8, 8, 8)}, {"classes": 0}],
    "split": [
        *[{"depth": 0}, {"depth": 99}, {"width": 0}, {"cuts": ["no"]}, {"objective": "no"}, {"clip_norm": -1.0}],
        *[{"objective": ""}, {"classes": -1}, {"classes": 2**63}, {"depth": torch.full((2, 4), torch.nan)}],
    ],
    "ProbeConfig": [
        {"head": "x" * 5000},
        {"pool": torch.zeros(2, 4)},
        {"epochs": 0},
        {"epochs": 10**12},
        {"hidden": 10**9},
        {"learning_rate": float("nan")},
    ],
    "RunConfig": [{"depth": 0}, {"width": ()}, {"seed": -1}, {"seed": 2**64}, {"runtime": "x"}, {"dropout": 10**400}],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, all_ in WRONG_VALUES.items() for wrong in all_])
def test_wrong_values_are_refused_in_one_line(name, wrong, run, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: getattr(ll, name)(**{**right(name, run, opened, tmp_path), **wrong}))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_network_and_no_loader_is_named(run, tmp_path):
    network = ll.split(MODEL, example=(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)), depth=2)
    refused(lambda: ll.load_run(None, run), "network: 'NoneType'")
    refused(lambda: ll.Trainer(network).fit(torch.tensor(1)), "loader: Tensor is not valid")
    refused(lambda: network.module_parameters(torch.zeros(0)), "k: tensor")
    for name in ("pack", "LocalStep", "LoggerInput", "AugmentationInput"):
        refused(lambda name=name: getattr(ll, name)(), name, "missing a required argument")
    refused(lambda: ll.DataConfig(options=torch.zeros(0)), "data.options")


def test_what_has_two_names_is_a_type_error_and_one_of_ours():
    with pytest.raises(TypeError, match="train: config is 3; expected RunConfig"):
        ll.train(3, "runs/a")


def test_a_list_is_as_good_as_a_tuple_and_a_path_as_its_text(run, opened, tmp_path):
    assert ll.RunConfig(depth=2, width=[1, 2], method="gn-dgl").groups == [1, 2]
    assert TrainConfig(epochs=1).epochs == 1
    assert export(opened, str(tmp_path / "out"), ["safetensors"])[0].is_file()
    assert ll.load_exported(tmp_path / "out") is not None
    assert ll.resume(run)["status"] == ll.resume(str(run))["status"] == "finished"
