"""A network of stages as a Lightning module: ``Trainer(...).fit(LocalLightningModule(network), loader)``."""

from __future__ import annotations

from typing import Any, Literal

import lightning
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from locallearn.config.checks import choice, positive_int
from locallearn.core.batches import as_batch, model_call
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import LocalLoss
from locallearn.nn.features import prediction
from locallearn.training.work import ScheduleFactory


class LocalLightningModule(lightning.LightningModule):
    """Trains a network of stages; every stage's loss and accuracy is logged.

    Optimization is manual in Lightning's words: the network's own optimizers step where its stages end. Lightning
    saves and restores them and the schedules, sets the precision (``bf16-mixed``), and its ``global_step`` counts one
    update of the whole network: a batch, or ``accumulate`` of them. Clipping is the network's own (``clip_norm``).

    Validation and test log ``val_loss`` (``test_loss``), the last stage's own loss, ``val_loss/k`` of every stage,
    and accuracies where labels are classes. Prediction gives the model's scores.

    Args:
        network: from ``ll.split``, or ``ll.build_network`` with optimizers set.
        accumulate: batches whose mean gradient an update follows; the last update of an epoch may have fewer.
        schedule: makes a scheduler of torch for the optimizer of one stage; None leaves rates alone.
        schedule_unit: when schedulers step: after every update (``"step"``) or every epoch (``"epoch"``, which
            ``ReduceLROnPlateau`` needs; it follows ``val_loss``).

    Raises:
        ConfigError: a wrong argument.
        UsageError: when fitting: several devices, or settings of Lightning's that local training cannot follow.
    """

    def __init__(
        self,
        network: LocalNetwork,
        *,
        accumulate: int = 1,
        schedule: ScheduleFactory | None = None,
        schedule_unit: Literal["step", "epoch"] = "step",
    ) -> None:
        super().__init__()
        if not isinstance(network, LocalNetwork):
            raise ConfigError("network", type(network).__name__, "a network from ll.split or ll.build_network")
        positive_int("accumulate", accumulate)
        choice("schedule_unit", schedule_unit, "step", "epoch")
        if schedule is not None and not callable(schedule):
            raise ConfigError("schedule", schedule, "a function that makes a scheduler of one stage's optimizer")
        self.network = network
        self.accumulate, self.schedule, self.schedule_unit = accumulate, schedule, schedule_unit
        self.automatic_optimization = False

    def configure_callbacks(self) -> list[Any]:
        """No callbacks; Lightning asks before anything else, which is when to refuse what would be something else."""
        trainer = self.trainer
        if trainer.state.fn != "fit":
            return []
        if max(trainer.world_size, trainer.num_devices * trainer.num_nodes) > 1:
            raise UsageError(
                "devices: Lightning averages gradients after one backward pass of the whole model, and every stage "
                "has updated before that; use ll.Trainer(network, runtime='distributed') under torchrun"
            )
        if getattr(self, "_compiler_ctx", None) is not None:
            raise UsageError(
                "model: it is compiled, and stages train inside its forward pass; leave torch.compile off"
            )
        if trainer.gradient_clip_val:
            raise UsageError("gradient_clip_val: use network.clip_norm, or ll.split(..., clip_norm=...)")
        if trainer.accumulate_grad_batches > 1:
            count = trainer.accumulate_grad_batches
            raise UsageError(f"accumulate_grad_batches: use LocalLightningModule(network, accumulate={count})")
        if str(trainer.precision).startswith("16"):
            raise UsageError(
                f"precision: {trainer.precision} has one loss scaler, and every stage needs its own; use bf16-mixed, "
                "or ll.Trainer(network, precision='fp16')"
            )
        return []

    def configure_optimizers(self) -> Any:
        """The network's optimizers, one a stage, and their schedules."""
        if not self.network.steps:
            raise UsageError("network: there are no optimizers yet; call network.set_optimizers(...) first")
        self._unwrap()
        schedules = [] if self.schedule is None else [self.schedule(each) for each in self.network.optimizers]
        return list(self.network.optimizers), schedules

    def on_train_start(self) -> None:
        """Count one step an update: Lightning counts the calls of optimizers that it has wrapped, here the last."""
        self.network.steps[-1].optimizer = _listed(self.optimizers())[-1]
        by_step = self.schedule is not None and self.schedule_unit == "step"
        schedules = _listed(self.lr_schedulers()) if by_step else [None] * len(self.network.steps)
        for step, schedule in zip(self.network.steps, schedules, strict=True):
            step.accumulate, step.schedule = self.accumulate, schedule

    def on_train_end(self) -> None:
        """Leave the network as it was."""
        self._unwrap()
        for step in self.network.steps:
            step.accumulate, step.schedule = 1, None

    def _unwrap(self) -> None:
        last: Any = self.network.steps[-1]
        if isinstance(last.optimizer, LightningOptimizer):
            last.optimizer = last.optimizer.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train every stage on one batch."""
        size = len(self.network.given_batch(batch).images)
        self.log_dict(self.network.step(batch), batch_size=size)
        if self.trainer.is_last_batch:
            for step in self.network.steps:
                step.flush()

    def on_train_epoch_end(self) -> None:
        """Step the schedules that go by epochs."""
        if self.schedule is None or self.schedule_unit != "epoch":
            return
        for schedule in _listed(self.lr_schedulers()):
            if isinstance(schedule, ReduceLROnPlateau):
                if "val_loss" not in self.trainer.callback_metrics:
                    raise UsageError("schedule: ReduceLROnPlateau follows val_loss; give fit a validation loader")
                schedule.step(self.trainer.callback_metrics["val_loss"])
            else:
                schedule.step()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``val_loss`` and ``val_loss/k``; of classes ``val_accuracy`` and ``val_accuracy/k``."""
        self._log_evaluation("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``test_loss`` and ``test_loss/k``; of classes ``test_accuracy`` and ``test_accuracy/k``."""
        self._log_evaluation("test", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The model's scores of one batch; labels are not looked at. What the model gives, if that has no scores."""
        if isinstance(batch, (tuple, list)) and len(batch) == 1:
            batch = batch[0]
        if isinstance(self.network, SplitNetwork):
            call = model_call(self.network.model, batch)
            output = self.network(*call.args, **call.kwargs)
        else:
            output = self.network(batch if isinstance(batch, Tensor) else as_batch(batch).images)
        scores = prediction(output)
        return output if scores is None else scores

    def _log_evaluation(self, kind: str, batch: Any) -> None:
        given = self.network.given_batch(batch)
        seen = list(self.network.look(given))
        values = self.network.metrics([LocalLoss(loss, {}, scores) for _, scores, loss in seen], given)
        last = f"accuracy/{seen[-1][0]}"
        if last in values:
            values["accuracy"] = values[last]
        self.log_dict({f"{kind}_{name}": value for name, value in values.items()}, batch_size=len(given.images))


def _listed(one_or_more: Any) -> list[Any]:
    """Lightning gives a list of several, and one alone."""
    return list(one_or_more) if isinstance(one_or_more, (list, tuple)) else [one_or_more]
