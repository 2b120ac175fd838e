"""A setting that only other losses read is refused: it would change nothing."""

import dataclasses

import pytest

import locallearn as ll
import small
import user_models
from locallearn.config import ObjectiveConfig
from locallearn.config.loss_settings import LOSSES_OF, check_settings
from locallearn.core.methods import methods

CHANGED = {
    "infopro_loss": "cross-entropy",
    "infopro_weights": (1.0, 1.0, 1.0, 1.0),
    "predsim_inputs": 512,
    "predsim_weight": 0.5,
    "projection": 32,
    "redundancy_weight": 0.01,
    "temperature": 0.2,
    "vicreg_weights": (1.0, 1.0, 1.0),
}


def build(method, **objective):
    return methods.build(method, small.config(method, 2, (1,), objective=ObjectiveConfig(**objective)))


@pytest.mark.parametrize("setting", sorted({*LOSSES_OF} - {"temperature"}))
@pytest.mark.parametrize("loss", ["cross-entropy", "supervised-contrastive", "rebuilt-input"])
def test_of_a_loss_that_reads_none_of_them(loss, setting):
    given = {"loss": loss, setting: CHANGED[setting]}
    expected = rf"objective.{setting}: .* is not valid; expected its default with loss {loss}; it is a setting of "
    with pytest.raises(ll.LocalLearnError, match=expected + LOSSES_OF[setting][0]):
        build("dgl", **given)
    with pytest.raises(ll.LocalLearnError, match=rf"settings.{setting}: .* expected its default with loss {loss}"):
        ll.split(
            user_models.ResNet(),
            depth=2,
            example=user_models.images(),
            objective=loss,
            settings=ObjectiveConfig(**{setting: CHANGED[setting]}),
        )


@pytest.mark.parametrize("setting", LOSSES_OF)
def test_the_losses_that_read_it_take_it(setting):
    for loss in LOSSES_OF[setting]:
        with_views = loss not in ("infopro", "predsim")
        method = "dgssl-llm" if loss == "nt-xent-llm" else "dgssl" if with_views else loss
        module = build(method, loss=loss, **{setting: CHANGED[setting]}).modules[0]
        assert getattr(module.objective, setting) == CHANGED[setting]


def test_the_penalty_of_transport_is_beside_a_loss_that_reads_it():
    build("dgl", loss="transport", options={"of": "infopro"}, infopro_loss="cross-entropy")
    with pytest.raises(ll.LocalLearnError, match="expected its default with loss transport; it is a setting of"):
        build("dgl", loss="transport", infopro_loss="cross-entropy")


def test_a_setting_with_a_namesake_among_the_losss_own_names_it():
    expected = r"\(that of supervised-contrastive is objective.options.temperature\)"
    with pytest.raises(ll.LocalLearnError, match=expected):
        build("dgl", loss="supervised-contrastive", temperature=0.2)
    module = build("dgl", loss="supervised-contrastive", options={"temperature": 0.2}).modules[0]
    assert module.objective.options.temperature == 0.2


def test_a_loss_of_a_plugin_may_read_all():
    check_settings(ObjectiveConfig(**CHANGED), "of-a-plugin")


@pytest.mark.parametrize(
    ("method", "loss"), [("dgssl", "vicreg"), ("dgssl", "barlow-twins"), ("dgl", "cross-entropy")]
)
def test_recipes_without_labels_turn_to_another_loss_or_method_with_the_temperature_that_they_have(method, loss):
    recipe = ll.recipe("dgssl")
    assert recipe.objective.temperature == 0.5
    turned = dataclasses.replace(recipe, method=method, objective=dataclasses.replace(recipe.objective, loss=loss))
    assert methods.build(method, turned).modules[0].objective.loss == loss
