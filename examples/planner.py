"""Which K and G fit two devices of 80 MiB, and whether data parallelism is better.

Run it with: python examples/planner.py
"""

from functools import partial

import locallearn as ll
from locallearn.costs.alternatives import advice, stages, usual_ways
from locallearn.costs.footprint import bytes_text
from locallearn.costs.planner import choose, enumerate_candidates
from locallearn.costs.timeline import Machine

MEMORY, DEVICES = 80 * 2**20, 2
config = ll.RunConfig(method="gn-dgl", model="resnet8", train=ll.TrainConfig(batch_size=128, precision="fp32"))
machine = Machine(device_flops=1e12, bandwidth=1e9, latency=1e-5)

candidates, refused = enumerate_candidates(config, machine=machine, depths=(1, 2, 4), widths=(1, 2))
plan = choose(candidates, refused, devices=DEVICES, memory=MEMORY)
for one in plan.fits:
    print(
        f"K = {one.config.depth}, G = {one.config.width[0]} on {one.devices}: {bytes_text(one.memory)}, "
        f"{1e3 * one.makespan / one.batches:.1f} ms a step"
    )
image = ll.ImageShape(3, 32, 10)
ways = partial(stages, config, image)
others = usual_ways(ways, config.optimizer, machine=machine, devices=DEVICES, depths=(1, 2, 4))
print(*advice(plan.proposal.makespan, others, MEMORY), sep="\n")
