"""What the JPEG copy of CIFAR-10 costs in accuracy: the same compression once more, off the grid, as a control.

The images that this project measures on went through JPEG (quality 75, colours at half the resolution) once. Nobody
can undo that, but it can be done to them again: every image is moved by (3, 5) pixels, so that blocks and colour
samples fall elsewhere, compressed with the same tables, decoded and moved back. A network trained and tested on that
second copy loses about what the first compression cost, or somewhat less, since the second one finds less to remove.

    python benchmarks/jpeg_cost.py --data $LOCALLEARN_DATA --out runs/jpeg     # the copy, then a cell of hours
    python benchmarks/jpeg_cost.py --data $LOCALLEARN_DATA --out runs/jpeg --protocol quick
"""

import argparse
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = "cifar10-jpeg"
MOVED = (3, 5)
"""Rows and columns that an image moves by: odd, so that pairs of pixels that share a colour are others, too."""


def again(data):
    """One image compressed once more off the grid, as PNG, and its squared errors against the first copy."""
    first = Image.open(io.BytesIO(data))
    pixels = np.asarray(first.convert("RGB"))
    height, width, _ = pixels.shape
    down, right = MOVED
    padded = np.pad(pixels, ((down, 16 - down), (right, 16 - right), (0, 0)), mode="edge")
    packed = io.BytesIO()
    Image.fromarray(padded).save(packed, "JPEG", qtables=first.quantization, subsampling="4:2:0")
    second = np.asarray(Image.open(packed).convert("RGB"))[down : down + height, right : right + width]
    kept = io.BytesIO()
    Image.fromarray(second).save(kept, "PNG", compress_level=1)
    return kept.getvalue(), float(np.mean((second.astype(np.float64) - pixels) ** 2))


def copy(source, target):
    """Compress a Parquet file of images once more; the mean squared error [grey levels squared]."""
    table = pq.read_table(source)
    column = next(name for name in table.column_names if pa.types.is_struct(table.schema.field(name).type))
    made = [again(row["bytes"]) for row in table[column].to_pylist()]
    kind = table.schema.field(column).type
    images = pa.array([{"bytes": data, "path": None} for data, _ in made], type=kind)
    place = table.column_names.index(column)
    changed = table.set_column(place, column, images).replace_schema_metadata(table.schema.metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(changed, target)
    return float(np.mean([error for _, error in made]))


def records(folder, cell):
    """Accuracy [%] of the last layer by seed."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{cell}-seed*.json"))]
    return {record["seed"]: 100 * record["accuracy"]["last_layer"] for record in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {FOLDER}/train.parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder of the second copy, its runs and its records")
    parser.add_argument("--cell", default="cifar10-resnet32-e2e")
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    errors = args.out / "errors.json"
    if not errors.exists():
        found = {}
        for split in ("train", "test"):
            name = Path(FOLDER, f"{split}.parquet")
            found[split] = copy(args.data / name, args.out / "data" / name)
        errors.write_text(json.dumps(found))
    folders = ["--data.root", args.out / "data", "--results", args.out / "results", "--runs", args.out / "runs"]
    amount = ["--protocol", args.protocol, "--seeds", args.seeds, "--threads", args.threads, "--jobs", 1]
    command = [sys.executable, "-m", "locallearn", "reproduce", args.cell, *amount, *folders]
    subprocess.run([str(part) for part in command], check=True)
    once = records(ROOT / "results" / args.protocol, args.cell)
    twice = records(args.out / "results" / args.protocol, args.cell)
    error = json.loads(errors.read_text())["test"]
    said = {
        "cell": args.cell,
        "protocol": args.protocol,
        "peak_signal_to_noise_of_the_second_compression": 10 * math.log10(255**2 / error),
        "accuracy_compressed_once": once,
        "accuracy_compressed_twice": twice,
        "cost": {seed: once[seed] - accuracy for seed, accuracy in twice.items() if seed in once},
    }
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
