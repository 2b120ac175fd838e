"""``locallearn verify RECIPE [--option value ...]``: checks of a configuration on this machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from locallearn.cli.config_source import SHORT, SHOWN, start
from locallearn.cli.console import Terminal
from locallearn.cli.early import check_names, working
from locallearn.cli.options import parse, value_of
from locallearn.cli.own_model import names_own
from locallearn.config import RunConfig

if TYPE_CHECKING:
    from locallearn.training.verify import Check


@dataclass(frozen=True)
class VerifyOptions:
    """Options of ``verify``: the configuration of the run that you mean to start."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    config_file: Annotated[str | None, tyro.conf.arg(name="config", metavar="FILE.toml")] = None
    """Settings from a file, such as a run's config.toml, in place of a recipe's or on top of it; options win."""
    synthetic: bool = False
    """Use random pixels in the shape of the data set even where it is there, and do not read it."""
    json: bool = False
    """Print what was checked as JSON."""


USAGE = """Check a recipe on this machine: locallearn verify RECIPE [--option value ...].

In a few steps on a few images: no gradient crosses a boundary between nodes, training is repeatable, a saved run
resumes exactly, and several processes train what one trains. Takes the options of `locallearn train`. Where the data
set is not there, random pixels of its shape take its place. Exit code 1 when a check fails. A model of your own:
locallearn verify --model package.module:function (its options: add --help)."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if names_own(value_of("--model", arguments) or ""):
        from locallearn.cli import verify_own_model

        return verify_own_model.run(arguments)
    name, config, rest = start(arguments, "verify", "verify gn-dgl")
    command, default = f"verify {name or 'RECIPE'}", VerifyOptions(config)
    options = parse(
        VerifyOptions, rest, command, USAGE, default, SHORT, ("--config", *SHOWN, "--synthetic", "--json")
    )
    check_names(options.config)
    data = options.config.data
    with working("training a few steps, several times", options.json):
        from locallearn.training import verify

        dataset, synthetic = (verify.synthetic(data), True) if options.synthetic else verify.images_of(data)
        checks = verify.verify(options.config, dataset)
    if options.json:
        values = {"data": dataset.source, "synthetic": synthetic, "checks": [dataclasses.asdict(c) for c in checks]}
        print(json.dumps(values, indent=2))
    else:
        show(dataset.source, checks)
        if options.config.runtime == "asynchronous":
            print("Asynchronous training is not repeatable, so neither that nor an exact resume is checked.")
    return 0 if all(check.passed for check in checks) else 1


def show(source: str, checks: Sequence[Check]) -> None:
    """Print the checks as a table."""
    table = Table(title=f"Checks on {source}", box=box.SIMPLE_HEAD)
    for column in ("check", "result", "largest difference", "what was compared"):
        table.add_column(column)
    for check in checks:
        difference = "not finite" if check.difference is None else f"{check.difference:.3g}"
        result = Text("pass", style="green") if check.passed else Text("FAIL", style="red")
        table.add_row(check.name, result, difference, check.detail)
    Terminal().print(table)
