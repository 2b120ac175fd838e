"""A small GPT-2 as three local modules learns the Zen of Python letter by letter.

python examples/gpt2_on_text.py [STEPS] [0c1f | shared]: heads with an unembedding of their own, or the model's, read.
"""

import codecs
import contextlib
import io
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import locallearn as ll

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
CONTEXT = 48

with contextlib.redirect_stdout(io.StringIO()):  # importing it prints it
    import this
text = codecs.decode(this.s, "rot13")
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text])


def batch(n):
    """Pieces of the text at random places; labels are the ids themselves, the model compares with the next one."""
    starts = torch.randint(len(ids) - CONTEXT, (n, 1))
    pieces = ids[starts + torch.arange(CONTEXT)]
    return {"input_ids": pieces, "labels": pieces}


def write(model, start, n):
    """Continue a text with the most likely letters."""
    model.eval()
    found = torch.tensor([[letters.index(letter) for letter in start]])
    for _ in range(n):
        found = torch.cat([found, model(input_ids=found[:, -CONTEXT:]).logits[:, -1:].argmax(-1)], 1)
    return "".join(letters[i] for i in found[0].tolist())


torch.manual_seed(0)
torch.set_num_threads(1)
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=len(letters),
        n_positions=CONTEXT,
        n_embd=96,
        n_layer=3,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
)


def adamw(parameters):
    """The optimizer of one module."""
    return torch.optim.AdamW(parameters, lr=3e-3)


network = ll.split(
    model,
    cuts=["transformer.h.0", "transformer.h.1"],
    objective="next-token",
    head=sys.argv[2] if len(sys.argv) > 2 else "0c1f",
    example=batch(2),
    optimizer=adamw,
)
network.train()
print(f"{len(text)} letters; the last module reads {network.pieces[-1].reads[0]}, which the first one trains")
for step in range(1, STEPS + 1):
    metrics = network.step(batch(16))
    if step % 30 == 0 or step == STEPS:
        losses = " ".join(f"{metrics[f'loss/{k}']:.3f}" for k in (1, 2, 3))
        print(f"step {step}: losses of the modules {losses} [nats a letter]")
print(write(network.merge(), "Beautiful is", 60))
