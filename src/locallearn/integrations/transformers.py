"""A split network in Hugging Face's Trainer: ``LocalTrainer(model=network, args=..., train_dataset=...).train()``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from locallearn.core.split_network import SplitNetwork
from locallearn.errors import UsageError
from locallearn.files import replacing


class LocalTrainer(transformers.Trainer):
    """Trains a split network with the Trainer's own loop, optimizer settings, schedule, logs and checkpoints.

    Every module gets the optimizer that ``args`` describe, over its own parameters, and its gradient is clipped to
    ``max_grad_norm``. Logs hold ``loss/k`` of every module. ``trainer.model.merge()`` is the trained model.

    Raises:
        UsageError: arguments that local training cannot follow.
    """

    def __init__(self, model: SplitNetwork, args: transformers.TrainingArguments, **kwargs: Any) -> None:
        if args.gradient_accumulation_steps > 1:
            raise UsageError("gradient_accumulation_steps: modules update with every batch; use a larger batch")
        if args.world_size > 1 or args.n_gpu > 1:
            raise UsageError("devices: a split network trains on one device in the Trainer")
        if args.fp16:
            raise UsageError("fp16: it needs a loss scaler; use bf16")
        super().__init__(model=model, args=args, **kwargs)
        self.network = model
        self.network.clip_norm = args.max_grad_norm or 0.0
        self.label_names = args.label_names or ["labels"]
        self.model_accepts_loss_kwargs = False
        self._signature_columns = [*inspect.signature(model.model.forward).parameters, *self.label_names]
        self._last: dict[str, Tensor] = {}

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Every module's optimizer, in one that schedulers can be put on."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            names = set(self.get_decay_parameter_names(self.network))
            decayed = {id(p) for name, p in self.network.named_parameters() if name in names}

            def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
                groups: dict[float, list[nn.Parameter]] = {}
                for p in parameters:
                    groups.setdefault(self.args.weight_decay * (id(p) in decayed), []).append(p)
                return kind([{"params": p, "weight_decay": rate} for rate, p in groups.items()], **settings)

            self.network.set_optimizers(build)
            self.optimizer = _Together(self.network.optimizers)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train every module on one batch, and return the last one's loss."""
        model.train()
        with self.accelerator.autocast():
            self._last = self.network.step(self._prepare_inputs(inputs))
        return self._last["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add every module's last loss and accuracy to what is logged of training."""
        if "loss" in logs:
            logs = logs | {name: value.item() for name, value in self._last.items() if "/" in name}
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the whole network, heads included; tied weights are written under each of their names."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        with replacing(folder / "model.safetensors") as temporary:
            save_file(weights, temporary, {"format": "pt"})


class _Together(torch.optim.Optimizer):
    """The modules' optimizers as one, for schedulers and checkpoints. They have stepped by themselves already."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        groups = [group for each in optimizers for group in each.param_groups]
        super().__init__([p for group in groups for p in group["params"]], {})
        self.optimizers, self.param_groups = optimizers, groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [each.state_dict() for each in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for each, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            each.load_state_dict(state)
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]
