"""A stage of a user's model that runs alone computes what it does in the model's own forward pass, bit for bit."""

import copy

import pytest
import torch
import transformers as tf

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.core.local_step import walk
from locallearn.runtime.threads import ThreadsRuntime
from user_models import ResNet, Transformer, images, sequences

IDS = torch.randint(5, 64, (4, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(4, 12, dtype=torch.long)
MASK[1, 7:] = 0
PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(4)
TEXT = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2():
    config = tf.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return tf.GPT2LMHeadModel(config)


def llama():
    config = tf.LlamaConfig(vocab_size=64, num_key_value_heads=2, attention_dropout=0.1, **SMALL)
    return tf.LlamaForCausalLM(config)


def bert():
    return tf.BertForSequenceClassification(tf.BertConfig(vocab_size=64, num_labels=4, **SMALL))


def vit():
    config = tf.ViTConfig(image_size=32, patch_size=8, num_labels=4, hidden_dropout_prob=0.1, **SMALL)
    return tf.ViTForImageClassification(config)


def swin():
    shape = {"depths": [2, 2], "num_heads": [2, 2], "embed_dim": 12, "window_size": 4}
    return tf.SwinForImageClassification(tf.SwinConfig(image_size=32, patch_size=2, num_labels=4, **shape))


def others(package, name, **settings):
    """A model of timm's or torchvision's with random weights; where the package does not work the test is skipped."""

    def make():
        pytest.importorskip("torchvision", reason="needs the package torchvision, which timm needs too")
        library = pytest.importorskip(package, reason=f"needs the package {package}")
        if package == "timm":
            return library.create_model(name, num_classes=4, **settings)
        return library.models.get_model(name, num_classes=4, **settings)

    return make


STALE = ObjectiveConfig(head="terminal", head_options={"blocks": 1, "stale": 2})

CASES = {
    "resnet": (ResNet, images(), {}),
    "transformer": (Transformer, sequences(), {}),
    "gpt2": (gpt2, TEXT, {"objective": "next-token"}),
    "llama": (llama, TEXT, {"objective": "next-token"}),
    "llama-shared": (llama, TEXT, {"objective": "next-token", "head": "shared"}),
    "gpt2-terminal": (gpt2, TEXT, {"objective": "next-token", "head": "terminal", "settings": STALE}),
    "gpt2-auglocal": (gpt2, TEXT, {"objective": "next-token", "head": "auglocal"}),
    "llama-momentum": (llama, TEXT, {"objective": "next-token", "head": "momentum", "context": "image"}),
    "bert": (bert, TEXT | {"labels": CLASSES}, {}),
    "vit": (vit, {"pixel_values": PIXELS, "labels": CLASSES}, {}),
    "swin": (swin, {"pixel_values": PIXELS, "labels": CLASSES}, {}),
    "timm-resnet": (others("timm", "test_resnet"), (PIXELS, CLASSES), {}),
    "timm-convnext": (others("timm", "test_convnext", drop_path_rate=0.2), (PIXELS, CLASSES), {}),
    "timm-efficientnet": (others("timm", "test_efficientnet", drop_path_rate=0.2), (PIXELS, CLASSES), {}),
    "torchvision-squeezenet": (others("torchvision", "squeezenet1_1"), (PIXELS, CLASSES), {}),
}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def both(name):
    """The same network twice; the second one's stages run alone."""
    make, batch, settings = CASES[name]
    torch.manual_seed(0)
    model = make().train()
    whole = ll.split(model, example=batch, depth=3, optimizer=sgd, **settings)
    apart = copy.deepcopy(whole)
    apart.set_optimizers(sgd)
    apart.run_apart()
    return whole, apart, batch


def differing(whole, apart):
    other = apart.state_dict()
    return [name for name, value in whole.state_dict().items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize("name", CASES)
def test_stages_alone_train_what_one_pass_does(name):
    whole, apart, batch = both(name)
    runtime = ThreadsRuntime(apart.steps, 2, 2)
    losses = [whole.walk(whole.steps, whole.given_batch(batch), index) for index in range(4)]
    with runtime:
        alone = [done for index in range(4) for done in runtime.step(apart.given_batch(batch), index)]
        alone += runtime.settle()
    assert [[a.total.tolist() for a in each] for each in losses] == [
        [b.total.tolist() for b in each.losses] for each in alone
    ]
    assert differing(whole, apart) == []


@pytest.mark.parametrize("name", ["llama-shared", "gpt2-terminal"])
def test_an_unembedding_that_is_not_read_anew_would_be_seen(name):
    whole, apart, batch = both(name)
    assert any(stage.reads for stage in apart.model_stages[:-1])
    for stage in apart.model_stages[:-1]:
        stage.reads.clear()
    for index in range(2):
        whole.walk(whole.steps, whole.given_batch(batch), index)
    with ThreadsRuntime(apart.steps, 2, 2) as runtime:
        for index in range(2):
            runtime.step(apart.given_batch(batch), index)
        runtime.settle()
    assert differing(whole, apart) != []


def test_evaluation_of_stages_that_run_alone_reads_the_model_s_own_unembedding():
    whole, apart, batch = both("llama-shared")
    with torch.no_grad():
        for network in (whole, apart):
            network.model.lm_head.weight.mul_(2)
    looks = [[loss for _, _, loss in of.eval().look(of.given_batch(batch))] for of in (whole, apart)]
    assert all(torch.equal(a, b) for a, b in zip(*looks, strict=True))


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_another_seed_of_a_stage_is_noticed(name):
    """The comparison sees what a stage draws: dropout of the second stage alone."""
    whole, apart, batch = both(name)
    apart.steps[1].seed += 1
    whole.walk(whole.steps, whole.given_batch(batch), 0)
    walk(apart.steps, apart.given_batch(batch), 0)
    assert differing(whole, apart) != []


def test_shapes_may_change_from_batch_to_batch():
    whole, apart, batch = both("gpt2")
    parts = [{k: value[:rows, :tokens] for k, value in batch.items()} for rows, tokens in ((4, 12), (2, 12), (3, 7))]
    runtime = ThreadsRuntime(apart.steps, 2, 2)
    for index, part in enumerate(parts):
        whole.walk(whole.steps, whole.given_batch(part), index)
    with runtime:
        for index, part in enumerate(parts):
            runtime.step(apart.given_batch(part), index)
        runtime.settle()
    assert differing(whole, apart) == []


def test_a_stage_alone_needs_no_other_stage_s_weights():
    """Weights of the other stages are not a number; what the stage gives is as before."""
    whole, apart, batch = both("vit")
    features, out = batch["pixel_values"], []
    for step in whole.steps[:2]:
        given = whole.given_batch(batch)
        features = step.module.handed_on(alone_output(whole, step, features, given))
        out.append(features)
    second = apart.model_stages[1]
    own = set(second.piece.parameters)
    with torch.no_grad():
        for name, parameter in apart.model.named_parameters():
            if name not in own:
                parameter.fill_(torch.nan)
    found = alone_output(apart, apart.steps[1], out[0], apart.given_batch(batch))
    assert torch.equal(second.handed_on(found), out[1])


def alone_output(network, step, features, batch):
    network.run_apart()
    with torch.random.fork_rng():
        step.seed_draws(0)
        return step.module(features, batch)


class InPlace(torch.nn.Module):
    """Layers in place after every cut, and a sum in place into what an earlier submodule gave."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Conv2d(i, 8, 3, 1, 1) for i in (3, 8, 8))
        self.relu1, self.relu2, self.fc = (
            torch.nn.ReLU(inplace=True),
            torch.nn.ReLU(inplace=True),
            torch.nn.Linear(8, 4),
        )

    def forward(self, x):
        x = self.relu1(self.a(x))
        y = self.b(x)
        y += 1.0
        y = self.relu2(y)
        z = self.c(y)
        z.relu_()
        return self.fc(z.mean((2, 3)))


def test_layers_in_place_at_a_cut_do_not_reach_into_the_stage_before():
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 16, 16, generator=draw), CLASSES) for _ in range(12)]
    whole = ll.split(InPlace(), example=batches[0], cuts=["a", "b", "c"], optimizer=sgd)
    threads, alone = copy.deepcopy(whole), copy.deepcopy(whole)
    for network in (threads, alone):
        network.set_optimizers(sgd)
        network.run_apart()
    with ThreadsRuntime(threads.steps, 2, 2) as runtime:
        for i, batch in enumerate(batches):
            whole.walk(whole.steps, whole.given_batch(batch), index=i)
            walk(alone.steps, alone.given_batch(batch), index=i)
            runtime.step(threads.given_batch(batch), i)
        runtime.settle()
    assert differing(whole, alone) == []
    assert differing(whole, threads) == []
