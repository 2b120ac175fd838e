"""Stages of one process on several devices: CPUs, and the meta device, where what was forgotten elsewhere fails."""

import pytest
import torch
from test_split_apart import CASES, sgd

import locallearn as ll
from locallearn.core.local_step import walk
from locallearn.errors import ConfigError
from user_models import ResNet, images

DATA = [images(seed=seed) for seed in range(3)]


def split(name, depth=3):
    make, batch, settings = CASES[name]
    torch.manual_seed(0)
    return ll.split(make().train(), example=batch, depth=depth, optimizer=sgd, **settings), batch


@pytest.mark.parametrize("name", ["resnet", "gpt2", "vit", "llama-shared"])
@pytest.mark.parametrize("runtime", ["inline", "threads"])
def test_stages_on_devices_train_what_one_device_does(name, runtime, tmp_path):
    trained = []
    for settings in ({}, {"runtime": runtime, "devices": ["cpu", "cpu"], "threads": 1}):
        network, batch = split(name)
        trainer = ll.Trainer(network, optimizer=sgd, **settings)
        summary = trainer.fit([batch] * 3, epochs=2, validation=[batch])
        scores = trainer.predict([batch])
        trained.append((network.merge().state_dict(), summary["nodes"], scores, trainer.evaluate([batch])))
        assert not network.placed
    one, several = trained
    assert all(torch.equal(value, several[0][name]) for name, value in one[0].items())
    assert one[1] == several[1]
    assert torch.equal(one[2], several[2])
    assert one[3] == several[3]


def test_a_run_continues_on_other_devices(tmp_path):
    def fit(epochs, run, **settings):
        torch.manual_seed(0)
        network = ll.split(ResNet(), example=DATA[0], depth=3)
        ll.Trainer(network, run=tmp_path / run, optimizer=sgd, average=0.5, **settings).fit(DATA, epochs=epochs)
        return network.state_dict()

    whole = fit(3, "whole")
    fit(1, "run")
    fit(2, "run", devices=["cpu", "cpu"])
    again = fit(3, "run")
    assert all(torch.equal(value, again[name]) for name, value in whole.items() if value.dtype.is_floating_point)


def test_all_of_a_stage_is_on_its_device():
    """An operator that is given something that has been forgotten on another device fails."""
    network, batch = split("resnet")
    network.place(["cpu", "meta"])
    network.set_optimizers(sgd)
    devices = [{p.device.type for p in stage.own_parameters().values()} for stage in network.model_stages]
    assert devices[0] == {"cpu"}
    assert devices[-1] == {"meta"}
    before = [value.clone() for value in network.model_stages[0].own_parameters().values()]
    features, given = batch[0], network.given_batch(batch)
    for stage, step in zip(network.model_stages, network.steps, strict=True):
        features, here = stage.brought(features, given)
        assert {features.device, here.images.device, here.labels.device} == {stage.device}
        output = stage(features, here)
        loss = stage.loss(output, here)
        step.backward(loss)
        step.update()
        assert {p.grad.device for p in stage.own_parameters().values()} == {loss.total.device} == {stage.device}
        features = stage.handed_on(output)
    after = network.model_stages[0].own_parameters().values()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_stage_holds_nothing_of_the_others():
    network, _ = split("vit")
    network.place(["cpu", "cpu", "cpu"])
    for stage in network.model_stages:
        own = {*stage.piece.parameters, *stage.piece.reads}
        view = dict(stage._alone.model.named_parameters())
        foreign = [
            p for piece in network.pieces for name in piece.parameters if name not in own for p in [view[name]]
        ]
        assert foreign
        assert all(p.untyped_storage().nbytes() == p.element_size() for p in foreign)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], r"devices: \[\] is not valid; expected a list of 1 to 3 devices"),
        ("cuda", "devices: 'cuda' is not valid; expected a list of 1 to 3 devices"),
        (["cpu"] * 4, "expected a list of 1 to 3 devices, the number of stages"),
        (["cpu", "no"], "devices: 'no' is not valid"),
        (["cpu", 1.5], "devices: 1.5 is not valid"),
        (["cpu", "cuda:99"], "devices: 'cuda:99' is not valid; expected cpu, or one of the"),
    ],
)
def test_wrong_lists_are_named_before_anything_is_trained(devices, message):
    with pytest.raises(ConfigError, match=message):
        ll.Trainer(split("resnet")[0], devices=devices)


def test_what_devices_do_not_go_with_is_named():
    network, _ = split("resnet")
    for settings in ({"device": "cpu"}, {"runtime": "distributed"}):
        with pytest.raises(ConfigError, match="expected None with device=, or with runtime='distributed'"):
            ll.Trainer(network, devices=["cpu"], **settings)
    built = ll.build_network(ll.RunConfig(method="dgl", model="resnet8", depth=2), ll.ImageShape(2, 8, 5))
    with pytest.raises(ConfigError, match="expected None, but for a network of ll.split"):
        ll.Trainer(built, devices=["cpu"])


def test_a_loop_of_one_s_own_trains_on_devices_too():
    networks = [split("resnet")[0] for _ in range(2)]
    networks[1].place(["cpu", "cpu"])
    networks[1].set_optimizers(sgd)
    for batch in DATA:
        one, other = (network.step(batch) for network in networks)
    assert {name: value.item() for name, value in one.items()} == {
        name: value.item() for name, value in other.items()
    }
    assert walk(networks[1].steps, networks[1].given_batch(DATA[0])) is not None
    networks[1].gather("cpu")
    networks[1].step(DATA[0])
