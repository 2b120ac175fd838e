"""Wrong calls and kills, at random but repeatable: what must hold of every one of them.

    python benchmarks/fuzz.py --calls 2000 --kills 200 --seed 0

A call ends with exit code 0, 1 or 2; where it fails, standard error has one line, never a traceback, and no control
character. A training that is killed (SIGKILL) at any moment and continued, as often as it takes, ends with the
weights of one that was never killed, and leaves no temporary file. Everything is done in a temporary folder and
within a limit of memory; a call that turns out to be right is stopped after some seconds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from locallearn.cli.main import COMMANDS, main
from locallearn.config import (
    CheckpointConfig,
    DataConfig,
    RunConfig,
    ScheduleConfig,
    SequentialConfig,
    TrainConfig,
)
from locallearn.training import runs
from locallearn.training.checkpoint import load

CALL_SECONDS = 20
MEMORY = 12 << 30
TINY = RunConfig(
    method="gn-dgl",
    model="tiny-resnet",
    depth=2,
    width=(2,),
    data=DataConfig(train_limit=96, test_limit=40),
    train=TrainConfig(epochs=2, batch_size=32, precision="fp32", device="cpu", threads=1),
    schedule=ScheduleConfig(name="constant"),
    checkpoint=CheckpointConfig(every_steps=1),
)
BASE = ["--model", "tiny-resnet", "--data.train-limit", "64", "--data.test-limit", "20", "--train.epochs", "1"]
NUMBERS = [
    "-1",
    "0",
    "1e30",
    "nan",
    "inf",
    "-inf",
    "1.5",
    "",
    "x",
    "99999999999999999999",
    "9" * 5000,
    "1_0",
    "٣",
    "0x10",
]
NAMES = [
    "",
    " ",
    "[bold]x[/bold]",
    "[/]",
    "\x1b[2J\x1b[31m",
    "a\nb",
    "\udcff",
    "\ud800",
    "%s",
    "{0}",
    "../..",
    "-",
    "--",
]
NAMES += ["é" * 300, "x" * 5000, "~", "\u202e", "a\x00b"]
NUMERIC = [
    "--train.epochs",
    "--train.batch-size",
    "--train.threads",
    "--train.evaluate-batch-size",
    "--train.knn-bank",
    "--train.knn-temperature",
    "--mesh.timeout",
    "--mesh.depth",
    "--mesh.in-flight",
    "--objective.head-width",
    "--objective.projection",
    "--objective.temperature",
    "--objective.masking.decoder-width",
    "--optimizer.learning-rate",
    "--optimizer.momentum",
    "--schedule.warmup-epochs",
    "--checkpoint.keep-last",
    "--checkpoint.every-steps",
    "--data.image-size",
    "--data.train-limit",
    "--asynchronous.buffer-size",
    "--sequential.cache-gib",
    "--sequential.cache-epochs",
    "--depth",
    "--width",
    "--seed",
    "--patch-size",
    "--processes",
    "--restarts",
    "--dropout",
]
WORDS = [
    "--model",
    "--method",
    "--runtime",
    "--cuts",
    "--objective.loss",
    "--objective.head",
    "--data.name",
    "--data.root",
    "--train.device",
    "--train.precision",
    "--optimizer.name",
    "--schedule.milestones",
    "--run",
]


@dataclasses.dataclass
class Place:
    """What calls may name: a finished run, images, and files that are none.

    Attributes:
        folder: everything lies in it.
        run: a finished run, copied for every call that may change it.
        images: two images.
    """

    folder: Path
    run: Path
    images: Path

    @classmethod
    def make(cls, folder: Path) -> Place:
        """Train the run and draw the images."""
        place = cls(folder, folder / "finished", folder / "images")
        runs.train(TINY, place.run)
        place.images.mkdir()
        for name in ("a.png", "\udcff.png"):
            Image.new("L", (8, 8), 100).save(place.images / name)
        (folder / "file").write_text("mine")
        (folder / "loop").symlink_to("loop")
        os.mkfifo(folder / "pipe")
        return place

    def copy(self, damage: random.Random | None) -> str:
        """A copy of the run; with a random generator, one file of it is damaged."""
        target = self.folder / "copy"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.run, target)
        if damage is not None:
            _damage(damage, damage.choice(sorted(path for path in target.rglob("*") if path.is_file())))
        return str(target)

    def outputs(self) -> list[str]:
        """Places that cannot be written, and some that can."""
        here = str(self.folder)
        names = [
            "file/x",
            "pipe",
            "loop",
            "images",
            "no/such/folder",
            "x" * 300,
            "x" * 250,
            "\x1b[31m",
            "[/]",
            "\udcff",
        ]
        endings = ["", ".html", ".npz", ".parquet", ".csv"]
        return [f"{here}/{name}{ending}" for name in names for ending in endings] + [
            "/dev/full",
            "/dev/null",
            "/",
            "",
        ]


def _damage(draw: random.Random, path: Path) -> None:
    """Change a file as a broken disk, a half copy or an editor would."""
    content = path.read_bytes()
    at = draw.randrange(len(content) + 1)
    kinds: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: content[:at],
        lambda: content[:at] + draw.randbytes(8) + content[at + 8 :],
        lambda: content + draw.randbytes(40),
        lambda: draw.choice(
            [b"[]", b"{}", b"null", b"1", b'"x"', b"[" * 10_000, b'{"parts": 1}', b"a = 1", b"\xff\xfe"]
        ),
        lambda: b"\n".join([content, content]),
    ]
    path.write_bytes(draw.choice(kinds)())


def random_call(draw: random.Random, place: Place) -> list[str]:
    """The arguments of a call that is wrong in one or several ways, and sometimes in none."""
    kind = draw.choice(["words", "options", "options", "options", "outputs", "damage", "damage", "bench"])
    if kind == "words":
        return [draw.choice([*COMMANDS, *NAMES]), *draw.choices([*NAMES, *NUMBERS, *NUMERIC], k=draw.randrange(4))]
    if kind == "options":
        return _options(draw, place)
    if kind == "bench":
        command = draw.choice([["bench", "step"], ["bench", "inference"], ["cost"], ["plan"], ["bench", "memory"]])
        options = [
            "--repeats",
            "--depth",
            "--width",
            "--image-size",
            "--batch-size",
            "--model",
            "--memory",
            "--devices",
        ]
        return [*command, draw.choice(options), draw.choice([*NUMBERS, *NAMES])]
    run = place.copy(draw if kind == "damage" else None)
    images = draw.choice([str(place.images), str(place.folder / "file"), "", *NAMES])
    images = str(place.images) if kind == "damage" else images
    output = draw.choice(place.outputs()) if kind == "outputs" else str(place.folder / "new")
    command = draw.choice(["report", "predict", "embed", "export", "probe", "evaluate", "resume", "cost"])
    if kind == "damage" and command == "cost":
        command = "resume"
    overwrite = ["--overwrite"] if draw.random() < 0.5 else []
    calls: dict[str, list[str]] = {
        "report": ["report", run, "--output", output],
        "predict": ["predict", run, images, "--output", output],
        "embed": ["embed", run, images, "--out", output if kind == "outputs" else output + ".npz", *overwrite],
        "export": ["export", run, "--output", output, "--formats", "safetensors"],
        "probe": ["probe", run, "--epochs", "1", "--name", draw.choice(["a", *NAMES]), *overwrite],
        "evaluate": ["evaluate", run, "--checkpoint", draw.choice(["last", "best", "1", *NAMES])],
        "resume": ["train", "--resume", run],
        "cost": ["cost", "--model", "tiny-resnet", "--report", output],
    }
    return calls[command]


def _options(draw: random.Random, place: Place) -> list[str]:
    """A training with wrong settings."""
    found = ["train", draw.choice(["gn-dgl", "dgl", "e2e", "simclr", "mae", draw.choice(NAMES)]), *BASE]
    for _ in range(draw.randrange(1, 4)):
        if draw.random() < 0.7:
            found += [draw.choice(NUMERIC), draw.choice(NUMBERS)]
        else:
            found += [draw.choice(WORDS), draw.choice(NAMES)]
    return [*found, "--run", draw.choice([str(place.folder / "trained"), *place.outputs()]), "--overwrite"]


def call(arguments: Sequence[str]) -> tuple[str, str]:
    """What became of a call, and what is wrong with that; the latter is empty where all is well."""
    out, err = io.StringIO(), io.StringIO()

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(CALL_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    except KeyboardInterrupt:
        code = 1
    except BaseException:
        return "raised", traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    said = err.getvalue()
    lines = [line for line in said.splitlines() if line.startswith("locallearn:") and " warning: " not in line[:24]]
    if code not in (0, 1, 2):
        return "code", f"exit code {code}"
    if "Traceback" in said or (code and (len(lines) != 1 or said.rstrip("\n").splitlines()[-1:] != lines)):
        return f"exit {code}", f"standard error: {said!r}"
    if any(not c.isprintable() for c in said if c not in "\n\t"):
        return f"exit {code}", f"control characters: {said!r}"
    return f"exit {code}", ""


def check_calls(number: int, draw: random.Random, place: Place) -> int:
    """Make so many calls, and return how many went wrong."""
    counts: collections.Counter[str] = collections.Counter()
    bad = 0
    for index in range(number):
        arguments = random_call(draw, place)
        what, problem = call(arguments)
        counts[what] += 1
        if problem:
            bad += 1
            print(f"call {index}: locallearn {arguments!r:.400}\n{problem}", flush=True)
    print(f"{number} calls: {dict(sorted(counts.items()))}; {bad} wrong", flush=True)
    return bad


def _weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {name: value for name, value in load(newest).tensors.items() if name.startswith("network/")}


def _train(config: RunConfig, run: Path, seconds: float | None) -> bool:
    """Begin or continue a run in a process of its own, killed after so many seconds; tell whether it ended."""
    process = os.fork()
    if not process:
        code = 1
        try:
            if (run / "config.toml").is_file():
                runs.resume(run)
            else:
                runs.train(config, run)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise AssertionError(f"{run}: a run could not be continued after a kill")
    return status == 0


def check_kills(number: int, draw: random.Random, folder: Path) -> int:
    """Kill trainings so many times, and return how many ended otherwise than one that was left alone."""
    disk = SequentialConfig(cache="disk", cache_epochs=1)
    kinds = [TINY, dataclasses.replace(TINY, runtime="sequential", sequential=disk)]
    alone, seconds = [], []
    for index, config in enumerate(kinds):
        begin = time.monotonic()
        _train(config, folder / f"alone-{index}", None)
        seconds.append(time.monotonic() - begin)
        alone.append(_weights(folder / f"alone-{index}"))
    kills = bad = trainings = 0
    while kills < number:
        kind = draw.randrange(len(kinds))
        run = folder / "killed"
        shutil.rmtree(run, ignore_errors=True)
        for _ in range(draw.randrange(1, 5)):
            kills += 1
            if _train(kinds[kind], run, draw.uniform(0, seconds[kind])):
                break
        _train(kinds[kind], run, None)
        trainings += 1
        found = _weights(run)
        left = [*run.rglob(".*.tmp"), *run.glob("features")]
        if left or any(not torch.equal(found[name], value) for name, value in alone[kind].items()):
            bad += 1
            print(f"training {trainings}: other weights, or left behind: {left}", flush=True)
    print(f"{kills} kills of {trainings} trainings: {bad} ended otherwise than one that was left alone", flush=True)
    return bad


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    options = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="locallearn-fuzz-") as name:
        os.chdir(name)
        wrong = check_kills(options.kills, random.Random(f"kills {options.seed}"), Path(name))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        wrong += check_calls(options.calls, random.Random(f"calls {options.seed}"), Place.make(Path(name)))
    sys.exit(1 if wrong else 0)
