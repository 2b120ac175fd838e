import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locallearn.config import (
    CheckpointConfig,
    DataConfig,
    ModificationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    digest,
    from_dict,
    from_toml,
    to_toml,
)
from locallearn.errors import ConfigError

configs = st.builds(
    RunConfig,
    method=st.sampled_from(["e2e", "dgl", "gn-dgl"]),
    depth=st.just(3),
    width=st.one_of(st.tuples(st.integers(1, 8)), st.tuples(*[st.integers(1, 8)] * 3)),
    seed=st.integers(0, 2**63 - 1),
    objective=st.builds(ObjectiveConfig, diversity_weight=st.floats(0, 10), stop_gradient=st.booleans()),
    optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(0, 10)),
    schedule=st.builds(
        ScheduleConfig, milestones=st.just((3, 7)), factors=st.tuples(st.floats(0, 1), st.floats(0, 1))
    ),
    train=st.builds(
        TrainConfig, precision=st.sampled_from([None, "fp32", "bf16"]), threads=st.none() | st.integers(1)
    ),
    data=st.builds(DataConfig, root=st.none() | st.text(st.characters(codec="utf-8"))),
)


@given(configs)
def test_toml_out_and_in_is_without_loss(config):
    assert from_toml(to_toml(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depht = 3", "depht: 3 is not valid; expected a known setting"),
        ("[train]\nbatchsize = 3", "train.batchsize: 3 is not valid; expected a known setting"),
        ("[train]\nepochs = 'x'", "train.epochs: 'x' is not valid; expected a valid integer"),
        ("[train]\nepochs = 0", "train.epochs: 0 is not valid; expected a whole number of at least 1"),
        ("[optimizer]\nname = 'lamb'", "optimizer.name: 'lamb' is not valid; expected one of adam, adamw"),
        ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate: nan is not valid; expected a finite number"),
        ("depth = ", "config: 'text' is not valid; expected TOML"),
    ],
)
def test_wrong_toml_is_one_line_that_names_field_and_value(text, message):
    with pytest.raises(ConfigError) as caught:
        from_toml(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RunConfig(depth=0), "depth: 0"),
        (lambda: RunConfig(depth=True), "depth: True"),
        (lambda: RunConfig(depth=3, width=(2, 4)), "one for each of the 3 modules"),
        (lambda: RunConfig(width=()), "width: ()"),
        (lambda: RunConfig(width=(0,)), "width: 0"),
        (lambda: RunConfig(seed=-1), "seed: -1"),
        (lambda: RunConfig(dropout=1.0), "dropout: 1.0"),
        (lambda: TrainConfig(batch_size=1), "batch norm needs two"),
        (lambda: TrainConfig(precision="fp8"), "one of fp32, bf16, fp16"),  # type: ignore[arg-type]
        (lambda: OptimizerConfig(momentum=0.0), "optimizer.nesterov"),
        (lambda: ScheduleConfig(milestones=(5, 3), factors=(1.0, 1.0)), "rising epochs"),
        (lambda: ScheduleConfig(milestones=(5,)), "one factor for each"),
        (lambda: ObjectiveConfig(diversity_temperature=0.0), "above 0"),
        (lambda: CheckpointConfig(keep_last=0), "checkpoint.keep_last: 0"),
    ],
)
def test_values_are_checked_where_they_are_built(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().depth = 2  # type: ignore[misc]


def test_groups_are_spread_over_modules():
    assert RunConfig(depth=3, width=(2,)).groups == (2, 2, 2)
    assert RunConfig(depth=3, width=(2, 4, 2)).groups == (2, 4, 2)


def test_digest_names_what_is_computed():
    base = RunConfig()
    same = (
        dataclasses.replace(base, seed=7),
        dataclasses.replace(base, data=DataConfig(root="/elsewhere", download=True)),
        dataclasses.replace(base, train=TrainConfig(device="cpu", threads=2)),
        dataclasses.replace(base, checkpoint=CheckpointConfig(every_steps=3)),
    )
    other = (
        dataclasses.replace(base, depth=2),
        dataclasses.replace(base, train=TrainConfig(epochs=11)),
        dataclasses.replace(base, data=DataConfig(train_limit=5)),
    )
    assert {digest(config) for config in same} == {digest(base)}
    assert len({digest(config) for config in (base, *other)}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_others": 0}, "pool_others: 0 "),
        ({"pool_others": 2, "stop_gradient": False}, "pool_others: 2 .* expected 1 without objective.stop_gradient"),
        ({"pool_others": 2, "head": "0c2f"}, "pool_others: 2 .* expected 1 with objective.head 0c2f, which pools"),
        ({"pool_others": 2, "head": "mlp-sr"}, "expected 1 with objective.head mlp-sr, which pools"),
    ],
)
def test_pooling_where_nothing_is_pooled_is_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**settings)
    assert ObjectiveConfig(pool_others=2, head="0c2f", loss="predsim").pool_others == 2  # whose heads are its own


def test_settings_at_their_defaults_are_no_part_of_a_digest():
    nothing = hashlib.sha256(b"{}").hexdigest()[:16]
    assert digest(RunConfig()) == nothing
    assert digest(dataclasses.replace(RunConfig(), train=TrainConfig(epochs=11))) != nothing


def test_where_a_scorer_lies_is_no_part_of_a_digest():
    def of(**modification):
        objective = ObjectiveConfig(modification=ModificationConfig(**modification))
        return digest(dataclasses.replace(RunConfig(), objective=objective))

    assert of(scorer_run="runs/simclr") == of(scorer_run="/elsewhere") == of() == digest(RunConfig())
    assert of(positive_ratio=0.5) != of()


def test_from_dict_takes_what_to_toml_wrote():
    assert from_dict({"depth": 2, "width": [2, 4], "train": {"epochs": 3}}).groups == (2, 4)
