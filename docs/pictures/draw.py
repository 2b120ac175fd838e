"""Draws the pictures of docs/ideas.md: python docs/pictures/draw.py."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

BLUE, ORANGE, GREEN, RED, GREY, INK = "#dbe7fb", "#fde3cf", "#d9f0dc", "#c62828", "#eceff1", "#263238"
HERE = Path(__file__).resolve().parent


def box(x: float, y: float, w: float, h: float, label: str, fill: str = BLUE) -> str:
    """A rounded box with a centred label; lines are separated by ``|``."""
    lines = label.split("|")
    first = y + h / 2 - 8 * (len(lines) - 1) + 4.5
    words = "".join(text(x + w / 2, first + 16 * i, line) for i, line in enumerate(lines))
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" stroke="{INK}"/>{words}'


def text(x: float, y: float, label: str, anchor: str = "middle", colour: str = INK, size: int = 13) -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(label)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, colour: str = INK, dashed: bool = False) -> str:
    """An arrow."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    head = "red" if colour == RED else "ink"
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="1.6"{dash} '
        f'marker-end="url(#{head})"/>'
    )


def picture(name: str, width: int, height: int, title: str, parts: Iterable[str]) -> None:
    """Write an SVG with a light ground, so that it can be read on a dark page too."""
    heads = "".join(
        f'<marker id="{key}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for key, colour in (("ink", INK), ("red", RED))
    )
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    )
    body = "\n".join(parts)
    (HERE / f"{name}.svg").write_text(f"{head}<defs>{heads}</defs>{ground}\n{body}\n</svg>\n")


def network() -> list[str]:
    """Three modules of two groups, each node with head and loss, and the decoupled classifier."""
    parts = [text(40, 155, "image"), arrow(62, 151, 92, 151)]
    for k in range(3):
        x = 95 + 205 * k
        parts.append(text(x + 60, 24, f"module {k + 1}", size=14))
        for g, (node, head) in enumerate(((98, 38), (158, 224))):
            parts.append(box(x, node, 120, 46, f"node ({k + 1}, {g + 1})|group {g + 1}", (BLUE, GREEN)[g]))
            parts.append(box(x + 10, head, 100, 38, "head and loss", ORANGE))
        parts += [arrow(x + 60, 98, x + 60, 78), arrow(x + 60, 204, x + 60, 222)]
        for y in (121, 181):
            parts += [arrow(x + 120, y, x + 203, target) for target in (121, 181)]
        parts.append(f'<line x1="{x + 161}" y1="34" x2="{x + 161}" y2="262" stroke="{RED}" stroke-dasharray="6 5"/>')
        parts.append(text(x + 161, 280, "cut: detach", colour=RED, size=12))
    parts += [box(710, 124, 100, 54, "linear|classifier"), box(730, 224, 60, 38, "loss", ORANGE)]
    parts += [arrow(760, 178, 760, 222), arrow(810, 151, 846, 151), text(890, 155, "prediction")]
    return parts


def locks() -> list[str]:
    """Forward, backward and update locking, and which of them local learning removes."""
    rows = (
        (
            "forward locking",
            "module 2 cannot start before|module 1 has passed its features on",
            "stays for one batch;|a pipeline over batches hides it",
        ),
        (
            "backward locking",
            "module 1 waits until the error|has come back through all others",
            "gone: nothing flows backward",
        ),
        (
            "update locking",
            "module 1 cannot update before|the loss of the whole network",
            "gone: each node updates|on its own loss, at once",
        ),
    )
    parts = [text(290, 26, "backpropagation", size=14), text(600, 26, "local learning", size=14)]
    for i, (name, before, after) in enumerate(rows):
        y = 42 + 72 * i
        parts.append(text(20, y + 34, name, "start", size=14))
        parts.append(box(160, y, 260, 58, before, GREY))
        parts.append(arrow(424, y + 29, 466, y + 29))
        parts.append(box(470, y, 260, 58, after, BLUE if i == 0 else GREEN))
    return parts


def traffic() -> list[str]:
    """What one node sends to others, and what it does not."""
    return [
        box(30, 60, 130, 60, "nodes of|module k - 1"),
        box(320, 60, 130, 60, "node (k, g)", GREEN),
        box(610, 60, 130, 60, "nodes of|module k + 1"),
        box(320, 220, 130, 60, "other groups|of module k"),
        arrow(162, 80, 318, 80),
        text(240, 70, "features", size=12),
        arrow(452, 80, 608, 80),
        text(530, 70, "features", size=12),
        arrow(360, 122, 360, 218),
        text(350, 165, "features, detached", "end", size=12),
        text(350, 181, "(stop-gradient heads)", "end", size=12),
        arrow(410, 122, 410, 218),
        text(420, 165, "class scores, detached", "start", size=12),
        text(420, 181, "(diversity penalty)", "start", size=12),
        arrow(608, 106, 454, 106, RED, dashed=True),
        text(530, 124, "no gradient", colour=RED, size=12),
        arrow(318, 106, 164, 106, RED, dashed=True),
        text(240, 124, "no gradient", colour=RED, size=12),
        text(30, 24, "sent once a batch, in one direction", "start", size=14),
    ]


def main() -> None:
    """Draw all."""
    picture("network", 940, 294, "K = 3 depth modules times G = 2 width groups", network())
    picture("locks", 750, 262, "The three locks of backpropagation, and local learning", locks())
    picture("traffic", 770, 300, "What a node sends, and what it never sends", traffic())


if __name__ == "__main__":
    main()
