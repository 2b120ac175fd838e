"""The tables and figures of Chapter 3 as layouts of cells, and the published values exactly as printed."""

from __future__ import annotations

from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.plan.cuts import GN_DEPTHS
from locallearn.thesis.layout import Figure, Panel, Point, Row, Table, Value
from locallearn.thesis.matrix import VGG_GROUPS, resnet_name, resnet_points, vgg_name

# Accuracy [%], training speed-up, inference speed-up of Tables 3.4 and 3.5; None: held out.
_RESNET32: dict[tuple[str, int, int], tuple[str, str | None, str | None]] = {
    ("e2e", 1, 1): ("93.01", "1", "1"),
    ("infopro", 2, 1): ("92.35", None, "1"),
    ("infopro", 4, 1): ("91.25", None, "1"),
    ("infopro", 8, 1): ("88.5", None, "1"),
    ("infopro", 16, 1): ("87.02", None, "1"),
    ("dgl", 2, 1): ("91.47", "1.894", "1"),
    ("dgl", 4, 1): ("88.62", "3.622", "1"),
    ("dgl", 8, 1): ("85.53", "6.456", "1"),
    ("dgl", 16, 1): ("83.87", "11.609", "1"),
    ("gn-dgl", 1, 2): ("91.41", "3.674", "1.961"),
    ("gn-dgl", 2, 2): ("89.68", "6.304", "1.899"),
    ("gn-dgl", 4, 2): ("87.94", "10.667", "1.785"),
    ("gn-dgl", 8, 2): ("85.37", "16.426", "1.612"),
    ("gn-dgl", 16, 2): ("83.38", "23.072", "1.338"),
    ("gn-dgl", 1, 4): ("89.69", None, None),
    ("gn-dgl", 2, 4): ("89.27", None, None),
    ("gn-dgl", 4, 4): ("88.11", None, None),
    ("gn-dgl", 8, 4): ("85.09", None, None),
    ("gn-dgl", 1, 8): ("88.86", None, None),
    ("gn-dgl", 2, 8): ("88.96", None, None),
    ("gn-dgl", 4, 8): ("87.86", None, None),
}

# Table 3.6: (K, G): last layer only, layerwise ensemble.
_ENSEMBLE: dict[tuple[int, int], tuple[str, str]] = {
    (2, 2): ("89.45", "89.68"),
    (4, 2): ("87.52", "87.94"),
    (8, 2): ("84.73", "85.37"),
    (16, 2): ("82.84", "83.38"),
    (2, 4): ("89.01", "89.27"),
    (4, 4): ("88.25", "88.11"),
    (8, 4): ("84.64", "85.09"),
    (2, 8): ("88.67", "88.96"),
    (4, 8): ("87.11", "87.86"),
}

_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet32": "ImageNet32"}
_MODELS = {"resnet32": "ResNet-32", "resnet32x2": "ResNet-32x2"}
_METHODS = {"e2e": "e2e", "dgl": "DGL", "infopro": "InfoPro", "single-thread": "single thread"}


def accuracy_field(method: str) -> str:
    """GN-DGL is judged by its layerwise ensemble (Sec. 3.3.3), everything else by its last layer."""
    return "ensemble" if method == "gn-dgl" else "last_layer"


def published_accuracy(config: RunConfig) -> float | None:
    """Accuracy [%] that Table 3.4 has for this network (ResNet-32 on CIFAR-10, its cuts and head), or None.

    Which images ``config`` trains on is not looked at.
    """
    plain = ObjectiveConfig(loss=config.objective.loss)
    method = config.method
    if config.depth == 1 and config.groups == (1,) and method != "infopro":
        method = "e2e"
    elif method == "gn-dgl" and set(config.groups) == {1}:
        method = "dgl"
    if config.model != "resnet32" or config.cuts != ("auto",) or len(set(config.groups)) > 1:
        return None
    if method != "e2e" and (config.objective != plain or config.objective.loss not in (None, "cross-entropy")):
        return None
    found = _RESNET32.get((method, config.depth, config.groups[0]))
    return float(found[0]) if found else None


def _line(name: str, title: str, corner: str, values: dict[str, Value]) -> Table:
    """A table of one row."""
    return Table(name, title, corner, tuple(values), (Row("Test accuracy [%]", tuple(values.values())),))


def _table_31() -> Table:
    groups = zip(VGG_GROUPS, ("91.63", "90.55", "89.8", "89.07", "88.91"), strict=True)
    values = {"DGL": Value(vgg_name("vgg6a"), "last_layer", "92.25")}
    values |= {f"{g}-Group": Value(vgg_name("vgg6a", g), "last_layer", text) for g, text in groups}
    return _line("table-3.1", "Grouping of neurons in each layer of VGG6a (naive splitting)", "Method", values)


