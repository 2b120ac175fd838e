"""The tables of the thesis's Chapter 4, and Figs. 4.3 to 4.5 as tables, with the values that it prints."""

from __future__ import annotations

from locallearn.thesis.chapter4 import BEST, DEPTHS, FIELD, RATIOS, SMALL, VGGS, name_of
from locallearn.thesis.layout import Row, Table, Value

_DGSSL = {4: "91.03", 8: "88.81", 16: "87.44"}
_TABLE_42 = {
    4: ("89.9", "91.08", "90.55", "90.38", "91.43", "90.93", "91.26", "91.96", "91.54"),
    8: ("88.12", "89.8", "88.75", "89.35", "90.34", "89.77", "89.92", "90.37", "90.51"),
    16: ("86.63", "87.51", "87.7", "88.21", "88.44", "88.24", "88.93", "89.8", "89.66"),
}
_DECREASING = {4: "91.34", 8: "90.21", 16: "89.15"}


def _value(*of: object, published: str | None = None, **more: str) -> Value:
    return Value(name_of(*of, **more), FIELD, published)  # type: ignore[arg-type]


def _table_41() -> Table:
    first = (_value("resnet50", "simclr", published="92.56"),)
    plain = tuple(_value("resnet50", "dgssl", k, published=text) for k, text in _DGSSL.items())
    rows = (Row("DGSSL", (*first, *plain)), Row("DGSSL-LLM", (None, *_modified())))
    return Table("table-4.1", "DGSSL-LLM and DGSSL on ResNet-50: linear probe [%]", "Method", _COLUMNS, rows)


_COLUMNS = ("K=1", "K=4", "K=8", "K=16")


def _modified(extra: str = "") -> tuple[Value, ...]:
    printed = _DECREASING if extra else {k: _TABLE_42[k][RATIOS.index(ratio)] for k, ratio in BEST.items()}
    return tuple(
        _value("resnet50", "dgssl-llm", k, ratio=BEST[k], extra=extra, published=text) for k, text in printed.items()
    )


def _table_42() -> Table:
    plain = tuple(_value("resnet50", "dgssl", k, published=text) for k, text in _DGSSL.items())
    rows = [Row("Vanilla DGSSL", plain)]
    for i, ratio in enumerate(RATIOS):
        values = [_value("resnet50", "dgssl-llm", k, ratio=ratio, published=t[i]) for k, t in _TABLE_42.items()]
        rows.append(Row(f"DGSSL-LLM {ratio}", tuple(values)))
    return Table("table-4.2", "Sample ratios: linear probe [%]", "Sample ratio", _COLUMNS[1:], tuple(rows))


def _table_43() -> Table:
    rows = (
        *_table_41().rows[:1],
        Row("DGSSL-LLM (increasing difficulty)", (None, *_modified())),
        Row("DGSSL-LLM (decreasing difficulty)", (None, *_modified("decreasing"))),
    )
    return Table("table-4.3", "Increasing and decreasing difficulty: linear probe [%]", "Method", _COLUMNS, rows)


def _table_44() -> Table:
    values = (
        _value("resnet50", "dgssl", 16, published="87.44"),
        _modified()[2],
        _value("resnet50", "dgssl-llm", 16, ratio=BEST[16], extra="positive", published="88.66"),
    )
    columns = ("DGSSL", "DGSSL-LLM (Pos.+Neg.)", "DGSSL-LLM (Pos. Only)")
    return Table(
        "table-4.4", "Choosing positive pairs only: linear probe [%]", "Method", columns, (Row("K=16", values),)
    )


def _figure_43() -> Table:
    rows = tuple(
        Row(title, (_value(model, "simclr"), _value(model, "dgssl", deepest)))
        for model, (title, deepest) in VGGS.items()
    )
    title = "VGGs end to end and with every layer a module: linear probe [%]"
    return Table("figure-4.3", title, "Model", ("K=1", "every layer"), rows)


def _over_depth(name: str, title: str, model: str, heads: tuple[str, ...]) -> Table:
    """Bars of Figs. 4.4 and 4.5, whose heights are not printed."""
    rows = tuple(
        Row(
            head,
            (_value(model, "simclr"), *(_value(model, "dgssl", k, "" if head == "1c2f" else head) for k in DEPTHS)),
        )
        for head in heads
    )
    return Table(name, title, "Head", ("K=1", *(f"K={k}" for k in DEPTHS)), rows)


def _small() -> list[Table]:
    found = []
    for model, (title, depths) in SMALL.items():
        rows = (
            Row("DGSSL", (_value(model, "simclr"), *(_value(model, "dgssl", k) for k in depths))),
            Row("DGSSL-LLM", (None, *(_value(model, "dgssl-llm", k, ratio="0.95") for k in depths))),
        )
        columns = ("K=1", *(f"K={k}" for k in depths))
        name = f"small-4.1-{model.partition('x')[0]}"
        found.append(
            Table(name, f"Table 4.1 with {title} (not in the thesis): linear probe [%]", "Method", columns, rows)
        )
    return found


def _digits() -> Table:
    values = {
        "SimCLR": _value("resnet8", "simclr"),
        "DGSSL K=4": _value("resnet8", "dgssl", 4),
        "DGSSL-LLM K=4": _value("resnet8", "dgssl-llm", 4, ratio="0.95"),
    }
    title = "A trial of this command on the embedded digits (not in the thesis): linear probe [%]"
    return Table("digits-4", title, "Method", tuple(values), (Row("Test accuracy [%]", tuple(values.values())),))


TABLES = (
    _table_41(),
    _table_42(),
    _table_43(),
    _table_44(),
    _figure_43(),
    _over_depth("figure-4.4", "ResNet-50: linear probe [%] for two heads", "resnet50", ("0c2f", "1c2f")),
    _over_depth("figure-4.5", "ResNet-110: linear probe [%]", "resnet110", ("1c2f",)),
    *_small(),
    _digits(),
)
"""Tables of Chapter 4, and Figs. 4.3 to 4.5 as tables."""
