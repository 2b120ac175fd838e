"""``locallearn train RECIPE [--option value ...] --run DIR`` and ``locallearn train --resume DIR``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from locallearn import plugins
from locallearn.cli.config_source import SHORT, SHOWN, start
from locallearn.cli.console import Terminal, warn
from locallearn.cli.early import check_names, working
from locallearn.cli.options import check_at_least, parse, value_of
from locallearn.config import MeshConfig, OptimizerConfig, RunConfig, RuntimeName, ScheduleConfig
from locallearn.data.counted import training_images
from locallearn.errors import ConfigError, LocalLearnError, UsageError, one_line
from locallearn.plan.mesh import Mesh, place_nodes
from locallearn.recipes.batch_size import fitted
from locallearn.recipes.named import recipe
from locallearn.training.record import RunFolder


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``train``: the configuration of the run, and where it goes."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    run: str | None = None
    """Folder of the run; by default runs/RECIPE-seedN."""
    config_file: Annotated[str | None, tyro.conf.arg(name="config", metavar="FILE.toml")] = None
    """Settings from a file, such as a run's config.toml, in place of a recipe's or on top of it; options win."""
    overwrite: bool = False
    """Replace the run in that folder."""
    json: bool = False
    """Print the summary as JSON and no progress."""
    processes: int = 1
    """Start so many processes on this machine for the distributed runtime; without a mesh they share the depth."""
    restarts: int = 0
    """How often these processes are started again, from the last checkpoint, after one of them died."""

    def __post_init__(self) -> None:
        check_at_least(self, processes=1, restarts=0)


@dataclass(frozen=True)
class ResumeOptions:
    """Options of ``train --resume``; everything else is in the run's config.toml."""

    resume: str
    """Folder of the run to continue."""
    runtime: RuntimeName
    """Continue with another runtime; by default the run's own."""
    mesh: MeshConfig
    """Continue on other processes; by default as many as before."""
    device: str | None = None
    """Continue on another device, cpu or cuda[:N]."""
    threads: int | None = None
    """Continue with another number of CPU threads."""
    data_root: str | None = None
    """Folder that holds the data, where it has moved."""
    epochs: int | None = None
    """Train for so many in all, those that are done included; by default as many as before [epochs]."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Other settings from here on. The optimizer stays; one of another package must be named once more, for what only
    a file names is not imported."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Another schedule from here on: the rate of a step is what it gives for that step of the whole run."""
    json: bool = False
    """Print the summary as JSON and no progress."""
    processes: int = 1
    """Start so many processes on this machine for the distributed runtime."""
    restarts: int = 0
    """How often these processes are started again, from the last checkpoint, after one of them died."""

    def __post_init__(self) -> None:
        check_at_least(self, processes=1, restarts=0, threads=1, epochs=1)


USAGE = """Train a recipe as K x G nodes: locallearn train RECIPE [--option value ...] --run DIR.

RECIPE is a method (such as e2e, dgl, gn-dgl or dgssl) for the embedded digits, or MODEL-METHOD such as
resnet32-gn-dgl; `locallearn recipes` lists them. Continue a run with: locallearn train --resume DIR, and for longer
or with another rate with: locallearn train --resume DIR --epochs N --lr R."""

_RESUME_USAGE = """Continue a run from its newest checkpoint: locallearn train --resume DIR [--option value ...].

With --epochs, --lr or --schedule the rest is trained with other settings, a finished run too: config.toml then says
these, and history.json what was before."""

_RESUME_SHORT = {
    "--train.epochs": "--epochs",
    **{name: whole for name, whole in SHORT.items() if whole.startswith(("--optimizer.", "--schedule."))},
}
_RESUME_SHOWN = (
    "--resume",
    "--epochs",
    "--lr",
    "--schedule",
    "--runtime",
    "--processes",
    "--device",
    "--threads",
    "--data-root",
    "--json",
)

_SHORT = {**SHORT, "--run-folder": "--run"}
"""Short forms, and a name of --run that torchrun does not take for an option of its own."""

