"""The report of one or more runs as a single HTML file that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from locallearn.config import digest, to_toml
from locallearn.report import compare, depth, plots
from locallearn.report.figures import Drawn, of_comparison, of_run
from locallearn.report.page import Picture, environment, write_page
from locallearn.report.records import RunRecord, node_of, read_runs
from locallearn.report.seeds import seed_groups
from locallearn.report.styles import node_label, node_legend, run_style
from locallearn.report.svg import to_svg

_OPEN_NODE_TABLES_UP_TO = 16  # rows; longer tables start folded


class NodeRow(NamedTuple):
    """A row of the table of nodes, as text."""

    label: str
    values: list[str]


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the report of the runs in these folders, finished or not, and return ``output``.

    Several runs are compared first, each as a row of its own; those that differ by their seed alone also with mean
    and standard deviation.

    Raises:
        UsageError: a folder is not a run, a record is damaged, or ``output`` cannot be written.
    """
    return write_page(render(read_runs(runs)), output)


def render(records: Sequence[RunRecord]) -> str:
    """The report as the text of an HTML file."""
    rows = compare.comparison_rows(records)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=records[0].name if len(records) == 1 else f"{len(records)} runs",
            columns=compare.columns(records),
            rows=rows,
            comparison=_comparison(records) if len(records) > 1 else None,
            runs=[_run(record, row, index) for index, (record, row) in enumerate(zip(records, rows, strict=True), 1)],
        )
    )


def _comparison(records: Sequence[RunRecord]) -> dict[str, Any]:
    machines: dict[str, list[str]] = {}
    for record in records:
        machines.setdefault(_hardware(record), []).append(record.name)
    drawn = [record for record in records if record.evaluations or record.probes]
    return {
        "machines": machines,
        "mixed_protocols": len({record.protocol for record in records}) > 1,
        "mixed_data": len({(r.config.data.name, r.config.data.test_limit) for r in records}) > 1,
        "legend": [(record.name, run_style(index)) for index, record in enumerate(drawn)],
        "pictures": _pictures(of_comparison(drawn), "compare") if drawn else [],
        "seeds": seed_groups(records),
    }


def _run(record: RunRecord, row: dict[str, Any], index: int) -> dict[str, Any]:
    headings, nodes = _node_table(record)
    return {
        "row": row,
        "anchor": f"run-{index}",
        "subtitle": (
            f"{row['method']} on {row['model']}, {compare.data_text(row)}, K = {row['depth']}, "
            f"G = {compare.width_text(row['width'])}, seed {row['seed']}"
        ),
        "facts": _facts(record, row),
        "legend": node_legend(record),
        "pictures": _pictures(of_run(record), f"run-{index}"),
        "node_headings": headings,
        "nodes": nodes,
        "nodes_open": len(nodes) <= _OPEN_NODE_TABLES_UP_TO,
        "processes": _processes(record),
        "probes": depth.tables(record),
        "origin": _origin(record),
        "toml": to_toml(record.config),
    }


def _pictures(drawn: Iterable[Drawn], prefix: str) -> list[Picture]:
    pictures = []
    for number, (caption, figure) in enumerate(drawn, start=1):
        width = figure.get_figwidth()
        svg = Markup(to_svg(figure, f"{prefix}-{number}", caption))
        pictures.append(Picture(caption, svg, round(5.5 * width, 1) if width > plots.WIDTH else None))
    return pictures


def _facts(record: RunRecord, row: dict[str, Any]) -> list[tuple[str, str]]:
    def unit(text: str, name: str) -> str:
        return text if text == compare.MISSING else f"{text} {name}"

    layer = "last layer" if compare.classifies(record) else "last module, kNN"
    facts = [
        (layer, unit(compare.percent(row["last_layer"]), "%")),
        ("ensemble", unit(compare.percent(row["ensemble"]), "%")),
        (f"best {layer}", unit(compare.percent(row["best_last_layer"]), "%")),
        ("best epoch", compare.number(row["best_epoch"])),
        ("epochs", compare.epochs_text(row)),
        ("training time", compare.duration(row["seconds"])),
        ("training speed", unit(compare.number(row["images_per_second"]), "images/s")),
        ("parameters in training", compare.number(row["parameters"])),
        ("parameters deployed", compare.number(row["deployed_parameters"])),
        ("activations", unit(compare.mebibytes(row["activation_bytes"]), "MiB")),
        ("peak RSS", unit(compare.mebibytes(row["peak_rss_bytes"]), "MiB")),
    ]
    if row["peak_device_bytes"] is not None:
        facts.append(("peak device memory", unit(compare.mebibytes(row["peak_device_bytes"]), "MiB")))
    return facts


