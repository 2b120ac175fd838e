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


@pytest.mark.parametrize("settings", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_settings_that_would_do_nothing_are_refused_by_lightning(settings, tmp_path):
    with pytest.raises(Exception, match="not supported for manual optimization"):
        _trainer(tmp_path, max_epochs=1, **settings).fit(LocalLightningModule(_network()), _loader())


def test_a_loss_scaler_is_refused(tmp_path):
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ll.LocalLearnError, match="precision: 16-mixed needs a loss scaler"):
        trainer.fit(LocalLightningModule(_network()), _loader())
