import pytest

from locallearn.config import from_toml, to_toml
from locallearn.errors import LocalLearnError
from locallearn.recipes.batch_size import fitted
from locallearn.recipes.named import digits, recipe, recipe_names
from locallearn.recipes.newer import VARIANTS
from locallearn.recipes.with_labels import resnet, vgg
from locallearn.recipes.without_labels import self_supervised, self_supervised_digits

VGGS = ("vgg6a", "vgg16a", "vgg19a")


@pytest.mark.parametrize("name", recipe_names())
def test_every_listed_recipe_is_a_complete_configuration(name):
    config = recipe(name)
    assert from_toml(to_toml(config)) == config
    variant = max((suffix for suffix in VARIANTS if name.endswith(suffix)), key=len, default=None)
    assert config.method == VARIANTS[variant].method if variant else name.endswith(config.method)


@pytest.mark.parametrize("method", ["e2e", "dgl", "gn-dgl", "infopro", "predsim", "single-thread"])
def test_names_find_their_recipe(method):
    assert recipe(method) == digits(method)
    assert recipe(f"resnet32-{method}") == resnet("resnet32", method)
    assert recipe(f"vgg6ax3-{method}") == vgg("vgg6ax3", method)


@pytest.mark.parametrize("method", ["simclr", "dgssl", "dgssl-llm"])
def test_names_find_their_self_supervised_recipe(method):
    assert recipe(method) == digits(method) == self_supervised_digits(method)
    assert recipe(f"resnet18x0.25-{method}") == self_supervised("resnet18x0.25", method)
    assert recipe(f"tiny-resnet-{method}").model == "tiny-resnet"


def test_self_supervised_recipe_is_that_of_chapter_4():
    config = recipe("resnet50-dgssl-llm")
    assert (config.method, config.depth, config.objective.head, config.objective.projection) == (
        "dgssl-llm", 4, "1c2f", 128,
    )  # fmt: skip
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
        "adam",
        1e-3,
        1e-6,
    )
    assert (config.train.batch_size, config.objective.temperature, config.schedule.name) == (256, 0.5, "constant")
    augment = config.augment
    assert (augment.resized_crop, augment.flip, augment.jitter, augment.grey) == ((0.08, 1.0), 0.5, 0.8, 0.2)
    assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (config.data.mean, config.data.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (config.objective.modification.scorer, config.objective.modification.positive_ratio) == (
        "pretrained",
        0.95,
    )


def test_self_supervised_vggs_are_cut_after_every_block():
    found = [(recipe(f"{model}-dgssl").depth, recipe(f"{model}-dgssl").objective.head) for model in VGGS]
    assert found == [(5, "0c2f"), (14, "0c2f"), (17, "0c2f")]
    assert recipe("vgg16a-simclr").depth == 1


@pytest.mark.parametrize("name", ["", "gn_dgl", "vgg6a", "resnet9-dgl", "resnet32-6group-gn-dgl", "vgg6a-6group-dgl"])
def test_an_unknown_recipe_is_one_line(name):
    with pytest.raises(LocalLearnError) as caught:
        recipe(name)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value) or "Did you mean" in str(caught.value)


def test_resnet_recipe_is_that_of_sec_3_3_2():
    config = recipe("resnet32-infopro")
    assert (config.method, config.depth, config.width, config.objective.head) == ("infopro", 4, (1,), "1c2f")
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.nesterov) == ("sgd", 0.8, True)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
    assert (config.train.epochs, config.train.batch_size, config.data.name) == (160, 1024, "cifar10")
    assert (config.schedule.name, config.schedule.warmup_epochs, config.schedule.warmup_rate) == ("cosine", 10, 0.01)


def test_vgg_recipe_is_that_of_sec_3_3_1():
    config = recipe("vgg6a-gn-dgl")
    assert (config.depth, config.width, config.dropout) == (5, (2, 4, 2, 1, 1), 0.01)
    assert (config.objective.loss, config.objective.predsim_weight, config.objective.predsim_inputs) == (
        "predsim",
        0.99,
        2048,
    )
    assert (config.objective.stop_gradient, config.objective.diversity_weight) == (True, 0.5)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == ("adam", 1e-3, 0)
    assert (config.schedule.milestones, config.schedule.factors) == ((50, 100), (0.5, 0.1))
    assert (config.train.epochs, config.train.batch_size) == (150, 128)


@pytest.mark.parametrize("split", [2, 4, 6, 8, 10])
def test_splits_of_table_3_1(split):
    expected = (split, 2 * split, split, 1, 1)
    assert vgg("vgg6a", "gn-dgl", split).width == expected
    assert recipe(f"vgg6a-{split}group-gn-dgl").width == expected
    assert recipe(f"vgg6ax2-{split}group-gn-dgl").model == "vgg6ax2"


def test_layerwise_dgl_of_vgg_is_predsim_of_one_group():
    config = recipe("vgg6a-dgl")
    assert (config.depth, config.width, config.objective.loss) == (5, (1,), "predsim")
    assert (recipe("vgg16a-dgl").depth, recipe("vgg19a-dgl").depth) == (14, 17)
    assert (recipe("vgg6a-e2e").depth, recipe("vgg6a-single-thread").width) == (1, (2,))
    assert recipe("vgg6a-predsim").objective.loss is None


@pytest.mark.parametrize(
    ("images", "batch", "rate"),
    [(50_000, 1024, 0.8), (20_480, 1024, 0.8), (20_000, 512, 0.4), (1000, 32, 0.025), (50, 16, 0.0125)],
)
def test_recipes_fit_the_size_of_the_data_set(images, batch, rate):
    """Of 1,000 images, batches of 1,024 would be one step an epoch at a rate for 48."""
    fit = fitted(recipe("resnet8-gn-dgl"), images)
    assert (fit.train.batch_size, fit.optimizer.learning_rate) == (batch, pytest.approx(rate))


def test_the_rate_of_adam_does_not_go_with_the_batch():
    fit = fitted(recipe("vgg6a-dgl"), 1000)
    assert (fit.train.batch_size, fit.optimizer.learning_rate) == (32, 1e-3)
