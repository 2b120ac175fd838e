"""Trains a split model with an ll.Trainer: ``train_split.py CASE OUTPUT EPOCHS [RUN]``, alone or under torchrun."""

import os
import sys
from pathlib import Path

import torch

import locallearn as ll
from locallearn.training.observer import Quiet

sys.path.insert(0, str(Path(__file__).parents[1] / "equivalence"))
from test_split_apart import CASES, sgd


class Watch(Quiet):
    """Notes what this process holds of the model's weights while it trains [bytes]."""

    def on_step(self, step):
        self.held = sum({p.data_ptr(): p.untyped_storage().nbytes() for p in network.parameters()}.values())


torch.set_num_threads(1)
watch = Watch()
name, output, epochs, *run = sys.argv[1:]
make, batch, settings = CASES[name]
torch.manual_seed(0)
extra = {"overlap": int(os.environ.get("OVERLAP", "0"))}
network = ll.split(make().train(), example=batch, depth=3, optimizer=sgd, **settings, **extra)
small = {k: v[:2] for k, v in batch.items()} if isinstance(batch, dict) else tuple(v[:2] for v in batch)
trainer = ll.Trainer(
    network,
    optimizer=sgd,
    schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    runtime="distributed" if "WORLD_SIZE" in os.environ else "inline",
    run=run[0] if run else None,
    observer=watch,
    average=0.9,
    precision=os.environ.get("PRECISION", "fp32"),
)
data = [batch, batch, small]
summary = trainer.fit(data, epochs=int(epochs), validation=data)
if os.environ.get("RANK", "0") == "0":
    nodes = [*summary["nodes"], *trainer.evaluate(data)["nodes"]]
    accuracy = [summary["accuracy"][name] for name in ("last_layer", "ensemble")]
    found = [node["loss"] for node in nodes] + accuracy
    torch.save((network.state_dict(), found, watch.held), output)
