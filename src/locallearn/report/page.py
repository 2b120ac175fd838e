"""What all pages share: templates, pictures, and how a page is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from locallearn.files import make_folder, write_atomically
from locallearn.report.styles import LineStyle


class Picture(NamedTuple):
    """A plot in the page."""

    caption: str
    svg: Markup
    least_width: float | None
    """What a wide picture must have to be read [rem]; a usual one needs no more than a narrow window."""


def environment(*folders: Path) -> Environment:
    """The templates of pages, and of pages of another house in its folders."""
    templates = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["dashes"] = _dashes
    return templates


def write_page(html: str, output: Path) -> Path:
    """Write a page to a file, in place of an old one, and return ``output``.

    Raises:
        UsageError: ``output`` cannot be written.
        DiskError: the disk is full or broken.
    """
    make_folder(output.parent)
    write_atomically(output, html)
    return output


def _dashes(style: LineStyle) -> str:
    """The dash pattern of a line as SVG wants it: in the picture's units instead of line widths."""
    return " ".join(f"{length * style.width:g}" for length in style.dash) or "none"
