"""``ll.probe``, ``ll.embed`` and ``ll.load_run`` on a user's own model and loaders."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.errors import CheckpointError, ConfigError, UsageError
from locallearn.training import probe_heads
from user_models import ResNet, Transformer, UNet, images, sequences

DATA = [images(seed=seed) for seed in range(4)]
TEST = [images(seed=9)]
QUICK = ll.ProbeConfig(epochs=3, batch_size=8)


def network(**settings):
    torch.manual_seed(0)
    return ll.split(ResNet(), example=DATA[0], depth=3, **settings)


def state(of):
    return {name: value.clone() for name, value in of.state_dict().items()}


def same(before, after):
    return all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_probe_of_each_stage_is_one_trained_alone_on_its_features():
    of = network()
    before = state(of)
    found = ll.probe(of, QUICK, train=DATA, test=TEST)
    assert ll.probe(of, train=DATA, test=TEST)["protocol"]["epochs"] == ll.ProbeConfig().epochs
    assert [point["block"] for point in found["points"]] == [piece.path or "end" for piece in of.pieces]
    assert found["forward_passes"] == len(DATA) + len(TEST)
    assert found["protocol"]["train_images"] == 24
    assert same(before, of.state_dict())
    assert of.training
    assert all(parameter.grad is None for parameter in of.parameters())
    reader = ll.Trainer(of)
    for k, point in enumerate(found["points"], start=1):
        accuracy, loss = alone(reader.features(DATA, k), reader.features(TEST, k), k)
        assert point["accuracy"] == pytest.approx(accuracy)
        assert point["loss"] == pytest.approx(loss, rel=1e-4)
    assert alone(reader.features(DATA, 2), reader.features(TEST, 2), 1)[1] != pytest.approx(loss, rel=1e-4)


def alone(train, test, depth):
    """Adam and the cosine in a plain loop over the whole training set, in the probe's order."""
    labels, wanted = torch.cat([y for _, y in DATA]), TEST[0][1]
    head = probe_heads.probe_head(train.shape[1], 5, QUICK)
    probe_heads.initialise(head, 1, 0, "probe", depth)
    optimizer = torch.optim.Adam(head.parameters(), weight_decay=1e-6)
    for epoch in range(3):
        draws = ll_generator(epoch)
        for step, chosen in enumerate(torch.randperm(24, generator=draws).split(8)):
            passed = (3 * epoch + step) / 9
            optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + np.cos(np.pi * passed))
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(train[chosen]), labels[chosen]).backward()
            optimizer.step()
    scores = head.eval()(test)
    return (scores.argmax(1) == wanted).double().mean().item(), nn.functional.cross_entropy(scores, wanted).item()


def ll_generator(epoch):
    from locallearn import seeding

    return seeding.generator(0, "probe", "order", epoch)


def test_the_last_stage_is_left_out_where_nothing_linear_makes_its_scores():
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 5), nn.LogSoftmax(1))
    of = ll.split(model, example=DATA[0], cuts=["2"])
    assert [point["block"] for point in ll.probe(of, QUICK, train=DATA, test=TEST)["points"]] == ["2"]
    with pytest.raises(UsageError, match="no linear layer makes the model's scores"):
        ll.probe(of, ll.ProbeConfig(epochs=1, depth="last"), train=DATA, test=TEST)


def test_a_probe_s_record_is_drawn_in_the_report_of_a_trainer_s_run(tmp_path):
    of = network()
    ll.Trainer(of, run=tmp_path / "run").fit(DATA, validation=TEST)
    ll.probe(of, QUICK, train=DATA, test=TEST, output=tmp_path / "run" / "probe.json")
    assert len(json.loads((tmp_path / "run" / "probe.json").read_text())["points"]) == 3
    from locallearn.report.html import write_report

    text = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "layer1.0" in text
    assert "24 training and 6 test images" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": DATA}, "train, test: a network is probed on loaders; give both"),
        ({"train": iter(DATA), "test": TEST}, "train: list_iterator can be read only once"),
        ({"train": DATA, "test": []}, "test: the loader gave no batch"),
        ({"train": [], "test": TEST}, "train: the loader gave no batch"),
        ({"train": [DATA[0][0]], "test": TEST}, r"train: a batch has no classes \[B\] as labels"),
    ],
)
def test_wrong_loaders_of_a_probe_are_named(given, message):
    with pytest.raises(ll.LocalLearnError, match=message):
        ll.probe(network(), QUICK, **given)


