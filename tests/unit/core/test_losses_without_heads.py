"""An auxiliary head is named only where the loss has one: elsewhere it would change nothing."""

import dataclasses

import pytest
import torch

import locallearn as ll
import small
import user_models
from locallearn.config import ObjectiveConfig
from locallearn.core.methods import methods

WITHOUT = ("predsim", "input-similarity", "random-targets", "rebuilt-input")


@pytest.mark.parametrize("loss", WITHOUT)
def test_a_head_that_a_loss_would_not_make_is_refused(loss):
    config = small.config("gn-dgl", 2, (2,), objective=ObjectiveConfig(loss=loss))
    assert methods.build("gn-dgl", config).modules[0].objective.loss == loss
    with_head = dataclasses.replace(config, objective=ObjectiveConfig(loss=loss, head="auglocal"))
    message = rf"objective.head: 'auglocal' is not valid; expected 1c2f, the default, with loss {loss}, which"
    with pytest.raises(ll.LocalLearnError, match=message):
        methods.build("gn-dgl", with_head)


@pytest.mark.parametrize("head", ["auglocal", "flat", torch.nn.Flatten(), lambda given: torch.nn.Flatten()])
@pytest.mark.parametrize("loss", WITHOUT)
def test_of_models_of_ones_own_too(loss, head):
    batch = user_models.images()
    assert ll.split(user_models.ResNet(), depth=2, example=batch, objective=loss).depth == 2
    with pytest.raises(
        ll.LocalLearnError, match=rf"head: .* is not valid; expected none with objective {loss}, which"
    ):
        ll.split(user_models.ResNet(), depth=2, example=batch, objective=loss, head=head)


@pytest.mark.parametrize("method", ["mae", "greedy-infomax", "predsim"])
def test_of_methods_with_one_loss(method):
    recipe = ll.recipe({"mae": "vit-tiny-mae", "greedy-infomax": "vgg6a-greedy-infomax"}.get(method, "predsim"))
    methods.build(method, recipe)
    with pytest.raises(ll.LocalLearnError, match="objective.head: 'flat' is not valid; expected 1c2f, the default"):
        methods.build(
            method, dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, head="flat"))
        )


def test_of_a_loss_beside_the_transport_penalty():
    objective = ObjectiveConfig(loss="transport", options={"of": "predsim"}, head="flat")
    with pytest.raises(
        ll.LocalLearnError, match="with loss transport, which has classifiers and convolutions of its own"
    ):
        methods.build("gn-dgl", small.config("gn-dgl", 2, (2,), objective=objective))


def scorer(**given):
    network = ll.split(user_models.ResNet(), depth=2, example=user_models.images(), **given)
    return type(network.stages[0].objective).__name__, sum(
        p.numel() for p in network.stages[0].objective.parameters()
    )


def test_settings_name_a_head_and_a_loss_too():
    flat, plain = scorer(head="flat"), scorer()
    assert scorer(settings=ObjectiveConfig(head="flat")) == flat != plain
    assert scorer(head="flat", settings=ObjectiveConfig(head="flat")) == flat
    named = scorer(objective="supervised-contrastive")
    assert scorer(settings=ObjectiveConfig(loss="supervised-contrastive")) == named != plain
    options = {"hidden": 3}
    assert scorer(settings=ObjectiveConfig(head="flat", head_options=options)) != flat
    with pytest.raises(ll.LocalLearnError, match=r"head: 'flat' is not valid; expected none with objective predsim"):
        scorer(objective="predsim", settings=ObjectiveConfig(head="flat"))


def test_two_names_of_one_thing_are_one_line():
    for given, expected in (
        (
            {"head": "flat", "settings": ObjectiveConfig(head="auglocal")},
            r"settings.head: .* what head is \('flat'\)",
        ),
        (
            {"objective": torch.nn.functional.cross_entropy, "settings": ObjectiveConfig(loss="infopro")},
            r"settings.loss: 'infopro' is not valid; expected what objective is \(a function\), or left out",
        ),
    ):
        with pytest.raises(ll.LocalLearnError, match=expected):
            scorer(**given)
