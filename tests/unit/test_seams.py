"""Tests break code through public seams: what is private may change without a test noticing."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def private_patches(source):
    """Lines that replace a private attribute (``_name``) of something of ours."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "setattr"):
            continue
        target, *rest = call.args
        dotted = isinstance(target, ast.Constant)  # "package.module.name" as one string
        name = str(target.value).rpartition(".")[2] if dotted else ast.unparse(rest[0]).strip("'")
        ours = not ast.unparse(target).strip("'").startswith("torch.")
        if ours and name.startswith("_") and not name.startswith("__"):
            found.append(call.lineno)
    return found


def test_no_test_patches_private_names():
    found = {path.name: private_patches(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("patch.setattr(loop.Loop, '_step', None)", [1]),
        ("patch.setattr('locallearn.loop._step', None)", [1]),
        ("patch.setattr(loop.Loop, 'step', None)", []),
        ("patch.setattr(LocalStep, '__call__', None)", []),
        ("patch.setattr(torch.cpu, '_is_avx512_bf16_supported', None)", []),
    ],
)
def test_they_would_be_found(source, lines):
    assert private_patches(source) == lines
