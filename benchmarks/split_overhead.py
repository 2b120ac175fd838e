"""What ``ll.split`` adds to a step: K stages by ``ll.split`` against the same local loop written by hand, in turns.

    python benchmarks/split_overhead.py                          # ViT-S/16 at 224 and GPT-2 small, K = 4
    python benchmarks/split_overhead.py --models gpt2 --depth 12 --repeats 5 --threads 2
    python benchmarks/split_overhead.py --small --cpu-time       # a check in a minute, on a machine with other work

The loop has the same weights, heads and optimizers, and its losses are compared with those of ``ll.split`` before
anything is timed. Goal: at most 1.05 times its time.
"""

import argparse
import copy
import json
import time

import torch
import torch.nn.functional as F
import transformers as tf

import locallearn as ll
from locallearn.bench.timing import interleaved, ratio
from locallearn.training import provenance


def adamw(parameters):
    """The optimizer of every stage."""
    return torch.optim.AdamW(list(parameters), lr=1e-4)


class ViT:
    """A vision transformer in stages of whole blocks; heads see the mean of the tokens."""

    def __init__(self, depth, small):
        side, shape = 224, {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
        if small:
            side, shape = 32, {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3}
        config = tf.ViTConfig(**shape, intermediate_size=4 * shape["hidden_size"], image_size=side, num_labels=1000)
        self.model = tf.ViTForImageClassification(config).train()
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randn(8, 3, side, side, generator=draw)
        self.batch = {"pixel_values": pixels, "labels": torch.randint(1000, (8,), generator=draw)}
        n = config.num_hidden_layers
        self.ends = [n * k // depth for k in range(1, depth)] + [n]
        self.network = ll.split(
            self.model, example=self.batch, cuts=[f"vit.layers.{end - 1}" for end in self.ends[:-1]], optimizer=adamw
        )

    def parts(self):
        """Functions of the stages on a copy of the model, and what each trains."""
        model = copy.deepcopy(self.model)
        layers, vit = list(model.vit.layers), model.vit

        def stage(k, begin, end):
            def run(x):
                x = vit.embeddings(x) if not k else x
                for layer in layers[begin:end]:
                    x = layer(x)
                return x

            return run

        begins = [0, *self.ends[:-1]]
        stages = [stage(k, *span) for k, span in enumerate(zip(begins, self.ends, strict=True))]
        owned = [
            [p for layer in layers[b:e] for p in layer.parameters()] for b, e in zip(begins, self.ends, strict=True)
        ]
        owned[0] = [*vit.embeddings.parameters(), *owned[0]]
        owned[-1] += [*vit.layernorm.parameters(), *model.classifier.parameters()]

        def last(x):
            return model.classifier(vit.layernorm(x)[:, 0])

        return stages, owned, last

    def scores(self, head, x):
        """Of a stage's head."""
        return head(F.layer_norm(x.mean(1), x.shape[-1:]))[0]

    def loss(self, scores):
        """Of scores."""
        return F.cross_entropy(scores, self.batch["labels"])

    @property
    def inputs(self):
        """Of the first stage."""
        return self.batch["pixel_values"]


class GPT2:
    """GPT-2 in stages of whole blocks; heads are a norm and the model's own unembedding, read."""

    def __init__(self, depth, small):
        shape = {"n_layer": 4, "n_embd": 96, "n_head": 3, "vocab_size": 2000} if small else {}
        config = tf.GPT2Config(**shape, use_cache=False, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        self.model = tf.GPT2LMHeadModel(config).train()
        ids = torch.randint(config.vocab_size, (2, 64 if small else 256), generator=torch.Generator().manual_seed(0))
        self.batch = {"input_ids": ids, "labels": ids}
        n = config.n_layer
        self.ends = [n * k // depth for k in range(1, depth)] + [n]
        cuts = [f"transformer.h.{end - 1}" for end in self.ends[:-1]]
        self.network = ll.split(
            self.model, example=self.batch, cuts=cuts, objective="next-token", head="shared", optimizer=adamw
        )

    def parts(self):
        """Functions of the stages on a copy of the model, and what each trains."""
        model = copy.deepcopy(self.model)
        self.copy, body = model, model.transformer
        places = torch.arange(self.inputs.shape[1])[None]

        def stage(k, begin, end):
            def run(x):
                x = body.wte(x) + body.wpe(places) if not k else x
                for block in body.h[begin:end]:
                    x = block(x)
                    x = x[0] if isinstance(x, tuple) else x
                return x

            return run

        begins = [0, *self.ends[:-1]]
        stages = [stage(k, *span) for k, span in enumerate(zip(begins, self.ends, strict=True))]
        owned = [[p for h in body.h[b:e] for p in h.parameters()] for b, e in zip(begins, self.ends, strict=True)]
        owned[0] = [body.wte.weight, body.wpe.weight, *owned[0]]
        owned[-1] += list(body.ln_f.parameters())

        def last(x):
            return F.linear(body.ln_f(x), model.lm_head.weight.detach())

        return stages, owned, last

    def scores(self, head, x):
        """Of a stage's head: a norm, and the unembedding of the loop's own model."""
        return F.linear(head.norm(x), self.copy.lm_head.weight.detach())

    def loss(self, scores):
        """Of scores of the next token."""
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), self.inputs[:, 1:].flatten())

    @property
    def inputs(self):
        """Of the first stage."""
        return self.batch["input_ids"]


def by_hand(case):
    """A step of the local loop as one writes it for a model of one's own; gives the losses."""
    stages, owned, last = case.parts()
    heads = [copy.deepcopy(each.head) for each in case.network.objectives]
    extra = [[p for p in head.parameters() if p.requires_grad] for head in heads] + [[]]
    optimizers = [adamw([*a, *b]) for a, b in zip(owned, extra, strict=True)]

    def step():
        x, losses = case.inputs, []
        for k, stage in enumerate(stages):
            x = stage(x)
            loss = case.loss(case.scores(heads[k], x) if k < len(heads) else last(x))
            optimizers[k].zero_grad()
            loss.backward()
            optimizers[k].step()
            losses.append(loss.detach())
            x = x.detach()
        return losses

    return step


def measured(name, options):
    """Both steps of a model: seconds, spread and ratio."""
    torch.manual_seed(0)
    case = {"vit": ViT, "gpt2": GPT2}[name](options.depth, options.small)
    hand = by_hand(case)
    for _ in range(2):
        found = case.network.step(case.batch)
        ours = torch.stack([found[f"loss/{k + 1}"] for k in range(options.depth)])
        torch.testing.assert_close(ours, torch.stack(hand()), rtol=1e-3, atol=1e-4)
    clock = time.process_time if options.cpu_time else time.perf_counter
    things = {"split": lambda: case.network.step(case.batch), "by hand": hand}
    times = interleaved(things, options.repeats, clock=clock)
    seconds = {f"{kind}": {"seconds": t.median, "spread": t.spread} for kind, t in times.items()}
    return {"model": name, "depth": options.depth, **seconds, "ratio": ratio(times["split"], times["by hand"])}


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["vit", "gpt2"], default=["vit", "gpt2"])
    parser.add_argument("--depth", type=int, default=4, help="K")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--small", action="store_true", help="models of four small layers: more overhead, less work")
    parser.add_argument("--cpu-time", action="store_true", help="time of the process, which other work does not take")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tf.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    rows = [measured(name, options) for name in options.models]
    facts = provenance.facts_of("cpu")
    if options.json:
        print(json.dumps({**facts, "small": options.small, "cpu_time": options.cpu_time, "rows": rows}, indent=2))
        return
    for row in rows:
        ours, hand = row["split"], row["by hand"]
        print(
            f"{row['model']} K={row['depth']}: ll.split {ours['seconds']:.4f} s, by hand {hand['seconds']:.4f} s, "
            f"ratio {row['ratio']:.3f} (spread {ours['spread']:.1%} and {hand['spread']:.1%})"
        )
    print(f"{facts['hardware']['cpu']}, {options.threads} threads, commit {facts['commit']}")


if __name__ == "__main__":
    main()