def _node_table(record: RunRecord) -> tuple[list[str], list[NodeRow]]:
    final = plots.final_nodes(record)
    trained = record.train[-1]["nodes"] if record.train else []
    terms = list(dict.fromkeys(term for entry in trained for term in entry.get("terms", {})))
    rows = []
    for node in record.nodes:
        test, train = node_of(final, node), node_of(trained, node)
        values = [compare.percent(test.get("accuracy")), compare.percent(train.get("accuracy"))]
        losses = [train.get("loss"), *(train.get("terms", {}).get(term) for term in terms)]
        label = node_label(node) if len(record.nodes) > 1 else "network"
        rows.append(NodeRow(label, values + [compare.loss_text(loss) for loss in losses]))
    names = [term.replace("_", " ") for term in terms]
    return [f"{plots.accuracy_name(record, within=True)} [%]", "training accuracy [%]", "training loss", *names], rows


def _origin(record: RunRecord) -> list[tuple[str, str]]:
    """Where the figures come from: what a reader needs to get them again."""
    summary = record.summary or {}
    versions = summary.get("versions") or {}
    return [
        ("accuracy of", record.protocol),
        ("best epoch chosen by", _chosen_by(record)),
        ("seed", str(record.config.seed)),
        ("digest", _digests(record)),
        ("data", summary.get("data_source") or record.config.data.name),
        ("started", record.started or compare.MISSING),
        ("resumed", {0: "never", 1: "once"}.get(record.resumes, f"{record.resumes} times")),
        ("steps", compare.number(summary.get("steps") or (record.train[-1]["step"] if record.train else 0))),
        ("hardware", _hardware(record)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or compare.MISSING),
        ("commit", summary.get("commit") or compare.MISSING),
    ]


def _processes(record: RunRecord) -> list[NodeRow]:
    """A row a process of a distributed run: share of time waiting, bytes sent, memory, images/s."""
    return [
        NodeRow(
            row["nodes"],
            [
                compare.percent(row["waiting"]),
                compare.mebibytes(row["sent_bytes"]),
                compare.mebibytes(row.get("peak_device_bytes", row["peak_rss_bytes"])),
                compare.number(row["images_per_second"]),
            ],
        )
        for row in (record.summary or {}).get("processes") or []
    ]


def _chosen_by(record: RunRecord) -> str:
    """What the best checkpoint is chosen on."""
    told = (record.summary or {}).get("accuracy") or (record.evaluations[-1] if record.evaluations else {})
    held_out = told.get("validation")
    return f"{held_out['images']:,} held-out images" if held_out else "the test images, so its accuracy is optimistic"


def _digests(record: RunRecord) -> str:
    """The configuration's digest, and those of the settings that a resume changed."""
    summary = record.summary or {}
    earlier = [f"{entry['digest']} until step {entry['until_step']:,}" for entry in summary.get("history") or []]
    return ", then ".join([*earlier, summary.get("digest") or digest(record.config)])


def _hardware(record: RunRecord) -> str:
    hardware = (record.summary or {}).get("hardware")
    if not hardware:
        return "not recorded yet" if record.summary is None else compare.MISSING
    memory = hardware.get("memory_bytes")
    parts = [
        hardware.get("gpu"),
        hardware.get("cpu"),
        f"{hardware['cores']} cores" if hardware.get("cores") else None,
        f"{hardware['threads']} threads" if hardware.get("threads") else None,
        f"kernels {hardware['kernels']}" if hardware.get("kernels") else None,
        f"{memory / (1 << 30):.1f} GiB memory" if isinstance(memory, int | float) else None,
    ]
    return f"{hardware.get('device', 'device not recorded')}: " + ", ".join(str(part) for part in parts if part)
