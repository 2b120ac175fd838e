"""Where the figures of a run go beside metrics.jsonl. What a logger needs is imported when a run asks for it."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from locallearn.arguments import checked_names
from locallearn.errors import LocalLearnError, UsageError
from locallearn.files import cannot_write, write_atomically
from locallearn.registry import Registry


class Logger(Protocol):
    """Is told what a run records."""

    def on_event(self, event: dict[str, Any]) -> None:
        """An event was recorded, as a line of metrics.jsonl: ``event`` names its kind, ``step`` when it was."""

    def close(self) -> None:
        """Training has ended, or stopped."""


@checked_names
@dataclass(frozen=True)
class LoggerInput:
    """What a logger is built for.

    Attributes:
        folder: of the run.
        config: the run's settings as nested dictionaries, to be shown beside its figures.
        options: settings of the logger's own: an instance of the dataclass that it was registered with; None without.
    """

    folder: Path
    config: Mapping[str, Any]
    options: Any = None

    def identity(self, name: str) -> str:
        """A name for the run that a service remembers it by: the same in a resume, another in another run.

        Args:
            name: of the logger; the identity is kept in the run's folder.
        """
        path = self.folder / "loggers" / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8").strip()


loggers: Registry[Callable[[LoggerInput], Any]] = Registry("loggers.names", "given: LoggerInput")
"""Builders of loggers by name. What they build has ``on_event(event)`` and ``close()``."""


class Loggers:
    """Several loggers as one. One that fails is left out from then on, with a warning: training goes on.

    Args:
        names: which ones; None is TensorBoard where it is installed.
        folder: of the run.
        config: the run's settings as nested dictionaries.
        options: settings of each logger's own, by its name.
        warn: is given one line for each logger that fails.

    Raises:
        ConfigError: no such logger, or settings that do not fit.
        UsageError: what a logger needs is not installed.
    """

    def __init__(
        self,
        names: Sequence[str] | None,
        folder: Path,
        config: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = print,
    ) -> None:
        if names is None:
            names = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
        self._warn = warn
        self._built: dict[str, Logger] = {}
        for name in names:
            own = loggers.options(name, (options or {}).get(name), f"loggers.options.{name}")
            self._built[name] = loggers.build(name, LoggerInput(folder, config, own))

    def on_event(self, event: dict[str, Any]) -> None:
        """Tell every logger."""
        self._each(lambda logger: logger.on_event(event))

    def close(self) -> None:
        """Close every logger."""
        self._each(lambda logger: logger.close())
        self._built.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._built.items()):
            try:
                call(logger)
            except LocalLearnError:
                raise
            except Exception as error:
                del self._built[name]
                self._warn(f"logger {name} is left out from here on: {type(error).__name__}: {error}")


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of a train or evaluate event by name; of other events none."""
    kind = event["event"]
    if kind not in ("train", "evaluate"):
        return {}
    found = {f"{kind}/{key}": value for key, value in event.items() if isinstance(value, float)}
    for node in event["nodes"]:
        place = f"module {node['module']}, group {node['group']}"
        found |= {f"{kind} {key}/{place}": node[key] for key in ("loss", "accuracy") if key in node}
    return found


def needed(package: str, name: str, extra: str | None = None) -> Any:
    """Import what a logger needs.

    Raises:
        UsageError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        how = f"pip install 'locallearn[{extra or name}]'"
        raise UsageError(f"loggers.names: {name} needs {package}, which is not there ({error}); {how}") from None


class TensorBoard:
    """Event files in the run's folder; those of an interrupted run are replaced from the first new step on."""

    def __init__(self, given: LoggerInput) -> None:
        needed("tensorboard", "tensorboard")
        self._folder, self._writer = given.folder / "tensorboard", None

    def on_event(self, event: dict[str, Any]) -> None:
        """Write the figures.

        Raises:
            DiskError: the disk is full or broken.
        """
        found = scalars(event)
        if not found:
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder), purge_step=event["step"])
            for name, value in found.items():
                self._writer.add_scalar(name, value, event["step"])
            self._writer.flush()
        except OSError as error:
            raise cannot_write(self._folder, error) from None
        except UnicodeEncodeError:  # TensorBoard takes only names that UTF-8 has
            return

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


@loggers.register("tensorboard")
def tensorboard(given: LoggerInput) -> TensorBoard:
    """TensorBoard's event files."""
    return TensorBoard(given)


@dataclass(frozen=True)
class WandbOptions:
    """Settings of Weights & Biases; its own environment variables hold too."""

    project: str = "locallearn"
    """Project."""
    entity: str | None = None
    """Team or user; by default your own."""
    name: str | None = None
    """Name of the run; by default its folder's."""
    mode: Annotated[str | None, Field(pattern="^(online|offline|disabled)$")] = None
    """online, offline (synchronised by hand later) or disabled; by default what wandb itself is set to."""


class Wandb:
    """A run of Weights & Biases, continued by a resume."""

    def __init__(self, given: LoggerInput) -> None:
        self._wandb, self._given = needed("wandb", "wandb"), given
        self._run: Any = None

    def on_event(self, event: dict[str, Any]) -> None:
        """Send the figures; the first event begins or continues the run."""
        options, folder = self._given.options, self._given.folder
        if self._run is None:
            self._run = self._wandb.init(
                project=options.project,
                entity=options.entity,
                name=options.name or folder.name,
                mode=options.mode,
                dir=str(folder),
                id=self._given.identity("wandb"),
                resume="allow",
                config=dict(self._given.config),
            )
        found = scalars(event)
        if found:
            self._run.log(found, step=event["step"])

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()


loggers.add("wandb", Wandb, options=WandbOptions)


@dataclass(frozen=True)
class MlflowOptions:
    """Settings of MLflow; its own environment variables hold too."""

    tracking_uri: str | None = None
    """Server or store, such as http://127.0.0.1:5000 or sqlite:///runs.db; by default MLflow's own setting."""
    experiment: str = "locallearn"
    """Experiment."""
    name: str | None = None
    """Name of the run; by default its folder's."""


class Mlflow:
    """A run of MLflow, continued by a resume."""

    def __init__(self, given: LoggerInput) -> None:
        self._client = needed("mlflow", "mlflow").MlflowClient(given.options.tracking_uri)
        self._given = given
        self._run: str | None = None

    def on_event(self, event: dict[str, Any]) -> None:
        """Send the figures; the first event begins or continues the run."""
        if self._run is None:
            self._run = self._begin()
        for name, value in scalars(event).items():
            self._client.log_metric(self._run, name.replace(",", ""), value, step=event["step"])  # no commas there

    def _begin(self) -> str:
        options, folder = self._given.options, self._given.folder
        experiment = self._client.get_experiment_by_name(options.experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(options.experiment)
        ours = self._given.identity("mlflow")
        known = self._client.search_runs([number], f"tags.locallearn = '{ours}'")
        if known:
            self._client.update_run(known[0].info.run_id, status="RUNNING")
            return known[0].info.run_id
        run = self._client.create_run(number, tags={"locallearn": ours}, run_name=options.name or folder.name)
        for key, value in _flat(self._given.config):
            self._client.log_param(run.info.run_id, key, value)
        return run.info.run_id

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._client.set_terminated(self._run)


loggers.add("mlflow", Mlflow, options=MlflowOptions)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings by their dotted names."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found
