"""``bench model``: models by name, ways that train what they say, and rows of processes of their own."""

import copy
import json
import sys
import types

import pytest
import torch
from torch import nn

from locallearn.bench.step import OnThreads
from locallearn.bench.user_model import load
from locallearn.bench.ways import STEPS_ON_THREADS, Heads, Kind, Way, checkpoint_blocks, ways
from locallearn.cli.main import main
from locallearn.cli.named_models import Inputs
from locallearn.errors import LocalLearnError, UsageError
from user_models import ResNet, Transformer, images, sequences

OWN = """
import torch
from torch import nn
from torch import nn


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, 1, 1), nn.Sequential(*(Residual() for _ in range(4)))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def alone():
    return Net()


def pair():
    return Net(), (torch.randn(6, 3, 8, 8), torch.arange(6))


def fails():
    raise ValueError("no weights")


def number():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_models_by_name(own):
    model, (pictures, labels) = load(f"{own}:alone", Inputs(batch_size=2, image_size=16))
    assert pictures.shape == (2, 3, 16, 16)
    assert labels.max() < 10
    assert model.training
    assert len(load(f"{own}:pair", Inputs())[1][0]) == 6
    assert torch.equal(load(f"{own}:alone", Inputs())[0].fc.weight, load(f"{own}:alone", Inputs())[0].fc.weight)


def test_models_of_transformers():
    pytest.importorskip("transformers", reason="needs the package transformers")
    inputs = Inputs(batch_size=3, image_size=32, tokens=16)
    model, batch = load("hf:gpt2?n_layer=1&n_embd=16&n_head=2&vocab_size=64", inputs)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert batch["input_ids"].shape == (3, 16)
    small = "num_hidden_layers=1&hidden_size=32&num_attention_heads=2&intermediate_size=64"
    model, batch = load(f"hf:vit?{small}", inputs)
    assert model.config.num_labels == 1000
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    model, batch = load(f"hf:vit?{small}&image_size=16&num_labels=5", inputs)
    assert batch["pixel_values"].shape[2:] == (16, 16)
    assert model.config.num_labels == 5
    assert type(load(f"hf:bert?{small}", inputs)[0]).__name__ == "BertForMaskedLM"
    model, _ = load("hf:vit-s16", Inputs(batch_size=1))
    assert sum(p.numel() for p in model.parameters()) == 22_050_664  # as timm's vit_small_patch16_224 has


def timm_like(name, pretrained, in_chans=3, img_size=None):
    """A model as timm makes it: what it was made for is in ``default_cfg``, whatever it is built with."""
    model = nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    model.default_cfg = {"input_size": (3, 12, 20)}
    return model


@pytest.mark.parametrize(
    ("settings", "size", "shape"),
    [
        ("", None, (2, 3, 12, 20)),
        ("", 16, (2, 3, 16, 16)),
        ("?img_size=24", None, (2, 3, 24, 24)),
        ("?img_size=(8,16)&in_chans=1", None, (2, 1, 8, 16)),
    ],
)
def test_pictures_are_of_the_size_that_a_model_of_timm_is_built_for(settings, size, shape, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=timm_like))
    _, (pictures, labels) = load(f"timm:any{settings}", Inputs(batch_size=2, image_size=size))
    assert pictures.shape == shape
    assert labels.max() < 5


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "hf_hub:somebody/model", "local-dir:/tmp/model"])
def test_models_of_timm_that_would_be_fetched_are_refused(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=None))
    with pytest.raises(LocalLearnError, match=f"bench model: timm:{name} is no model of timm's own"):
        load(f"timm:{name}", Inputs())


def test_code_beside_a_configuration_of_transformers_is_not_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="needs the package transformers")
    code = {"AutoConfig": "beside.Own", "AutoModelForCausalLM": "beside.OwnModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type", "auto_map": code}))
    (tmp_path / "beside.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks whoever sits at the terminal
    with pytest.raises(LocalLearnError, match="custom code") as found:
        load(f"hf:{tmp_path}/", Inputs())
    assert "\n" not in str(found.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet32", "'resnet32' is not valid; expected package.module:function, timm:NAME, or hf:CONFIG"),
        ("no.such:thing", "bench model: no.such:thing fails: ModuleNotFoundError"),
        ("OWN:nothing", "OWN:nothing fails: AttributeError"),
        ("OWN:fails", "OWN:fails fails: ValueError: no weights"),
        ("OWN:number", "OWN:number gave int; expected a model, or a pair"),
        ("hf:gpt77", "hf:gpt77: "),
        ("hf:gpt2?n_layer", "'n_layer' in 'gpt2.n_layer' is not valid; expected setting=value"),
        ("hf:wav2vec2", "transformers has none of ImageClassification"),
    ],
)
def test_wrong_names_are_one_line(own, name, message):
    if name.startswith("hf:"):
        pytest.importorskip("transformers", reason="needs the package transformers")
    with pytest.raises(LocalLearnError, match=message.replace("OWN", own)) as found:
        load(name.replace("OWN", own), Inputs())
    assert "\n" not in str(found.value)


def trained(way, make=ResNet, batch=None, steps=2):
    torch.manual_seed(0)
    model = make().train()
    contender = way.build(model, images() if batch is None else batch)
    for _ in range(steps):
        contender.step()
    return list(contender.parameters)


def test_checkpointing_trains_the_same_bits():
    pairs = zip(trained(Way("checkpointing")), trained(Way("backprop")), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_compiled_checkpointing_trains_the_same_and_keeps_less(monkeypatch):
    """Traced as it is when it is compiled, without waiting for a compiler."""
    compiler, block = (
        torch.compile,
        torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)),
    )
    monkeypatch.setattr(torch, "compile", lambda model: compiler(model, backend="aot_eager"))
    model = torch.nn.Sequential(*(copy.deepcopy(block) for _ in range(4)), torch.nn.Linear(8, 4))
    batch = (torch.randn(64, 8), torch.arange(64) % 4)
    kinds: tuple[Kind, ...] = ("backprop", "compiled-checkpointing")
    plain, compiled = (Way(kind).build(copy.deepcopy(model), batch) for kind in kinds)
    losses = [[one.step().item() for _ in range(3)] for one in (plain, compiled)]  # type: ignore[attr-defined]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][2] < losses[0][0]
    assert compiled.peak_bytes() < 0.6 * plain.peak_bytes()


def test_one_local_stage_trains_the_same_bits():
    pairs = zip(trained(Way("inline", 1)), trained(Way("backprop")), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_stages_on_threads_are_timed_when_they_are_busy():
    """What fills them is trained and not timed: every step before the clock, and what is on its way after it."""
    torch.set_num_threads(2)
    contender = Way("threads", 2).build(ResNet(), images())
    assert isinstance(contender, OnThreads)
    numbers, step = [], contender.runtime.step

    def counted(batch, index, *rest):
        numbers.append(index)
        return step(batch, index, *rest)

    contender.runtime.step = counted  # type: ignore[method-assign]
    assert contender.seconds(lambda: numbers.append("waited")) > 0  # type: ignore[arg-type]
    assert contender.steps == STEPS_ON_THREADS
    assert numbers == [*range(2 + 1 + STEPS_ON_THREADS), "waited"]


def test_accumulation_is_the_mean_over_micro_batches():
    """Gradients are the same without batch norm, and with it they are not."""

    def near(make, batch):
        whole, halves = (trained(Way(*way), make, batch, 1) for way in (("backprop",), ("accumulation", 2)))
        return all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in zip(whole, halves, strict=True))

    assert near(Transformer, sequences())
    assert not near(ResNet, images())


def test_checkpointing_keeps_less_and_counts_what_runs_again():
    torch.manual_seed(0)

    def peak(way):
        return way.build(torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(),
               torch.nn.Linear(64, 64)) for _ in range(8)), torch.nn.Linear(64, 4)), batch).peak_bytes()  # fmt: skip

    batch = (torch.randn(256, 64), torch.arange(256) % 4)
    kept = {kind: peak(Way(kind, 2)) for kind in ("backprop", "accumulation")}
    assert kept["accumulation"] == pytest.approx(kept["backprop"] / 2, rel=0.05)
    assert peak(Way("inline", 4)) < 0.4 * kept["backprop"]


def test_a_model_without_blocks_has_no_checkpointing():
    with pytest.raises(UsageError, match="no list of blocks"):
        checkpoint_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))


def test_ways_by_name():
    found = ways(["compiled", "accumulation"], [2, 4], ["inline", "threads"], 8, Way("backprop", heads=Heads("0c2f")))
    assert [way.name for way in found] == [
        "backprop", "compiled", "accumulation, 8 micro-batches",
        "local K=2", "local K=2 threads", "local K=4", "local K=4 threads",
    ]  # fmt: skip
    assert found[-1].heads.head == "0c2f"


def test_every_way_in_a_process_of_its_own(own, capsys):
    call = ["bench", "model", f"{own}:pair", "--depth", "2"]
    more = ["--baselines", "checkpointing", "--repeats", "2", "--threads", "1", "--runtimes", "inline", "threads"]
    assert main([*call, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == 4
    for name in ("backprop", "checkpointing", "local K=2"):
        row = rows[name]
        assert row["seconds"] > 0
        assert row["time"] > 0
        assert row["resident_bytes"] > 2**26  # torch alone
        assert row["memory"] == row["activation_bytes"] / rows["backprop"]["activation_bytes"]
    assert rows["backprop"]["time"] == rows["backprop"]["memory"] == 1
    assert rows["checkpointing"]["memory"] < 0.7
    assert "two CPU threads" in rows["local K=2 threads"]["error"]
    assert main([*call, "--baselines", "--bytes-only"]) == 0
    said = capsys.readouterr().out
    assert "nothing timed" in said
    assert "local K=2" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ([], "bench model: MODEL is missing; expected package.module:function"),
        (["--depth", "2"], "bench model: MODEL is missing"),
        (["a:b", "--depth", "0"], "--depth: 0"),
        (["a:b", "--micro-batches", "1"], "--micro-batches: 1"),
        (["a:b", "--limit", "0"], "--limit: 0"),
        (["a:b", "--runtimes", "cuda-graphs"], "cuda-graphs"),
        (["nothing:here", "--bytes-only"], "bench model: nothing:here fails: ModuleNotFoundError"),
    ],
)
def test_wrong_calls_are_one_line(call, message, capsys):
    assert main(["bench", "model", *call]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
