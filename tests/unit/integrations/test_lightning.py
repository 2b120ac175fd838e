"""Inside Lightning: the same weights as a loop of one's own, steps counted, checkpoints restored."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import locallearn as ll
from user_models import ResNet, images

lightning = pytest.importorskip("lightning", reason="needs the package lightning")

from locallearn.integrations.lightning import LocalLightningModule  # noqa: E402


def _network():
    torch.manual_seed(0)
    return ll.split(ResNet(), example=images(), depth=3)


def _loader():
    return DataLoader(TensorDataset(*images(n=24)), batch_size=6)


def _trainer(folder, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **kwargs)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    network, folder = _network(), tmp_path_factory.mktemp("lightning")
    module, trainer = LocalLightningModule(network), _trainer(folder, max_epochs=2, enable_checkpointing=False)
    trainer.fit(module, _loader(), _loader())
    trainer.save_checkpoint(folder / "two.ckpt")
    return module, trainer, folder / "two.ckpt"


def test_training_equals_a_plain_loop(fitted):
    _, trainer, _ = fitted
    plain = _network()
    for _ in range(2):
        for batch in _loader():
            plain.step(batch)
    network = fitted[0].network
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True))
    assert trainer.global_step == 8
    assert isinstance(network.optimizers[-1], torch.optim.AdamW)


def test_losses_of_every_module_and_validation_are_logged(fitted):
    metrics = fitted[1].callback_metrics
    assert {"loss/1", "loss/2", "loss/3", "accuracy/3", "val_loss", "val_accuracy"} <= set(metrics)
    assert 0 <= metrics["val_accuracy"] <= 1


def test_a_checkpoint_continues_with_weights_and_optimizers(fitted, tmp_path):
    network, (_, _, path) = _network(), fitted
    trainer = _trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    trainer.fit(LocalLightningModule(network), _loader(), ckpt_path=path, weights_only=True)
    plain = _network()
    for _ in range(3):
        for batch in _loader():
            plain.step(batch)
    assert trainer.global_step == 12
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("labels", [torch.arange(12) % 3, torch.linspace(0, 1, 12)[:, None]])
def test_validation_and_test_are_of_the_networks_own_loss_whatever_the_labels(labels, tmp_path):
    def loss(scores, y):
        return (scores[:, 0] - y.float().view(-1)).abs().mean()

    torch.manual_seed(0)
    x = torch.rand(12, 8)
    layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    network = ll.split(torch.nn.Sequential(*layers), cuts=["1"], example=(x, labels), objective=loss)
    loader = DataLoader(TensorDataset(x, labels), batch_size=4)
    module, trainer = LocalLightningModule(network), _trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, loader, loader)
    expected = loss(network.eval()(x), labels).item()
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert {"val_loss/1", "val_loss/2"} <= set(trainer.callback_metrics)
    (found,) = trainer.test(module, loader, verbose=False)
    assert found["test_loss"] == pytest.approx(expected, rel=1e-5)
    scores = torch.cat(trainer.predict(module, loader))
    torch.testing.assert_close(scores, network(x).detach())
    torch.testing.assert_close(torch.cat(trainer.predict(module, DataLoader(TensorDataset(x), 4))), scores)


def test_accumulation_equals_a_plain_loop_that_accumulates(tmp_path):
    network = _network()
    module, trainer = LocalLightningModule(network, accumulate=3), _trainer(tmp_path, max_epochs=2)
    trainer.fit(module, _loader())
    plain = _network()
    for step in plain.steps:
        step.accumulate = 3
    for _ in range(2):
        for batch in _loader():
            plain.step(batch)
        for step in plain.steps:
            step.flush()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True))
    assert trainer.global_step == 4  # 4 batches an epoch: an update after 3, one after 1


@pytest.mark.parametrize(("unit", "rates"), [("step", 8), ("epoch", 2)])
def test_schedules_step_by_update_or_by_epoch(unit, rates, tmp_path):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    network = _network()
    start = network.optimizers[0].param_groups[0]["lr"]
    module = LocalLightningModule(network, schedule=schedule, schedule_unit=unit)
    _trainer(tmp_path, max_epochs=2).fit(module, _loader())
    for optimizer in network.optimizers:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(start * 0.5**rates)


def test_a_plateau_follows_val_loss(tmp_path):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=1e9
        )  # nothing is better

    network = _network()
    start = network.optimizers[0].param_groups[0]["lr"]
    module = LocalLightningModule(network, schedule=schedule, schedule_unit="epoch")
    _trainer(tmp_path, max_epochs=3).fit(module, _loader(), _loader())
    assert network.optimizers[0].param_groups[0]["lr"] == pytest.approx(start * 0.125)


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"gradient_clip_val": 1.0}, "clip_norm"),
        ({"accumulate_grad_batches": 2}, r"LocalLightningModule\(network, accumulate=2\)"),
    ],
)
def test_settings_of_lightnings_own_loop_are_refused_with_what_to_use(settings, instead, tmp_path):
    with pytest.raises(ll.LocalLearnError, match=f"^{next(iter(settings))}: .*{instead}"):
        _trainer(tmp_path, max_epochs=1, **settings).fit(LocalLightningModule(_network()), _loader())


def test_a_loss_scaler_is_refused(tmp_path):
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ll.LocalLearnError, match=r"precision: 16-mixed .*precision='fp16'"):
        trainer.fit(LocalLightningModule(_network()), _loader())


def test_several_devices_are_refused_with_what_to_use(tmp_path):
    module, trainer = LocalLightningModule(_network()), _trainer(tmp_path, devices=2, strategy="ddp_spawn")
    module.trainer = trainer
    trainer.state.fn = "fit"
    with pytest.raises(ll.LocalLearnError, match=r"^devices: .*runtime='distributed'\) under torchrun"):
        module.configure_callbacks()


def test_several_loaders_are_evaluated_each(fitted, tmp_path):
    module, few = fitted[0], DataLoader(TensorDataset(*images(n=6, seed=3)), batch_size=6)
    found = _trainer(tmp_path).validate(module, [_loader(), few], verbose=False)
    alone = _trainer(tmp_path).validate(module, few, verbose=False)[0]
    assert found[1]["val_loss/dataloader_idx_1"] == alone["val_loss"]
    assert found[0]["val_loss/dataloader_idx_0"] != alone["val_loss"]
    scores = _trainer(tmp_path).predict(module, [few, few])
    assert torch.equal(scores[1][0], module.network.eval()(images(n=6, seed=3)[0]))


def test_a_compiled_module_is_refused(tmp_path):
    with pytest.raises(ll.LocalLearnError, match=r"^model: it is compiled.*leave torch.compile off"):
        _trainer(tmp_path, max_epochs=1).fit(torch.compile(LocalLightningModule(_network())), _loader())
