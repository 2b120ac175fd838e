"""The K x G network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from locallearn.arguments import checked, checked_on_failure
from locallearn.core.batches import are_classes, as_batch
from locallearn.core.local_step import LocalStep, walk
from locallearn.core.module import Features, Stage
from locallearn.core.optimizer_checks import check_optimizers
from locallearn.core.overlap import overlapping_walk
from locallearn.data.patches import Masking
from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.losses.functional import cross_entropy
from locallearn.losses.objectives import LocalLoss
from locallearn.losses.whole_outputs import Outputs

if TYPE_CHECKING:
    from locallearn.core.image_shape import ImageShape

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one stage from its parameters."""


class OptimizerMaker:
    """The user's function that makes optimizers: copies of a network have it, and files do not, which hold no code.

    Args:
        function: it; None where there is none.
    """

    def __init__(self, function: OptimizerFactory | None) -> None:
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizerMaker:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return OptimizerMaker, (None,)


class LocalNetwork(nn.Module):
    """K stages of G groups each, and the decoupled classifier where the last stage has several groups.

    ``stages`` run in order; each takes the detached features of the one before. Use ``build_network``, or
    ``ll.split`` for a model of your own.

    Attributes:
        stages: what is between two cuts, in order.
        overlap: with 1 a stage's loss also trains the stage before it (``locallearn.core.overlap``); else 0.
        steps: the local steps of the stages; ``set_optimizers`` makes them.
        clip_norm: largest gradient norm of a node; 0 means no clipping.
        weighable: whether the memory of a step can be measured.
        maker: of the optimizers of ``steps``; without a function before ``set_optimizers`` and in a pickled network.
    """

    @checked
    def __init__(self, stages: Sequence[Stage], overlap: int = 0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.overlap = overlap
        self.steps: list[LocalStep] = []
        self.weighable = True
        self.maker = OptimizerMaker(None)
        self.clip_norm = 0.0

    def __iter__(self) -> Iterator[Any]:
        """The stages, in order."""
        return iter(self.stages)

    def lay_out(self, channels_last: bool) -> None:
        """Put the weights of all stages into channels-last memory, or have maps keep the layout that they come in."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.lay_out(channels_last)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One a stage, in order; schedulers of torch may be put on them."""
        return [step.optimizer for step in self.steps]

    @checked_on_failure
    def set_optimizers(self, optimizer: OptimizerFactory) -> None:
        """Give every stage a fresh optimizer over the parameters that it trains."""
        stages = [stage for stage in self.stages if isinstance(stage, Stage)]
        steps = [LocalStep(stage, optimizer(stage.own_parameters().values()), precision=None) for stage in stages]
        check_optimizers(stages, steps)
        self.steps = steps
        self.maker = OptimizerMaker(optimizer)

    @checked_on_failure
    def step(self, batch: Any) -> dict[str, Tensor]:
        """Train every stage on one batch, with the optimizers of ``set_optimizers``.

        Under autocast to fp16 every stage gets a loss scaler of its own: nothing is left to do around this call.

        Args:
            batch: a pair (images, labels), or a ``ll.Batch``, on the network's device.

        Returns:
            ``loss/k`` of every stage, the mean over its nodes, and ``loss``, the last one's; ``accuracy/k`` as a
            fraction where a stage classifies. Tensors without gradient on the network's device, of before the update.

        Raises:
            UsageError: there are no optimizers yet, or no labels where an objective needs them.
        """
        if not self.steps:
            raise UsageError("network: there are no optimizers yet; call network.set_optimizers(...) first")
        for step in self.steps:
            step.clip_norm = self.clip_norm
        with torch.inference_mode(False), torch.enable_grad():
            given = self.given_batch(batch)
            self._scale_losses(given.images.device.type)
            return self.metrics(self.walk(self.steps, given), given)

    def _scale_losses(self, device: str) -> None:
        """Give every stage a loss scaler where the caller's autocast is to fp16, whose small gradients become 0."""
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            if self.overlap:
                raise UsageError("network: no autocast to fp16 with overlap 1, for every stage scales its own loss")
            for step in self.steps:
                step.scaler = step.scaler or torch.amp.GradScaler(device)

    def given_batch(self, batch: Any, labelled: bool = True) -> Batch:
        """A batch of a loop of the user's own, as stages take it; where labels are not needed, images alone too."""
        if not labelled and isinstance(batch, Tensor):
            batch = Batch(batch, torch.empty(0), batch, 0)
        found = as_batch(batch)
        if not len(found.images):
            raise UsageError(f"batch: images {tuple(found.images.shape)} have no examples")
        return found

    def walk(
        self, steps: Sequence[LocalStep], batch: Batch, index: int | None = None, rate: float | None = None
    ) -> list[LocalLoss]:
        """Train the stages one after the other on one batch (Algorithms 1 and 2), overlapping where they do.

        Args:
            steps: local steps of this network's stages, in order.
            batch: the batch.
            index: number of the step, which seeds what is drawn; None leaves torch's generator as it is.
            rate: learning rate of the step; None leaves the optimizers as they are.
        """
        return (overlapping_walk if self.overlap else walk)(steps, batch, index, rate)

    def look(self, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """What evaluation needs of every stage: its name, scores [G, B, classes] or None, and losses [G].

        The losses are the cross entropy of the scores, or the local loss where there are none.
        """
        for module, out in self.passed(batch.images, batch):
            logits = module.logits(module.features(out))
            if logits is None:
                yield module.name, None, module.loss(out, batch).total
            else:
                yield module.name, logits, cross_entropy(logits, batch.labels)

    def output(self, batch: Batch) -> Any:
        """What the network gives for a batch."""
        return self(batch.images)

    @property
    def output_form(self) -> Outputs | None:
        """The form of the network's output where the objective is of all of it; None where it is of scores alone."""
        return None

    def metrics(self, losses: Sequence[LocalLoss], batch: Batch) -> dict[str, Tensor]:
        """Losses and accuracies of one batch by stage, as ``step`` returns them."""
        found: dict[str, Tensor] = {}
        for stage, loss in zip(self.stages, losses, strict=True):
            if not loss.total.numel():
                continue  # the stage did not train on this batch
            found[f"loss/{stage.name}"] = loss.total.mean()
            if loss.logits is not None and loss.logits.shape[-1] > 1 and are_classes(batch.labels):
                found[f"accuracy/{stage.name}"] = (loss.logits.mean(0).argmax(-1) == batch.labels).float().mean()
        found["loss"] = losses[-1].total.mean()
        return found

    def run_apart(self) -> None:
        """Make ready for stages that compute at the same time; those that the package builds are."""

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of all stages, each once, as they are in ``state_dict``."""
        found: dict[str, Tensor] = {}
        for i, stage in enumerate(self):
            found |= {network_name(i, name): value for name, value in stage.weights().items()}
        return found

    def load_weights(self, values: Mapping[str, Tensor]) -> None:
        """Put back what ``weights`` gave."""
        for i, stage in enumerate(self):
            stage.load_weights({name: values[network_name(i, name)] for name in stage.weights()})

    def training_state(self) -> dict[str, Any]:
        """Weights, optimizers and scalers, for ``torch.save``; ``load_training_state`` continues from them."""
        return {
            "network": self.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "scalers": [None if step.scaler is None else step.scaler.state_dict() for step in self.steps],
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Put back what ``training_state`` took; read it with ``torch.load(..., weights_only=True)``.

        Raises:
            UsageError: it is something else; the network is as it was.
        """
        for key in ("network", "optimizers", "scalers"):
            if not isinstance(state, Mapping) or key not in state:
                raise UsageError(f"state: expected what training_state() gave; there is no {key!r} in it")
        self.load_state_dict(state["network"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for step, scaling in zip(self.steps, state["scalers"], strict=True):
            step.scaler = None
            if scaling is not None:
                step.scaler = torch.amp.GradScaler(next(self.parameters()).device.type)
                step.scaler.load_state_dict(scaling)

    @property
    def nodes(self) -> list[tuple[str, int]]:
        """(module name, group counted from 1) of every node, the classifier last."""
        return [(module.name, module.first + group) for module in self for group in range(1, module.groups + 1)]

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """Scores [G, B, classes] of every module that has a classifier, in order, for images [B, C, H, W]."""
        logits = [module.logits(module.features(out)) for module, out in self.passed(images)]
        return [scores for scores in logits if scores is not None]

    @property
    def views(self) -> int:
        """Views of every image that training compares: 1, or 2 in a self-supervised network."""
        return next(iter(self)).objective.views

    @property
    def masking(self) -> Masking | None:
        """What training shows of every image; None is all of it."""
        return next(iter(self)).objective.masking

    @property
    def has_classifier(self) -> bool:
        """Whether the network ends in a classifier; self-supervised ones end in features."""
        first = next(iter(self)).objective
        return self.views == 1 and self.masking is None and not first.unlabelled

    def given(self, image: ImageShape) -> tuple[int, ...]:
        """Shape of what the first module is given of one image in training."""
        if self.masking is None:
            return image.sizes
        side, visible = self.masking
        return image.channels * side * side + 1, 1, visible

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, classes] of the last layer, for images [B, C, H, W]. Auxiliary heads are not computed.

        A self-supervised network has no classifier and gives ``features``.
        """
        if not self.has_classifier:
            return self.features(images)
        return self.stages[-1].logits(self._last(images))[0]  # type: ignore[operator]

    def features(self, images: Tensor) -> Tensor:
        """Features [B, C] of the last of the K modules, averaged over positions, for images [B, C, H, W]."""
        features = self._last(images)
        return features.mean((2, 3)) if features.dim() == 4 else features

    def passed(self, images: Tensor, batch: Batch | None = None) -> Iterator[tuple[Any, Any]]:
        """Every stage and its output for images [B, C, H, W], in order; with a batch as in a training step."""
        carried: Features = images
        for module in self:
            out = module(carried, batch)
            yield module, out
            carried = module.carried(out)

    def _last(self, images: Tensor) -> Tensor:
        """Features of the last stage."""
        *_, (module, out) = self.passed(images)
        return module.features(out)


def network_name(i: int, name: str) -> str:
    """The name in a network's ``state_dict`` of what stage i, counted from 0, calls ``name``."""
    return name if name.startswith("model.") else f"stages.{i}.{name}"