_SHOWN = ("--run", "--config", *SHOWN, "--json")
"""What ``--help`` shows."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        return _resume(arguments)
    name, config, rest = start(arguments, "train", "train gn-dgl --run runs/first")
    command = f"train {name or 'RECIPE'}"
    options = parse(TrainOptions, rest, command, USAGE, TrainOptions(config), _SHORT, _SHOWN)
    check_names(options.config)
    options = dataclasses.replace(options, config=_fitted(options.config, config))
    if options.run == "":  # as of a variable of the shell that is not set
        raise ConfigError("--run", options.run, "the name of a folder")
    folder = Path(options.run or f"runs/{name}-seed{options.config.seed}")
    if _launches(options.processes):
        _check_runtime(options.config.runtime)
        _check_mesh(options.config, options.processes)
        RunFolder(folder).check_free(options.overwrite)
        return _launch(arguments, options.processes, options.restarts)
    if "RANK" not in os.environ:  # else another process makes the folder, or has made it
        RunFolder(folder).check_free(options.overwrite)
    config = _on_processes(options.config, options.processes)
    with working("importing torch", options.json):
        from locallearn.cli.progress import LiveProgress
        from locallearn.runtime.restarts import check_not_in_vain
        from locallearn.training import runs
    with LiveProgress(quiet=options.json) as progress:
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if again:
            check_not_in_vain()
        if again and (folder / "config.toml").is_file():
            summary = runs.resume(folder, progress)  # started again after a process died
        else:
            summary = runs.train(config, folder, progress, options.overwrite)
    return _finish(folder, summary, options.json)


def _fitted(config: RunConfig, default: RunConfig) -> RunConfig:
    """For the user's own images, the recipe's batch and rate fit their number, unless these were asked for."""
    asked = (config.train.batch_size, config.optimizer) != (default.train.batch_size, default.optimizer)
    images = training_images(config.data)  # refuses a folder that is none, which takes no torch
    if images is None or default.data.name == config.data.name or asked:
        return config
    return fitted(config, images)


def _resume(arguments: Sequence[str]) -> int:
    folder = value_of("--resume", arguments)
    config = RunFolder(Path(folder)).config() if folder is not None else recipe("gn-dgl")
    default = ResumeOptions(
        folder or "", config.runtime, config.mesh, optimizer=config.optimizer, schedule=config.schedule
    )
    options = parse(ResumeOptions, arguments, "train --resume", _RESUME_USAGE, default, _RESUME_SHORT, _RESUME_SHOWN)
    if options.optimizer.name != config.optimizer.name:
        expected = f"{config.optimizer.name}, with which the run began"
        raise ConfigError("optimizer.name", options.optimizer.name, expected)
    if any(value_of(name, arguments) for name in ("--optimizer.name", "--optimizer")):
        plugins.allow_import(options.optimizer.name)
    if _launches(options.processes):
        _check_runtime(options.runtime)
        _check_mesh(dataclasses.replace(config, runtime=options.runtime, mesh=options.mesh), options.processes)
        RunFolder(Path(options.resume)).check_idle()
        return _launch(arguments, options.processes, options.restarts)
    changed = dataclasses.replace(config, runtime=options.runtime, mesh=_mesh_of(config, options))
    changed = _on_processes(changed, options.processes)
    with working("importing torch", options.json):
        from locallearn.cli.progress import LiveProgress
        from locallearn.training import runs
    with LiveProgress(quiet=options.json) as progress:
        summary = runs.resume(
            Path(options.resume),
            progress,
            device=options.device,
            threads=options.threads,
            root=options.data_root,
            runtime=changed.runtime,
            mesh=changed.mesh,
            epochs=options.epochs,
            optimizer=options.optimizer,
            schedule=options.schedule,
        )
    return _finish(Path(options.resume), summary, options.json)


def _mesh_of(config: RunConfig, options: ResumeOptions) -> MeshConfig:
    """The mesh that was asked for; one process has none, whatever the run had before."""
    if options.runtime != "distributed" and options.mesh == config.mesh:
        return MeshConfig(wire=config.mesh.wire)
    return options.mesh


def _launches(processes: int) -> bool:
    """Whether this process starts the others; one that was started has a rank."""
    return processes > 1 and "RANK" not in os.environ


def _check_runtime(runtime: str) -> None:
    if runtime != "distributed":
        raise UsageError("--processes: only with --runtime distributed")


def _check_mesh(config: RunConfig, processes: int) -> None:
    """Refuse a mesh that does not fit the network or the number of processes, before any of them starts."""
    from locallearn.core.methods import methods

    chosen = _on_processes(config, processes).mesh
    if chosen.size != processes:
        sizes = f"mesh of depth {chosen.depth} x width {chosen.width} x data {chosen.data}"
        raise ConfigError("--processes", processes, f"{chosen.size} for a {sizes}")
    groups = [module.groups for module in methods.build(config.method, config).modules]
    place_nodes(Mesh(chosen.depth, chosen.width, chosen.data), groups, [1.0] * len(groups), decoupled=False)


def _launch(arguments: Sequence[str], processes: int, restarts: int) -> int:
    from locallearn.runtime.launch import launch

    def say(message: str) -> None:
        print(f"locallearn: {one_line(message)}", file=sys.stderr)

    return launch(["train", *arguments], processes, restarts, say)


def _on_processes(config: RunConfig, processes: int) -> RunConfig:
    """Without a mesh, ``--processes`` share the depth."""
    if processes > 1 and config.mesh.size == 1:
        return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, depth=processes))
    return config


def _finish(folder: Path, summary: dict[str, Any], as_json: bool) -> int:
    if not summary:  # one of the other processes
        return 0
    from locallearn.cli.tables import node_table, node_title, parameters_text, process_table, summary_table

    try:
        with working("importing matplotlib and drawing", as_json):
            from locallearn.report.html import write_report

            report: Path | str = write_report([folder], folder / "report.html")
        table = summary_table([folder])
    except LocalLearnError as error:  # the training itself has ended well
        report, table = "none", None
        warn(f"the run is finished, but there is no report: {error}")
    if as_json:
        print(json.dumps(summary, indent=2))
        return 0
    console = Terminal()
    if table is not None:
        console.print(table)
    console.print(node_table(summary["nodes"], node_title(summary["accuracy"].get("protocol"))))
    if summary.get("processes"):
        console.print(process_table(summary["processes"]))
    if "deployed_parameters" in summary:
        console.print(parameters_text(summary), highlight=False)
    console.print(f"run: {folder}   report: {report}")
    return 0
