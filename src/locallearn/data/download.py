"""Fetch an official archive: resumable, checked, and under its name only when it is whole."""

from __future__ import annotations

import sys
from contextlib import suppress
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from locallearn.data.archives import check_md5
from locallearn.errors import DataError

_CHUNK = 1 << 16
_TIMEOUT = 30.0  # seconds without a byte


def download(url: str, target: Path, md5: str) -> None:
    """Fetch ``url`` to ``target``, continuing ``target`` + ``.part`` where there is one.

    Args:
        url: address of the archive.
        target: where it goes; the folder is made.
        md5: its checksum.

    Raises:
        DataError: it cannot be fetched, or the connection broke (the part is kept), or the checksum is wrong (the
            part is removed).
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        total = _fetch(url, part)
        done = part.stat().st_size
    except (OSError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        again = "; run it again to continue" if part.exists() else ""
        raise DataError(f"cannot fetch {url}: {reason}{again}") from None
    if total is not None and done < total:
        raise DataError(f"fetching {url} stopped at {done} of {total} bytes; run it again to continue")
    try:
        check_md5(part, md5)
    except DataError as error:
        part.unlink()
        raise DataError(f"{error}; it was removed, run it again to fetch it anew") from None
    part.replace(target)


def _fetch(url: str, part: Path) -> int | None:
    """Fetch what is not in ``part`` yet; gives the size of the whole file where the server tells it [bytes]."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    start = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and start:  # nothing is left to fetch: the checksum decides
            error.close()
            return None
        raise
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # Standard output is for results.
    with response, Progress(*columns, console=Console(file=sys.stderr)) as progress:
        if response.status != 206:  # the server starts from the beginning
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=start)
        # A broken connection shows in the size.
        with part.open("ab" if start else "wb") as file, suppress(IncompleteRead):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    return total
