"""What the commands of ``bench`` measure by default. Apart from what measures it, so that help needs no torch."""

from __future__ import annotations

from locallearn.config import ObjectiveConfig
from locallearn.plan.cuts import GN_DEPTHS

Cell = tuple[str, int, int]
"""Method, K and G."""

HEADLINE: tuple[Cell, ...] = (
    ("gn-dgl", 4, 4),
    ("gn-dgl", 4, 8),
    ("gn-dgl", 8, 4),
    ("gn-dgl", 2, 8),
    ("gn-dgl", 16, 2),
)
"""The cells that are timed by default."""

TABLE_3_4: tuple[Cell, ...] = (
    ("e2e", 1, 1),
    *((method, k, 1) for method in ("infopro", "dgl") for k in (2, 4, 8, 16)),
    *(("gn-dgl", k, g) for g, ks in GN_DEPTHS.items() for k in ks),
)
"""The 21 cells of Table 3.4."""

TABLE_3_5 = tuple((k, g) for g, ks in GN_DEPTHS.items() for k in ks)
"""(K, G) of the cells of Table 3.5 with G > 1."""

HEAD = ObjectiveConfig().head
"""The auxiliary head of the thesis's networks."""

DEPTHS = (2, 4, 8, 16)
"""K of the local networks whose memory is measured."""

PARTS = (2, 4, 8)
"""Segments of checkpointing, and micro-batches of gradient accumulation."""

MODELS = "package.module:function, timm:NAME, or hf:CONFIG like hf:gpt2?n_layer=4 or hf:vit-s16"
"""How ``bench model`` names a model of the user's own."""
