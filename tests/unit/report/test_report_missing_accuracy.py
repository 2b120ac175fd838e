"""Nodes whose local loss has no classifier (InfoPro, sim alone) have no accuracy: the page shows a dash."""

import json
import re

from locallearn.report.compare import MISSING
from locallearn.report.html import render
from locallearn.report.records import read_run


def without_accuracy(path, keep):
    """Take the accuracy away from every node but the module ``keep``."""

    def strip(node):
        return {key: value for key, value in node.items() if key != "accuracy" or node["module"] == keep}

    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for event in lines:
        event["nodes"] = [strip(node) for node in event["nodes"]]
    (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    summary = json.loads((path / "summary.json").read_text())
    summary["nodes"] = [strip(node) for node in summary["nodes"]]
    (path / "summary.json").write_text(json.dumps(summary))


def cells(html, module):
    row = re.search(rf"<tr><th[^>]*>module {module}, group 1</th>(.*?)</tr>", html)
    assert row is not None
    return re.findall(r">([^<>]*)</td>", row[1])


def test_a_missing_accuracy_is_a_dash_and_the_others_stay(make_run):
    run = make_run(method="dgl", depth=3)
    before = render([read_run(run)])
    without_accuracy(run, keep=3)
    after = render([read_run(run)])
    for module in (1, 2):
        assert MISSING not in cells(before, module)[:2]
        assert cells(after, module)[:2] == [MISSING, MISSING]
        assert cells(after, module)[2:] == cells(before, module)[2:]
    assert cells(after, 3) == cells(before, 3)
    assert "nan" not in re.sub(r"<[^>]*>", " ", after).split()
