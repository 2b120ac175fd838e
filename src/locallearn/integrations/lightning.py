"""A split network as a Lightning module: ``Trainer(...).fit(LocalLightningModule(network), loader)``."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from locallearn.core.batches import model_call
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import UsageError
from locallearn.nn.features import own_loss, prediction


class LocalLightningModule(lightning.LightningModule):
    """Trains a split network; every module's loss and accuracy is logged.

    Optimization is manual in Lightning's words: the network's own optimizers step where its modules end. Lightning
    saves and restores them, sets the precision (``bf16-mixed``), and counts one step a batch. Schedulers go on
    ``network.optimizers``, and clipping is ``ll.split(..., clip_norm=...)``: Lightning itself refuses its own, and
    accumulated gradients, with manual optimization.

    Args:
        network: from :func:`locallearn.split`.

    Raises:
        UsageError: several devices, or 16-bit precision that needs a loss scaler.
    """

    def __init__(self, network: SplitNetwork) -> None:
        super().__init__()
        self.network = network
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The network's optimizers, one a module."""
        return list(self.network.optimizers)

    def on_fit_start(self) -> None:
        """Refuse what would silently be something else."""
        trainer = self.trainer
        if trainer.world_size > 1:
            raise UsageError("devices: a split network trains on one device in Lightning")
        if trainer.gradient_clip_val:
            raise UsageError(
                "gradient_clip_val: use ll.split(..., clip_norm=...), which clips every module's gradient"
            )
        if trainer.accumulate_grad_batches > 1:
            raise UsageError("accumulate_grad_batches: modules update with every batch; use a larger batch")
        if str(trainer.precision).startswith("16"):
            raise UsageError(f"precision: {trainer.precision} needs a loss scaler; use bf16-mixed or 32-true")

    def on_train_start(self) -> None:
        """Count one step a batch: Lightning counts the calls of optimizers that it has wrapped, here the last one."""
        wrapped: Any = self.optimizers()
        last = wrapped[-1] if isinstance(wrapped, list) else wrapped
        self.network.steps[-1].optimizer = last

    def on_train_end(self) -> None:
        """Unwrap it again."""
        last: Any = self.network.optimizers[-1]
        self.network.steps[-1].optimizer = last.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train every module on one batch."""
        size = len(model_call(self.network.model, batch).first)
        self.log_dict(self.network.step(batch), batch_size=size)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss``, and ``val_accuracy`` where labels are classes, of the model's own output."""
        call = model_call(self.network.model, batch)
        output = self.network(*call.args, **call.kwargs)
        scores, loss = prediction(output), own_loss(output)
        values: dict[str, Tensor] = {} if loss is None else {"val_loss": loss}
        if scores is not None and call.labels is not None and scores.dim() == 2 and call.labels.dim() == 1:
            values["val_accuracy"] = (scores.argmax(-1) == call.labels).float().mean()
            values.setdefault("val_loss", torch.nn.functional.cross_entropy(scores.float(), call.labels))
        self.log_dict(values, batch_size=len(call.first))
