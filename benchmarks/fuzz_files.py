"""Damaged and hostile files, drawn from a seed: every one must be read or be refused in one line.

python benchmarks/fuzz_files.py --count 2000

Pickles: a good one with bytes changed, cut, doubled or moved; operations in random order; arrays whose types, states,
shapes and bytes are drawn. Manifests: JSON of random shapes, and names that lead out of the run. A failure is any
error but the package's own, or a message of several lines; memory that grows is printed.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from locallearn.data.archives import read_batch
from locallearn.data.pickles import load_pickle
from locallearn.errors import LocalLearnError
from locallearn.training.checkpoint import Checkpoint, CheckpointFolder, load

_OPERATIONS = [bytes([code]) for code in range(256)]
_LOOKUPS = [
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.numeric\n_frombuffer\n",
    b"c_codecs\nencode\n",
    b"cposix\nsystem\n",
    b"cbuiltins\neval\n",
    b"\x8c\x05numpy\x8c\x05dtype\x93",
]
_ARGUMENTS = [
    b"X\x02\x00\x00\x00u1",
    b"X\x02\x00\x00\x00O8",
    b"U\x02ab",
    b"C\x02ab",
    b"K\x02\x85",
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t",
    b"K\x00",
    b"N",
    b"\x88",
    b"]",
    b")",
    b"}",
    b"(",
    b"q\x00",
    b"h\x00",
    b"r\xff\xff\xff\x7f",
    b"\x94",
]
_ENDS = [b"R", b"b", b"t", b"s", b"u", b"e", b"a", b"\x81", b"\x85", b"\x86", b"\x87", b"0", b"2"]


def good_pickles() -> list[bytes]:
    batch = {"data": np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072), "labels": [1, 2]}
    return [pickle.dumps(batch, protocol) for protocol in range(6)]


def damaged(draw: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    near = min(len(data), draw.choice((200, len(data))))
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(near)
        how = draw.randrange(4)
        if how == 0:
            data[at] = draw.randrange(256)
        elif how == 1:
            del data[at : at + draw.randint(1, 40)]
        elif how == 2:
            data[at:at] = data[draw.randrange(near) :][: draw.randint(1, 40)]
        else:
            data[at:at] = draw.choice(_LOOKUPS + _ARGUMENTS + _ENDS)
        near = max(1, min(near, len(data) - 1))
    return bytes(data)


def composed(draw: random.Random) -> bytes:
    pieces = [
        draw.choice(draw.choice((_LOOKUPS, _ARGUMENTS, _ENDS, _OPERATIONS))) for _ in range(draw.randint(1, 30))
    ]
    return b"\x80\x04" + b"".join(pieces) + b"."


def arrays(draw: random.Random) -> bytes:
    """An array whose type, state, shape and bytes are drawn."""
    code = draw.choice((b"u1", b"i8", b"O", b"O8", b"V8", b"S2", b"M8", b"f4", b"c16"))
    order = draw.choice((b"|", b"<", b">", b"=", b"!", b"", b"O"))
    state = b"(K\x03U" + bytes([len(order)]) + order + b"NNN" + b"K\x08K\x08K" + bytes([draw.randrange(256)]) + b"tb"
    kind = b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR" + draw.choice((state, b"", b"}b"))
    shape = (
        b"("
        + b"".join(
            draw.choice((b"K\x00", b"K\x01", b"K\x08", b"J\xff\xff\xff\x7f", b"M\xff\xff", b"N"))
            for _ in range(draw.randrange(5))
        )
        + b"t"
    )
    raw = bytes(draw.randrange(256) for _ in range(draw.choice((0, 1, 8, 64))))
    data = draw.choice((b"U", b"C")) + bytes([len(raw)]) + raw
    if draw.randrange(2):
        return b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(" + data + kind + shape + b"X\x01\x00\x00\x00CtR."
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    return b"\x80\x04" + empty + b"(K\x01" + shape + kind + draw.choice((b"\x88", b"\x89")) + data + b"tb."


def manifest(draw: random.Random, checksum: str) -> str:
    names = [
        "part-0000.safetensors",
        "../outside.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a\0b",
        "part-1.safetensors/..",
        "\ud800",
        "pipe",
    ]
    values = [checksum, None, 0, [], {}, "x" * 64]
    parts = {draw.choice(names): draw.choice(values) for _ in range(draw.randrange(4))}
    whole = draw.choice((parts, [parts], None, 1, "x", {"parts": parts}, {"parts": parts}, {"parts": list(parts)}))
    text = json.dumps(whole)
    return text if draw.randrange(3) else text[: draw.randrange(len(text) + 1)] + draw.choice(("", "}", "[" * 5000))


def tried(read, *given) -> str:
    """``read`` or ``refused``; anything else is a failure."""
    try:
        read(*given)
    except LocalLearnError as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            return f"FAILURE: a message of {len(str(error))} letters"
        return "refused"
    except Exception as error:
        return f"FAILURE: {type(error).__name__}: {error}"
    return "read"


def run(count: int, seed: int) -> Counter[str]:
    """What became of the files, by kind."""
    draw, found = random.Random(seed), Counter[str]()
    good = good_pickles()
    with tempfile.TemporaryDirectory() as folder:
        import torch

        checkpoints = CheckpointFolder(Path(folder, "run"), keep_last=1)
        checkpoints.write_part(Checkpoint({"a": torch.ones(2)}, {"step": 1}), 1, 0)
        place = checkpoints.complete(1, 1)
        checksum = json.loads((place / "manifest.json").read_text())["parts"]["part-0000.safetensors"]
        for i in range(count):
            kind = ("damaged", "composed", "arrays", "manifest")[i % 4]
            if kind == "manifest":
                (place / "manifest.json").write_text(
                    manifest(draw, checksum), encoding="utf-8", errors="surrogatepass"
                )
                outcome = tried(load, place)
            else:
                data = {
                    "damaged": lambda: damaged(draw, draw.choice(good)),
                    "composed": lambda: composed(draw),
                    "arrays": lambda: arrays(draw),
                }[kind]()
                outcome = tried(
                    read_batch if kind == "damaged" else load_pickle,
                    data,
                    "x",
                    *(["labels"] if kind == "damaged" else []),
                )
            found[f"{kind}: {outcome}"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(options.count, options.seed)
    for name, number in sorted(found.items()):
        print(f"{number:6} {name}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{options.count} files in {time.perf_counter() - start:.1f} s, {grown:.0f} MiB more than before")
    raise SystemExit(any("FAILURE" in name for name in found))


if __name__ == "__main__":
    main()
