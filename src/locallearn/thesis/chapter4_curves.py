"""The figures of curves of the thesis's Chapter 4 and its appendix, which prints no values of them."""

from __future__ import annotations

from locallearn.thesis.chapter4 import BEST, DEPTHS, SMALL, SMALL_RATIO, VGGS, name_of
from locallearn.thesis.layout import CurvePanel, Curves, Line


def _line(
    label: str, model: str, method: str, depth: int = 1, head: str = "", ratio: str = "", extra: str = ""
) -> Line:
    return Line(name_of(model, method, depth, head, ratio, extra), label)


_END_TO_END = _line("SimCLR (K=1)", "resnet50", "simclr")


def _over_k(model: str, head: str = "", depths: tuple[int, ...] = DEPTHS) -> tuple[Line, ...]:
    return (_line("K=1", model, "simclr"), *(_line(f"K={k}", model, "dgssl", k, head) for k in depths))


def _figure_46() -> Curves:
    panel = CurvePanel("ResNet-50 end to end", "probe", (_END_TO_END,))
    return Curves("figure-4.6", "Linear probes after every block of ResNet-50, which is frozen", (panel,))


def _figure_47() -> Curves:
    panel = CurvePanel("ResNet-50 with DGSSL", "probe", _over_k("resnet50"))
    return Curves("figure-4.7", "Depth against linear probe, for different K", (panel,))


def _modified(name: str, title: str, extras: tuple[tuple[str, str], ...]) -> Curves:
    """DGSSL and versions of DGSSL-LLM on ResNet-50, one panel for each K."""
    panels = []
    for k, ratio in BEST.items():
        versions = [_line(label, "resnet50", "dgssl-llm", k, ratio=ratio, extra=extra) for label, extra in extras]
        lines = (_END_TO_END, _line("DGSSL", "resnet50", "dgssl", k), *versions)
        panels.append(CurvePanel(f"ResNet-50, K={k}", "probe", lines))
    return Curves(name, title, tuple(panels))


def _figure_a3() -> Curves:
    networks = (
        ("(a) ResNet-50 with 0c2f", _over_k("resnet50", "0c2f")),
        ("(b) ResNet-50 with 1c2f", _over_k("resnet50")),
        ("(c) VGG6a with 0c2f", _over_k("vgg6a", depths=(VGGS["vgg6a"][1],))),
    )
    return Curves("figure-a.3", "Training loss and neighbours' accuracy over epochs", _over_epochs(networks))


def _over_epochs(networks: tuple[tuple[str, tuple[Line, ...]], ...]) -> tuple[CurvePanel, ...]:
    return tuple(CurvePanel(title, field, lines) for title, lines in networks for field in ("loss", "last_layer"))


def _over_heads(name: str, title: str, model: str) -> Curves:
    """Figs. A.4 and A.5: both heads, one panel for each K."""
    panels = []
    for k in DEPTHS:
        lines = (_line("0c2f", model, "dgssl", k, "0c2f"), _line("1c2f", model, "dgssl", k))
        panels.append(CurvePanel(f"{title}, K={k}", "probes", lines))
    return Curves(name, f"{title}: linear probe of the last module over epochs", tuple(panels))


def _small(model: str) -> list[Curves]:
    """Figs. 4.8 and A.3 with a network for small machines."""
    title, depths = SMALL[model]
    depth, epochs = [], []
    for k in depths:
        lines = (
            _line("SimCLR (K=1)", model, "simclr"),
            _line("DGSSL", model, "dgssl", k),
            _line("DGSSL-LLM", model, "dgssl-llm", k, ratio=SMALL_RATIO),
        )
        depth.append(CurvePanel(f"{title}, K={k}", "probe", lines))
        epochs.append((f"{title}, K={k}", lines))
    name = model.partition("x")[0]
    return [
        Curves(f"small-4.8-{name}", f"Fig. 4.8 with {title} (not in the thesis)", tuple(depth)),
        Curves(f"small-a.3-{name}", f"Fig. A.3 with {title} (not in the thesis)", _over_epochs(tuple(epochs))),
    ]


_INCREASING = ("DGSSL-LLM, increasing difficulty", "")

CURVES = (
    _figure_46(),
    _figure_47(),
    _modified("figure-4.8", "Depth against linear probe: DGSSL-LLM and DGSSL", (_INCREASING,)),
    _modified(
        "figure-4.9",
        "Depth against linear probe: increasing and decreasing difficulty",
        (_INCREASING, ("DGSSL-LLM, decreasing difficulty", "decreasing")),
    ),
    _figure_a3(),
    _over_heads("figure-a.4", "ResNet-50", "resnet50"),
    _over_heads("figure-a.5", "ResNet-110", "resnet110"),
    *(curves for model in SMALL for curves in _small(model)),
)
"""Figs. 4.6 to 4.9 and A.3 to A.5."""
