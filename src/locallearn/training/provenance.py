"""What a result was obtained with: hardware, versions, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import locallearn


def facts_of(device: str) -> dict[str, Any]:
    """What every figure says besides itself: ``hardware``, ``versions`` and ``commit``."""
    return {"hardware": hardware(device), "versions": versions(), "commit": commit()}


def hardware(device: str) -> dict[str, Any]:
    """What the machine is, for records: no host name, no paths."""
    import torch

    from locallearn.nn.native import build

    facts: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": str(build.kernels()) if device == "cpu" else "torch",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    import torch

    return {
        "locallearn": locallearn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that this package lies in, with ``-dirty`` where files differ.

    Of an installed copy it is the commit that its wheel was built from, or that pip installed it from (``pip install
    git+https://...``); None where neither is known.
    """
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", str(Path(__file__).resolve())):
            return installed_commit()  # inside somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return installed_commit()


def installed_commit() -> str | None:
    """The commit that this package was built from, as the build (``setup.py``) or pip (PEP 610) noted it, or None."""
    try:
        return (Path(__file__).resolve().parents[1] / "commit.txt").read_text()
    except OSError:
        pass
    try:
        noted = importlib.metadata.distribution("locallearn").read_text("direct_url.json")
        return json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        return None


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far [bytes]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
