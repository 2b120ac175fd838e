"""What all pages share: templates, pictures, and how a page is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from locallearn.errors import UsageError
from locallearn.files import write_atomically
from locallearn.report.styles import LineStyle


class Picture(NamedTuple):
    """A plot in the page."""

    caption: str
    svg: Markup
    least_width: float | None
    """What a wide picture must have to be read [rem]; a usual one needs no more than a narrow window."""


def environment() -> Environment:
    """The templates of pages."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
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
    """
    if output.is_dir():
        raise UsageError(f"{output}: the report cannot be written there (a folder; expected a file name)")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, html)
    except OSError as error:
        raise UsageError(f"{output}: the report cannot be written there ({error.strerror})") from None
    return output


def _dashes(style: LineStyle) -> str:
    """The dash pattern of a line as SVG wants it: in the picture's units instead of line widths."""
    return " ".join(f"{length * style.width:g}" for length in style.dash) or "none"
