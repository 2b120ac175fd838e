"""A split network in Hugging Face's Trainer: ``LocalTrainer(model=network, args=..., train_dataset=...).train()``."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from locallearn.core.split_network import SplitNetwork
from locallearn.errors import ConfigError, UsageError
from locallearn.nn.features import prediction


class LocalTrainer(transformers.Trainer):
    """Trains a split network with the Trainer's own loop, optimizer settings, schedule, logs and checkpoints.

    Every stage gets the optimizer that ``args`` (or ``optimizers``, over ``network.parameters()``) describe, over its
    own parameters; its gradient is clipped to ``max_grad_norm``, and is the mean over ``gradient_accumulation_steps``
    batches. Logs hold ``loss/k`` of every stage, and ``grad_norm`` of all together before clipping. Evaluation is of
    the last stage's own loss, whatever the labels. ``trainer.model.merge()`` is the trained model.

    Raises:
        UsageError: arguments that local training cannot follow.
    """

    def __init__(
        self, model: SplitNetwork, args: transformers.TrainingArguments | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(model, SplitNetwork):
            raise ConfigError("model", type(model).__name__, "a network from ll.split")
        args = args or transformers.TrainingArguments("tmp_trainer")
        _check(args, kwargs)
        if type(self).compute_loss is not LocalTrainer.compute_loss:
            raise UsageError(f"compute_loss: {_LOSS}")
        super().__init__(model=model, args=args, **kwargs)
        self.network = model
        self.network.clip_norm = args.max_grad_norm or 0.0
        self.label_names = args.label_names or ["labels"]
        self.model_accepts_loss_kwargs = False
        self._signature_columns = [*inspect.signature(model.model.forward).parameters, *self.label_names]
        self._last: dict[str, Tensor] = {}
        self._by_stage: _ByStage | None = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that is given or that ``args`` describe, as one for every stage.

        Raises:
            UsageError: it does not hold all parameters that the stages train.
        """
        if self._by_stage is None or getattr(self.optimizer, "optimizer", self.optimizer) is not self._by_stage:
            whole = super().create_optimizer(model)
            held = {id(p) for group in whole.param_groups for p in group["params"]}
            for k in range(1, self.network.depth + 1):
                for name, parameter in self.network.module_parameters(k).items():
                    if parameter.requires_grad and id(parameter) not in held:
                        raise UsageError(
                            f"optimizers: {name} of stage {k} is missing; make the optimizer over "
                            "network.parameters(), and freeze what is not to be trained"
                        )
            self.network.set_optimizers(lambda parameters: _part(whole, parameters))
            self.optimizer = self._by_stage = _ByStage(whole, self.network.optimizers)
        assert self.optimizer is not None
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train every stage on one batch, and return the last one's loss, as its share of the update's."""
        assert self._by_stage is not None
        batches = self.current_gradient_accumulation_steps
        model.train()
        self._by_stage.follow()
        for step in self.network.steps:
            if not step.gathering:
                step.accumulate = batches
        with self.accelerator.autocast():
            self._last = self.network.step(self._prepare_inputs(inputs))
        return self._last["loss"] / batches

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The last stage's own loss, for evaluation; and the model's mapping, or its scores as ``logits``."""
        given = self.network.given_batch(inputs)
        output = self.network.output(given)
        loss = self.network.model_stages[-1].loss(output, given).total.mean()
        if not return_outputs:
            return loss
        return loss, output if isinstance(output, dict) else {"logits": prediction(output)}

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | None:
        """The norm of all gradients of the last update, before every stage clipped its own."""
        norms = [step.norms for step in self.network.steps if step.norms is not None]
        return torch.cat(norms).norm() if norms else None

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As the Trainer's, which leaves out caches and whatever else the model's configuration says."""
        if ignore_keys is None:
            config = getattr(self.network.model, "config", None)
            ignore_keys = getattr(config, "keys_to_ignore_at_inference", ["past_key_values"])
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add every stage's last loss and accuracy to what is logged of training."""
        if "loss" in logs:
            logs = logs | {name: value.item() for name, value in self._last.items() if "/" in name}
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the whole network, heads included; tied weights are written under each of their names."""
        weights = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.network.state_dict().items()
        }
        super()._save(output_dir, weights)


_LOSS = "every stage has a loss: give it to ll.split(..., objective=a function of scores and labels) instead"


def _check(args: transformers.TrainingArguments, given: dict[str, Any]) -> None:
    """Refuse arguments that would silently be something else."""
    optimizer, schedule = given.get("optimizers") or (None, None)
    shared = args.world_size > 1 or args.n_gpu > 1 or args.fsdp or args.deepspeed
    refused = {
        "devices": shared
        and "the Trainer averages gradients after one backward pass of the whole model, and every stage has updated "
        "before that; show it one (CUDA_VISIBLE_DEVICES=0), or use ll.Trainer(network, runtime='distributed') under "
        "torchrun",
        "fp16": args.fp16
        and "the Trainer has one loss scaler, and every stage needs its own; use bf16, or ll.Trainer(network, "
        "precision='fp16')",
        "gradient_checkpointing": args.gradient_checkpointing
        and "call model.gradient_checkpointing_enable() before ll.split instead, which finds where segments end",
        "compute_loss_func": given.get("compute_loss_func") is not None and _LOSS,
        "label_smoothing_factor": args.label_smoothing_factor
        and f"{_LOSS}, like nn.CrossEntropyLoss(label_smoothing={args.label_smoothing_factor})",
        "use_liger_kernel": args.use_liger_kernel and "apply its kernels to the model before ll.split",
        "torch_compile": args.torch_compile and "stages train inside the model's forward pass; leave it off",
        "neftune_noise_alpha": args.neftune_noise_alpha and "put the noise into the model before ll.split",
        "optim": _updates_itself(str(args.optim)) and "it updates inside the backward pass; use another optimizer",
        "optimizers": schedule is not None
        and optimizer is None
        and "there is a schedule without the optimizer that it is on; give both",
    }
    for name, message in refused.items():
        if message:
            raise UsageError(f"{name}: {message}")


def _updates_itself(optim: str) -> bool:
    return "lomo" in optim.lower() or "layerwise" in optim.lower()


_SCHEDULED = ("lr", "momentum", "betas", "weight_decay")
"""Settings of parameter groups that schedulers change."""


def _part(whole: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of the same class, settings and groups over some of the parameters only."""
    own = {id(p): p for p in parameters}
    part = object.__new__(type(whole))
    part.__dict__.update(
        {name: value for name, value in vars(whole).items() if name != "step"}
    )  # a scheduler's patch
    part.param_groups = [
        group | {"params": [p for p in group["params"] if id(p) in own]} for group in whole.param_groups
    ]
    part.state = defaultdict(dict, {p: whole.state[p] for p in own.values() if p in whole.state})
    return part


class _ByStage(torch.optim.Optimizer):
    """The stages' optimizers as one, for schedulers and checkpoints. They have stepped by themselves already.

    Args:
        whole: the optimizer over all parameters that they are parts of; schedulers change its groups.
        parts: one a stage.
    """

    def __init__(self, whole: torch.optim.Optimizer, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(whole.param_groups, dict(whole.defaults))
        self.whole, self.parts = whole, parts
        self.param_groups = whole.param_groups

    def follow(self) -> None:
        """Set the parts to what schedulers have set the whole to."""
        for part in self.parts:
            _copy_settings(self.whole, part)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing is left to do but to tell a scheduler that the whole has stepped."""
        self.whole.zero_grad()
        self.whole.step()

    def state_dict(self) -> dict[str, Any]:
        self.follow()
        return {"optimizers": [each.state_dict() for each in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for each, state in zip(self.parts, state_dict["optimizers"], strict=True):
            each.load_state_dict(state)
        _copy_settings(self.parts[0], self.whole)


def _copy_settings(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    for mine, theirs in zip(target.param_groups, source.param_groups, strict=True):
        mine.update({name: theirs[name] for name in _SCHEDULED if name in theirs})
