"""Rendering a matplotlib figure as SVG that can be put into a page as it is."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree as ET

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", _SVG)
ET.register_namespace("xlink", _XLINK)


def to_svg(figure: Figure, prefix: str, title: str) -> str:
    """The figure as an ``<svg>`` element that scales with its container.

    Args:
        figure: what to draw; the label of each line becomes its tooltip.
        prefix: put before every id in it; give each figure of a page its own.
        title: what the picture is, for readers who cannot see it.
    """
    buffer = io.BytesIO()
    # Text stays text: it can be searched, and the page's own font draws it.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    tooltips = {
        line.get_gid(): str(line.get_label()) for axes in figure.axes for line in axes.lines if line.get_gid()
    }
    _strip(root)
    _own_ids(root, prefix, tooltips)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    # matplotlib sets this by a style sheet, which would reach the rest of the page.
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")


def _strip(root: ET.Element) -> None:
    """Remove the metadata, the style sheet and the names of fonts."""
    for child in list(root):
        if child.tag == f"{{{_SVG}}}metadata" or child.find(f"{{{_SVG}}}style") is not None:
            root.remove(child)
    for text in root.iter(f"{{{_SVG}}}text"):
        text.set("style", re.sub(r"font-family:[^;]*;? ?", "", text.get("style", "")))


def _own_ids(root: ET.Element, prefix: str, tooltips: dict[str | None, str]) -> None:
    """Prefix the ids that something refers to, drop the others, and turn those of lines into tooltips."""
    text = ET.tostring(root, encoding="unicode")
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in tooltips:
            tooltip = ET.Element(f"{{{_SVG}}}title")
            tooltip.text = tooltips[own]
            element.insert(0, tooltip)
        elif own is not None and f"#{own}" in text:
            element.set("id", f"{prefix}-{own}")
        for name, value in element.attrib.items():
            if value.startswith("url(#"):
                element.set(name, f"url(#{prefix}-{value.removeprefix('url(#')}")
            elif name == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(name, f"#{prefix}-{value.removeprefix('#')}")
