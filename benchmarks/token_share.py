"""What scoring a share of the tokens does to the loss of a local language model, at equal tokens.

A GPT-2 of few layers learns the bytes of this project's own documents, with K stages whose heads score all tokens of
a batch or a share of them (``positions``), beside plain backpropagation. Everything sees the same batches. The loss
is the last stage's on text that was held out, in bits a byte.

The unembedding is not tied to the embedding here. With ``--tied``, as GPT-2 has it, it belongs to the first stage,
which trains it as an embedding alone: no stage trains it to score.

    python benchmarks/token_share.py                                     # a quarter of an hour on one core
    python benchmarks/token_share.py --steps 100 --shares 1 0.25 --seeds 0
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
import transformers as tf

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.training import provenance

ROOT = Path(__file__).parents[1]
LENGTH, BATCH = 128, 8


def text():
    """Bytes for training and bytes that are held out (every tenth block of 1,024)."""
    files = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")])
    data = b"\n".join(file.read_bytes() for file in files)
    blocks = [data[i : i + 1024] for i in range(0, len(data) - 1024, 1024)]
    train = b"".join(block for i, block in enumerate(blocks) if i % 10)
    held = b"".join(blocks[::10])
    return [torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in (train, held)]


def batches(data, count, seed):
    """Random pieces of the text, the same for a seed."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        starts = torch.randint(len(data) - LENGTH, (BATCH,), generator=draw)
        ids = torch.stack([data[i : i + LENGTH] for i in starts])
        yield {"input_ids": ids, "labels": ids}


@torch.no_grad()
def bits(model, held):
    """Mean loss of the model on held-out text [bits a byte]."""
    model.eval()
    found = statistics.mean(model(**batch).loss.item() for batch in batches(held, 16, 999))
    model.train()
    return found / math.log(2)


def trained(depth, head, share, steps, seed, data, held, tied=False):
    """Bits a byte after so many steps, and seconds of the process that they took."""
    torch.manual_seed(seed)
    config = tf.GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=128, n_layer=4, n_head=4, use_cache=False,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    model = tf.GPT2LMHeadModel(config).train()
    example = next(batches(data, 1, 0))
    network = ll.split(
        model,
        example=example,
        cuts=[f"transformer.h.{4 * k // depth - 1}" for k in range(1, depth)] or None,
        depth=1 if depth == 1 else None,
        objective="next-token",
        head=head if depth > 1 else None,
        settings=ObjectiveConfig(options={"positions": share}),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    begin = time.process_time()
    for index, batch in enumerate(batches(data, steps, seed)):
        network.walk(network.steps, network.given_batch(batch), index)
    return bits(network.model, held), time.process_time() - begin


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, nargs="+", default=[2, 4], help="K")
    parser.add_argument("--heads", nargs="+", default=["shared", "0c2f"])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.25, 0.125])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tied", action="store_true", help="the unembedding is the embedding")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    data, held = text()
    ways = [(1, "", 1.0), *((k, h, s) for k in options.depth for h in options.heads for s in options.shares)]
    rows = []
    for depth, head, share in ways:
        found = [trained(depth, head, share, options.steps, seed, data, held, options.tied) for seed in options.seeds]
        losses, seconds = zip(*found, strict=True)
        rows.append({"depth": depth, "head": head, "positions": share, "bits": losses, "cpu_seconds": seconds})
        if not options.json:
            each = " ".join(f"{value:.3f}" for value in losses)
            print(
                f"K={depth} {head:8} positions {share:5}: {statistics.mean(losses):.3f} bits a byte ({each})",
                flush=True,
            )
    facts = provenance.facts_of("cpu")
    tokens = options.steps * BATCH * LENGTH
    if options.json:
        print(
            json.dumps(
                {**facts, "tokens": tokens, "tied": options.tied, "train_bytes": len(data), "rows": rows}, indent=2
            )
        )
    else:
        print(f"{tokens:,} tokens of {len(data):,}, seeds {options.seeds}, commit {facts['commit']}")


if __name__ == "__main__":
    main()