def _table_32() -> Table:
    six = {
        "6-Group GN-DGL": ("", "89.8"),
        "6-Group GN-DGL with diversity": ("-diversity", "90.6"),
        "6-Group GN-DGL Stop Gradient + diversity": ("-diversity-stop-gradient", "91.9"),
    }
    values = {"DGL": Value(vgg_name("vgg6a"), "last_layer", "92.2")}
    values |= {label: Value(vgg_name("vgg6a", 6, extra), "last_layer", text) for label, (extra, text) in six.items()}
    return _line("table-3.2", "Diversity penalty and stop-gradient communication (VGG6a)", "Method", values)


def _table_33() -> Table:
    models = ("vgg6a", "vgg6ax2", "vgg6ax3")
    printed = {1: ("DGL", ("92.25", "93.27", "93.27")), 6: ("6-Group GN-DGL", ("89.8", "92.6", "93.28"))}
    rows = tuple(
        Row(label, tuple(Value(vgg_name(m, split), "last_layer", t) for m, t in zip(models, texts, strict=True)))
        for split, (label, texts) in printed.items()
    )
    return Table("table-3.3", "Width of VGG6a: test accuracy [%]", "", ("VGG6a", "2xVGG6a", "3xVGG6a"), rows)


def _speedup_table(name: str, which: str, field: str) -> Table:
    families = {"InfoPro": ("infopro", 1), "DGL": ("dgl", 1)} | {f"G={g}": ("gn-dgl", g) for g in GN_DEPTHS}
    rows = []
    for nodes in (1, 2, 4, 8, 16, 32):
        values: list[Value | None] = []
        for method, width in families.values():
            key = ("e2e", 1, 1) if nodes == 1 and width == 1 else (method, nodes // width, width)
            values += _accuracy_and_speedup(key, field)
        rows.append(Row(str(nodes), tuple(values)))
    columns = tuple(f"{family} {what}" for family in families for what in ("accuracy [%]", "speed-up"))
    return Table(name, f"ResNet-32 on CIFAR-10: {which} speed-up against end to end", "KxG", columns, tuple(rows))


def _accuracy_and_speedup(key: tuple[str, int, int], field: str) -> list[Value | None]:
    if key not in _RESNET32:
        return [None, None]
    accuracy, training, inference = _RESNET32[key]
    cell = resnet_name("cifar10", "resnet32", *key)
    speedup = training if field == "training_speedup" else inference
    return [Value(cell, accuracy_field(key[0]), accuracy), Value(cell, field, speedup)]


def _table_36() -> Table:
    def row(label: str, field: str, which: int) -> Row:
        names = {key: resnet_name("cifar10", "resnet32", "gn-dgl", *key) for key in _ENSEMBLE}
        return Row(label, tuple(Value(names[key], field, texts[which]) for key, texts in _ENSEMBLE.items()))

    rows = (row("last-layer only", "last_layer", 0), row("layerwise ensemble", "ensemble", 1))
    columns = tuple(f"G={g} K={k}" for k, g in _ENSEMBLE)
    return Table(
        "table-3.6", "Layerwise ensembling of GN-DGL on CIFAR-10, ResNet-32 [%]", "Evaluation", columns, rows
    )


def _digits() -> Table:
    networks = {"e2e": ("e2e", 1, 1), "DGL K=4": ("dgl", 4, 1), "GN-DGL K=2 G=2": ("gn-dgl", 2, 2)}
    values = {
        label: Value(resnet_name("digits", "resnet8", *key), accuracy_field(key[0]))
        for label, key in networks.items()
    }
    return _line("digits", "A trial of this command on the embedded digits (not in the thesis)", "Method", values)


def _figure(name: str, data: str) -> Figure:
    panels = tuple(Panel(f"{title} on {_DATA[data]}", _points(data, model)) for model, title in _MODELS.items())
    return Figure(name, f"{_DATA[data]}: accuracy against the largest node's multiply-accumulates", panels)


def _points(data: str, model: str) -> tuple[Point, ...]:
    points = []
    for method, depth, width in resnet_points(infopro=data != "imagenet32"):
        label = _METHODS.get(method, f"GN-DGL G={width}" if depth > 1 else "K=1 baseline")
        place = {"e2e": "", "dgl": f" K={depth}", "infopro": f" K={depth}"}.get(method)
        place = place if place is not None else f" G={width}" if depth == 1 else f" K={depth}"
        printed = _RESNET32.get((method, depth, width)) if (data, model) == ("cifar10", "resnet32") else None
        cell = resnet_name(data, model, method, depth, width)
        points.append(Point(cell, label, label + place, accuracy_field(method), printed[0] if printed else None))
    return tuple(points)


CHAPTER3: tuple[Table | Figure, ...] = (
    _table_31(),
    _table_32(),
    _table_33(),
    _speedup_table("table-3.4", "training", "training_speedup"),
    _speedup_table("table-3.5", "inference", "inference_speedup"),
    _table_36(),
    _figure("figure-3.5", "cifar10"),
    _figure("figure-3.6", "imagenet32"),
    _figure("figure-3.7", "cifar100"),
    _digits(),
)
"""The tables and figures of Chapter 3, and a trial."""
