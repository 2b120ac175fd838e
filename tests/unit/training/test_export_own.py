"""A user's own model, trained as stages, is exported: weights for its class, programs that give its scores."""

import json

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import locallearn as ll
from locallearn.errors import UsageError
from user_models import ResNet, Transformer, images, sequences

SMALL = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}


def gpt2():
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, **SMALL))


IDS = torch.arange(24).view(3, 8) % 32
TEXT = {"input_ids": IDS, "labels": IDS}
CASES = {
    "resnet": (ResNet, images(4), images(1, 5)[0], {}),
    "transformer": (Transformer, sequences(4), sequences(2, 5)[0], {}),
    "gpt2": (gpt2, TEXT, {"input_ids": IDS[:2, :5]}, {"objective": "next-token"}),
}


def trained(name):
    make, batch, other, settings = CASES[name]
    torch.manual_seed(0)
    network = ll.split(make(), example=batch, depth=2, **settings)
    network.step(batch)
    return network, batch, other


def scores(model, inputs):
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, torch.Tensor) else output["logits"]


@pytest.mark.parametrize("name", CASES)
def test_every_file_gives_what_the_model_gives_for_other_sizes_too(tmp_path, name):
    network, batch, other = trained(name)
    files = ll.export(network, tmp_path, ("safetensors", "torch-export"), example=batch)
    assert [path.name for path in files] == ["network.safetensors", "network.pt2", "network.json"]
    expected = scores(network.merge().eval(), other)
    mine = CASES[name][0]()
    assert not torch.equal(scores(mine.eval(), other), expected)
    mine.load_state_dict(load_file(files[0]))
    assert torch.equal(scores(mine.eval(), other), expected)
    program = torch.export.load(files[1], extra_files=(extra := {"locallearn.json": ""})).module()
    torch.testing.assert_close(scores(program, other), expected)
    described = json.loads(files[-1].read_text())
    assert json.loads(extra["locallearn.json"]) == described
    with safe_open(files[0], "pt") as file:
        assert json.loads(file.metadata()["locallearn"]) == described
    assert described["model"] == type(mine).__name__
    assert described["scores"] == list(scores(mine, batch if name == "gpt2" else batch[0]).shape[1:])
    (given,) = described["inputs"]
    assert isinstance(given["shape"][0], str)
    assert given["name"] == ("input_ids" if name == "gpt2" else "0")
    assert network.training


def test_groups_stay_split_in_programs_and_are_joined_in_weights(tmp_path):
    network = ll.split(ResNet(), example=images(), cuts=["layer1.1"], width=2)
    network.step(images())
    files = ll.export(network, tmp_path, ("safetensors", "torch-export"), example=images())
    ResNet().load_state_dict(load_file(files[0]))
    program = torch.export.load(files[1])
    own = sum(value.numel() for value in program.state_dict.values())
    assert own == sum(value.numel() for value in network.model.state_dict().values())
    assert own < sum(value.numel() for value in load_file(files[0]).values())
    torch.testing.assert_close(program.module()(images()[0]), network.merge().eval()(images()[0]))


class Looks(nn.Module):
    """Its Python depends on values, so there is no graph of it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b(x if x.sum().item() > 0 else -x)


def test_what_cannot_be_traced_is_one_line_and_leaves_nothing(tmp_path):
    batch = torch.rand(4, 4), torch.arange(4) % 3
    network = ll.split(Looks(), example=batch, cuts=["a"])
    with pytest.raises(UsageError, match="torch.export cannot trace the model .*; write safetensors alone"):
        ll.export(network, tmp_path, ("torch-export",), example=batch)
    assert list(tmp_path.iterdir()) == []
    files = ll.export(network, tmp_path, ("safetensors",), example=batch)
    with pytest.raises(UsageError, match="is there already; name another folder"):
        ll.export(network, tmp_path, ("safetensors",), example=batch)
    assert files[0].is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "example: a batch is needed"),
        ({"example": images(), "ensemble": True}, "--ensemble: not for a user's own model"),
        ({"example": images(), "formats": ("pickle",)}, "--formats: 'pickle' is not valid"),
    ],
)
def test_wrong_calls_are_one_line(tmp_path, settings, message):
    network = ll.split(ResNet(), example=images(), depth=2)
    with pytest.raises(UsageError, match=message):
        ll.export(network, tmp_path / "new", **{"formats": ("safetensors",), **settings})
    assert not (tmp_path / "new").exists()


def test_onnx_gives_the_same(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    network, batch, other = trained("resnet")
    files = ll.export(network, tmp_path, ("onnx",), example=batch)
    session = runtime.InferenceSession(files[0])
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), network.merge().eval()(other), rtol=1e-4, atol=1e-4)
