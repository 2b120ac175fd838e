"""Self-supervised methods on several processes give the weights of the inline runtime, as in ``test_exact``."""

import dataclasses

import pytest
import torch

import small
from distributed.compare import CLOSE, FAULT, distance, figures, last_checkpoint, on
from distributed.processes import train_all
from distributed.worker import FAULTS, in_fp64
from locallearn.config import AugmentConfig, ModificationConfig, ObjectiveConfig, OptimizerConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError
from locallearn.training import runs
from locallearn.training.verify_processes import trial_mesh

GENTLE = OptimizerConfig(learning_rate=0.01)
VIEWS = AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0)
DGSSL = small.config("dgssl", 2, (1,), augment=VIEWS, optimizer=GENTLE)
WIDE = dataclasses.replace(DGSSL, width=(2,))
BARLOW = dataclasses.replace(DGSSL, objective=ObjectiveConfig(loss="barlow-twins"))
VICREG = dataclasses.replace(DGSSL, objective=ObjectiveConfig(loss="vicreg"))
SIMCLR = dataclasses.replace(DGSSL, method="simclr", depth=1)


def chosen(scorer, config=DGSSL):
    pairs = ModificationConfig(scorer=scorer, positive_ratio=0.8, negative_ratio=0.8)
    return dataclasses.replace(config, method="dgssl-llm", objective=ObjectiveConfig(modification=pairs))


EXACT = {
    "dgssl": on(DGSSL, 2),
    "llm_self": on(chosen("self"), 2),
    "llm_pretrained": on(chosen("pretrained"), 2),
    "vicreg": on(VICREG, 2),
}
ROUNDED = {
    2: {
        "width_dgssl": on(WIDE, 1, 2),
        "width_llm": on(chosen("self", WIDE), 1, 2),
        "width_pretrained": on(chosen("pretrained", WIDE), 1, 2),
        "data_dgssl": on(DGSSL, 1, 1, 2),
        "data_llm": on(chosen("augmentation"), 1, 1, 2),
        "data_pretrained": on(chosen("pretrained"), 1, 1, 2),
        "data_barlow": on(BARLOW, 1, 1, 2),
        "data_vicreg": on(VICREG, 1, 1, 2),
        "mispaired_views": on(DGSSL, 1, 1, 2),
        "other_views": on(DGSSL, 1, 1, 2),
    },
    4: {"both": on(WIDE, 2, 1, 2)},
}


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """The run whose network says how alike two views are."""
    run = tmp_path_factory.mktemp("scorer") / "run"
    runs.train(SIMCLR, run)
    return run


def scored_by(config, run):
    """The configuration with the scorer's run, where it has a scorer that needs one."""
    if config.method != "dgssl-llm" or config.objective.modification.scorer != "pretrained":
        return config
    pairs = dataclasses.replace(config.objective.modification, scorer_run=str(run))
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, modification=pairs))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scorer):
    """Runs of all cases, by number of processes."""
    folders = {}
    for count, cases in ROUNDED.items():
        folders[count] = tmp_path_factory.mktemp(f"on{count}")
        cases = {f"fp64_{name}": config for name, config in cases.items()} | (EXACT if count == 2 else {})
        train_all({name: scored_by(config, scorer) for name, config in cases.items()}, folders[count], count)
    return folders


def cases(faults=False):
    listed = [(count, name) for count, found in ROUNDED.items() for name in found]
    return [(count, name) for count, name in listed if (name in FAULTS) == faults]


@pytest.mark.parametrize("name", EXACT)
def test_depth_is_exact(trained, scorer, inline_run, name):
    run = inline_run(scored_by(EXACT[name], scorer))
    expected = last_checkpoint(run).tensors
    found = last_checkpoint(trained[2] / name).tensors
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert figures(trained[2] / name) == figures(run)  # neighbours and shares of pairs among them


@pytest.mark.parametrize(("count", "name"), cases())
def test_width_and_data_are_exact_but_for_rounding(trained, scorer, inline_run, count, name):
    with in_fp64():
        expected = last_checkpoint(inline_run(scored_by(ROUNDED[count][name], scorer)))
    assert distance(last_checkpoint(trained[count] / f"fp64_{name}"), expected) < CLOSE


@pytest.mark.parametrize(("count", "name"), cases(faults=True))
def test_planted_errors_are_seen(trained, inline_run, count, name):
    with in_fp64():
        expected = last_checkpoint(inline_run(ROUNDED[count][name]))
    assert distance(last_checkpoint(trained[count] / f"fp64_{name}"), expected) > FAULT


def test_a_moving_average_scores_in_one_process_only():
    config = on(chosen("ema"), 2)
    with pytest.raises(ConfigError, match=r"scorer: 'ema' .* another scorer with runtime distributed, where no"):
        build_network(config, ImageShape(1, 8, 10))
    assert trial_mesh(chosen("ema")) is None  # and so `verify` leaves that check out
    assert trial_mesh(chosen("self")).depth == 2
