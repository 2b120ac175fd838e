"""Inside Hugging Face's Trainer: its optimizer settings, schedule, clipping, logs and checkpoints."""

import pytest
import torch

import locallearn as ll
from user_models import Transformer, sequences

transformers = pytest.importorskip("transformers", reason="needs the package transformers")
pytest.importorskip("accelerate", reason="needs the package accelerate")

from locallearn.integrations.transformers import LocalTrainer  # noqa: E402

transformers.logging.set_verbosity_error()


def _network():
    torch.manual_seed(0)
    return ll.split(Transformer(), example=sequences(), cuts=["layers.0", "layers.1"])


def _rows():
    return [{"x": x, "labels": y} for x, y in zip(*sequences(n=16), strict=True)]


def _args(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "linear",
        "logging_steps": 2,
        "save_steps": 3,
        "optim": "adamw_torch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(**settings | changes)


def _trainer(folder, **changes):
    return LocalTrainer(model=_network(), args=_args(folder, **changes), train_dataset=_rows())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    trainer = _trainer(folder)
    trainer.train()
    return trainer, folder


def _by_hand(batches):
    """The same training without the Trainer: AdamW a module, linear schedule, clipping by module."""
    network = _network()
    network.clip_norm = 0.5

    def adamw(parameters):
        groups = {}  # in the order of parameters, since Adam blows rounding up where a gradient is zero
        for p in parameters:
            groups.setdefault(0.1 if id(p) in matrices else 0.0, []).append(p)
        return torch.optim.AdamW([{"params": p, "weight_decay": rate} for rate, p in groups.items()], lr=1e-2)

    plain = ("bias", "norm1.weight", "norm2.weight")
    matrices = {id(p) for name, p in network.named_parameters() if not name.endswith(plain)}
    network.set_optimizers(adamw)
    for step, batch in enumerate(batches):
        for optimizer in network.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / 6)
        network.step(batch)
    return network


def test_training_equals_a_loop_with_the_same_settings(trained, tmp_path):
    seen = []
    trainer = _trainer(tmp_path, save_strategy="no")
    step = trainer.network.step
    trainer.network.step = lambda batch: (seen.append(batch), step(batch))[1]
    trainer.train()
    plain = _by_hand(seen)
    for network in (trainer.network, trained[0].network):
        for (name, a), b in zip(network.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_losses_of_every_module_are_logged(trained):
    logs = [line for line in trained[0].state.log_history if "loss" in line]
    assert len(logs) == 3
    assert all({"loss/1", "loss/2", "loss/3", "learning_rate"} <= set(line) for line in logs)


def test_a_checkpoint_continues(trained, tmp_path):
    trainer = _trainer(tmp_path)
    trainer.train(resume_from_checkpoint=str(trained[1] / "checkpoint-3"))
    assert trainer.state.global_step == 6
    for a, b in zip(trainer.network.parameters(), trained[0].network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_evaluation_is_of_the_models_own_loss(trained):
    trainer, _ = trained
    x, y = sequences(n=16)
    network = trainer.network.eval()
    expected = network(x, labels=y)["loss"].item()
    assert trainer.evaluate(_rows())["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 2}, {"fp16": True}])
def test_settings_that_would_do_something_else_are_refused(changes, tmp_path):
    with pytest.raises(ll.LocalLearnError, match=next(iter(changes))):
        _trainer(tmp_path, **changes)
