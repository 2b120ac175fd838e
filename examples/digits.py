"""Train 4 x 2 nodes on scikit-learn's digits, then open the run and look at every node.

Run it with: python examples/digits.py
"""

import dataclasses
import tempfile

import locallearn as ll

config = ll.recipe("gn-dgl")
config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=5))

with tempfile.TemporaryDirectory() as folder:
    summary = ll.train(config, f"{folder}/run")
    print(f"K = {config.depth}, G = {config.width[0]}, {summary['parameters']:,} parameters")

    found = ll.open_run(f"{folder}/run").evaluate()
    for node in found.nodes:
        print(f"module {node['module']} group {node['group']}: {100 * node['accuracy']:.0f} %")
    assert found.ensemble > 0.9
    print(f"ensemble above 90 %: {found.ensemble > 0.9}")
