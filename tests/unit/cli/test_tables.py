"""Tables on a terminal of 80 columns: no head is cut off."""

import io

from rich.console import Console

from locallearn.cli.tables import node_table, parameters_text


def shown(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def test_many_modules_go_below_each_other_and_few_side_by_side():
    nodes = [{"module": k, "group": g, "accuracy": k / 100} for k in range(1, 17) for g in (1, 2)]
    nodes += [{"module": "classifier", "group": 1, "accuracy": 0.5}]
    many = shown(node_table(nodes, "Accuracy"))
    assert "…" not in many
    assert [row.split("│")[1:-1] for row in many.splitlines() if "classifier" in row] == [
        [" classifier ", "   50.00 ", "         "]
    ]
    few = shown(node_table(nodes[:8], "Accuracy"))
    assert "module 4" in few
    assert few.count("│ ") < many.count("│ ")


def test_parameters_that_are_deployed_are_told_apart():
    text = parameters_text({"parameters": 703_274, "deployed_parameters": 259_418})
    assert text == "parameters: 259,418 deployed, 703,274 in training with auxiliary heads"
    assert parameters_text({"parameters": 10, "deployed_parameters": 10}) == "parameters: 10 deployed"