def test_settings_that_are_for_images_alone_are_refused():
    with pytest.raises(ConfigError, match="augment: 'run' is not valid; expected none with loaders"):
        ll.probe(network(), ll.ProbeConfig(augment="run"), train=DATA, test=TEST)
    with pytest.raises(ConfigError, match="cache_mib: 0 is not valid; expected more"):
        ll.probe(network(), ll.ProbeConfig(cache_mib=0), train=DATA, test=TEST)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("module", [1, "last"])
def test_features_of_a_loader_are_written(tmp_path, suffix, module):
    of, out = network(), tmp_path / f"features{suffix}"
    done = ll.embed(of, DATA, out, module)
    expected = ll.Trainer(of).features(DATA, 3 if module == "last" else module).numpy()
    if suffix == ".npz":
        with np.load(out) as file:
            index, labels, features = file["index"], file["label"], file["features"]
    else:
        table = pq.read_table(out)
        index, labels = (np.array(table[name].to_pylist()) for name in ("index", "label"))
        features = np.array(table["features"].to_pylist(), np.float32)
    np.testing.assert_array_equal(features, expected)
    assert index.tolist() == list(range(24))
    assert labels.tolist() == torch.cat([y for _, y in DATA]).tolist()
    names = {1: (1, "layer1.0"), "last": (3, "end")}[module]
    assert (done["module"], done["block"], done["images"]) == (*names, 24)


def test_features_without_classes_have_no_labels(tmp_path):
    of = ll.split(Transformer(), example=sequences(), depth=2)
    ll.embed(of, [sequences()[0]], tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert sorted(file) == ["features", "index"]


@pytest.mark.parametrize(
    ("folder", "module", "message"),
    [
        ("images/", "last", "folder: 'images/' is a folder's name; of a network give a loader"),
        (DATA, 4, "stage: 4 is not valid; expected a number from 1 to 3"),
        ([], 1, "folder: the loader gave no batch"),
        (iter(DATA), 1, "folder: list_iterator can be read only once"),
    ],
)
def test_wrong_calls_of_embed_are_one_line(tmp_path, folder, module, message):
    with pytest.raises(UsageError, match=message):
        ll.embed(network(), folder, tmp_path / "out.npz", module)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_run_s_checkpoint_goes_back_into_the_user_s_class(tmp_path, average):
    of = network()
    trainer = ll.Trainer(of, run=tmp_path / "run", average=average, keep_last=9)
    trainer.fit(DATA, epochs=1, validation=TEST)
    first = trainer.predict(TEST)
    trainer.fit(DATA, epochs=3, validation=TEST)
    mine = ll.load_run(network(), tmp_path / "run").merge()
    assert type(mine) is ResNet
    assert torch.equal(mine.eval()(TEST[0][0]), trainer.predict(TEST))
    earlier = ll.load_run(network(), tmp_path / "run", "4").merge()
    assert torch.equal(earlier.eval()(TEST[0][0]), first)
    assert not torch.equal(first, trainer.predict(TEST))
    plain = ResNet()
    plain.load_state_dict(mine.state_dict())


def test_a_run_of_another_network_is_named(tmp_path):
    ll.Trainer(network(), run=tmp_path / "run").fit(DATA)
    other = ll.split(UNet(), example=DATA[0], cuts=["down1"])
    with pytest.raises(CheckpointError, match="belongs to another network"):
        ll.load_run(other, tmp_path / "run")
    with pytest.raises(UsageError, match="'5' is not kept"):
        ll.load_run(network(), tmp_path / "run", "5")
    with pytest.raises(UsageError, match="is not a run folder"):
        ll.load_run(network(), tmp_path)
