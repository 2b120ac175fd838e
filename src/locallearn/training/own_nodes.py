"""The nodes that this process trains, and the runtime that trains them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from locallearn.config import RunConfig
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.core.model_stage import ModelStage
from locallearn.core.module import Stage
from locallearn.core.network import LocalNetwork, OptimizerFactory, network_name
from locallearn.core.optimizer_checks import check_optimizers
from locallearn.core.shard import rows, shard
from locallearn.core.split_network import SplitNetwork
from locallearn.errors import ConfigError
from locallearn.nn.peers import Peers
from locallearn.plan.mesh import place_nodes
from locallearn.runtime.cuda_graphs import CudaGraphsRuntime
from locallearn.runtime.distributed import DistributedRuntime
from locallearn.runtime.inline import InlineRuntime, Runtime
from locallearn.runtime.overlapping_processes import OverlappingDistributedRuntime
from locallearn.runtime.overlapping_threads import OverlappingThreadsRuntime
from locallearn.runtime.spread import SpreadNetwork
from locallearn.runtime.threads import ThreadsRuntime
from locallearn.runtime.width_peers import ProcessPeers
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training import checkpoint as checkpoints
from locallearn.training.followed import Followed
from locallearn.training.optim import build_optimizer
from locallearn.training.placement import feature_shapes, feature_types, placement_of


class Nodes:
    """What one process holds of a network: all of it, or the nodes of its place in the mesh.

    Args:
        config: a resolved configuration.
        network: the whole network with its initial weights.
        image: what it is built for; None for a user's own model.
        world: the processes.
        optimizer: makes a stage's optimizer from its parameters; by default the configuration's.
        accumulate: batches that an update follows.

    Attributes:
        network: the modules of this process, with the groups that it has of them.
        steps: their local steps, by the module's place in the whole network, counted from 0.
        runtime: trains them.
        spread: evaluates a user's model with the other processes, where it is spread over them.
    """

    def __init__(
        self,
        config: RunConfig,
        network: LocalNetwork,
        image: ImageShape | None,
        world: Alone | ProcessWorld,
        optimizer: OptimizerFactory | None = None,
        accumulate: int = 1,
    ) -> None:
        self.config = config
        self._optimizer = optimizer
        self._accumulate = accumulate
        self._groups = [module.groups for module in network]
        self.network = network
        self.spread: SpreadNetwork | None = None
        self._followed: Followed | None = None
        self.steps: dict[int, LocalStep] = {}
        self.runtime: Runtime
        if isinstance(world, Alone):
            self._hold_all(config, network)
        elif isinstance(network, SplitNetwork):
            self._hold_stages(config, network, world)
        else:
            assert image is not None
            self._hold_groups(config, network, image, world)
        if optimizer is not None:
            check_optimizers(network, self.steps.values())

    def _hold_all(self, config: RunConfig, network: LocalNetwork) -> None:
        """The whole network in this process."""
        self.steps = {i: self._step(module, None) for i, module in enumerate(network)}
        steps = list(self.steps.values())
        if config.runtime == "threads":
            threads = torch.get_num_threads()
            network.run_apart()
            kind = OverlappingThreadsRuntime if network.overlap else ThreadsRuntime
            self.runtime = kind(steps, config.threads.at_once or threads, threads)
        elif config.runtime == "cuda-graphs":
            self.runtime = CudaGraphsRuntime(steps, torch.device(str(config.train.device)))
        else:
            self.runtime = InlineRuntime(steps, network.walk)

    def _hold_groups(self, config: RunConfig, network: LocalNetwork, image: ImageShape, world: ProcessWorld) -> None:
        """A network of the package's own on the mesh: this process has some groups of some modules."""
        placement = placement_of(config, network, image, world)
        modules, rank = list(network), world.rank
        held = {i: shard(modules[i], placement.held(i, rank), world.mesh.data) for i in placement.modules(rank)}
        self.network = LocalNetwork(list(held.values()))
        self.steps = {i: self._step(module, self._peers(world, i, module)) for i, module in held.items()}
        names = [module.name for module in network]
        self._followed = Followed(modules, held, placement, rank)
        plain = config.context == "none"
        kind = OverlappingDistributedRuntime if config.overlap else DistributedRuntime
        self.runtime = kind(
            world,
            placement,
            self.steps,
            feature_shapes(network, image) if plain else None,
            feature_types(network, image, config) if plain else None,
            names,
            config.mesh,
            network.views,
            counts=() if plain else [2] * (config.depth - 1) + [1, 1],
            read=self._followed.read,
        )

    def _hold_stages(self, config: RunConfig, network: SplitNetwork, world: ProcessWorld) -> None:
        """A user's model on depth and data of the mesh: this process has some stages, and nothing of the others."""
        if config.mesh.width > 1:
            raise ConfigError("mesh.width", config.mesh.width, "1 with a network from ll.split")
        network.run_apart()
        pieces = network.pieces
        placement = place_nodes(world.mesh, [1] * len(pieces), [float(piece.macs) for piece in pieces], False)
        held = placement.modules(world.rank)
        read = {(k, owner): pairs for k, stage in enumerate(network) for owner, pairs in stage.reads.items()}
        network.release(held)
        own = {i: network.model_stages[i] for i in held}
        self.network = LocalNetwork(list(own.values()))
        self.spread = SpreadNetwork(own, network.nodes, world, placement, read)
        self.steps = {i: self._step(stage, self._peers(world, i, stage)) for i, stage in own.items()}
        names, counts = [stage.name for stage in network], [1 + len(piece.crossing) for piece in pieces]
        kind = OverlappingDistributedRuntime if network.overlap else DistributedRuntime
        self.runtime = kind(world, placement, self.steps, None, None, names, config.mesh, counts=counts, read=read)

    def _peers(self, world: ProcessWorld, i: int, module: Stage) -> Peers:
        shared, own = module.groups < self._groups[i], isinstance(module, ModelStage)
        return ProcessPeers(world, f"module {module.name}", shared, uneven=own)

    def _step(self, module: Stage, peers: Peers | None) -> LocalStep:
        config, precision = self.config, self.config.train.precision
        assert precision is not None
        parameters, settings = module.own_parameters().values(), config.optimizer
        if self._optimizer is None:
            optimizer = build_optimizer(settings, parameters, module.groups)
        else:
            optimizer = self._optimizer(parameters)
        return LocalStep(module, optimizer, precision, settings.clip_norm, config.seed, peers, self._accumulate)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state, named as in the whole network; the rows of this process's groups."""
        found = self.weights()
        for step in self.steps.values():
            found |= checkpoints.optimizer_tensors(step.module.name, step.module, step.optimizer)
        return found

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers, likewise."""
        return {
            f"network/{network_name(i, key)}": value
            for i, step in self.steps.items()
            for key, value in step.module.weights().items()
        }

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts the weights are their moving averages, where these are kept."""
        averages = [step.average for step in self.steps.values() if step.average is not None]
        for average in averages:
            average.swap()
        try:
            yield
        finally:
            for average in averages:
                average.swap()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what all processes' ``tensors`` are together."""
        for i, step in self.steps.items():
            own = self.own(i, tensors)
            keys = {key: f"network/{network_name(i, key)}" for key in step.module.weights()}
            step.module.load_weights({key: own[name] for key, name in keys.items()})
            checkpoints.load_optimizer(step.module.name, step.module, step.optimizer, own)
        if self._followed is not None:
            self._followed.load(tensors)
        for step in self.steps.values():
            if isinstance(step.module, ModelStage):
                step.module.copies.load({key.removeprefix("network/"): value for key, value in tensors.items()})

    def own(self, i: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows that this process has of the tensors that belong to module ``i``."""
        module = self.steps[i].module
        groups = range(module.first, module.first + module.groups)
        weights = {f"network/{network_name(i, key)}" for key in module.weights()}
        prefixes = (f"optimizer/{module.name}/", f"sums/{module.name}/")
        own = {k: v for k, v in tensors.items() if k in weights or k.startswith(prefixes)}
        return {k: rows(v, groups, self._groups[i]) for k, v in own.items()}
