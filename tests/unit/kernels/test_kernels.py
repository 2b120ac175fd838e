"""Kernels of our own compute torch's grouped convolutions and their gradients."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locallearn import processor
from locallearn.errors import ConfigError
from locallearn.kernels import build, code_cache
from locallearn.kernels import conv as native
from locallearn.nn import dense
from locallearn.nn.group_conv import GroupConv2d

here = build.kernels()
needs_kernels = pytest.mark.skipif(len(here.libraries) < 2, reason=f"no native kernels here: {here}")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # of the largest value; bf16 rounds by up to 1 / 256


def drawn(*shape, dtype):
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


def expected(x, weight, grad, stride, groups):
    """Output and both gradients, from the same rounded numbers in float64."""
    x, weight, grad = x.double().requires_grad_(), weight.double().requires_grad_(), grad.double()
    out = F.conv2d(x, weight, stride=stride, padding=1, groups=groups)
    out.backward(grad)
    return out.detach(), x.grad, weight.grad


def distance(found, wanted):
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


@st.composite
def convolutions(draw):
    inputs, outputs = draw(st.sampled_from([(16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (48, 96), (256, 16)]))
    groups = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8, 16) if inputs % n == 0 and outputs % n == 0]))
    sides = draw(st.tuples(st.integers(1, 34), st.integers(1, 34)))
    return inputs, outputs, groups, draw(st.sampled_from([1, 2])), sides, draw(st.sampled_from([1, 3]))


@pytest.mark.parametrize(
    ("kernels", "dtype"),
    [("pairs", torch.float32), ("pairs", torch.bfloat16), ("float", torch.bfloat16)],
    indirect=["kernels"],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=convolutions(), threads=st.sampled_from([1, 2]))
def test_values_are_torchs(kernels, dtype, case, threads):
    inputs, outputs, groups, stride, (height, width), images = case
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x = drawn(images, inputs, height, width, dtype=dtype)
    weight = torch.randn(outputs, inputs // groups, 3, 3).to(dtype)
    grad = drawn(images, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1, dtype=dtype)
    out, grad_x, grad_weight = expected(x, weight, grad, stride, groups)
    if native.fits(x, inputs, outputs, groups):
        assert distance(native.convolution(x, weight, stride, groups), out) < TOLERANCE[dtype]
    if native.fits(x, outputs, inputs, groups):
        found = native.input_gradient(grad, weight, stride, groups, (height, width))
        assert distance(found, grad_x) < TOLERANCE[dtype]
    if native.fits_weight(x, inputs, outputs, groups):
        assert distance(native.weight_gradient(grad, x, stride, groups), grad_weight) < 2e-5  # fp32 whatever is given


@needs_kernels
def test_every_group_of_the_thesis_networks_has_a_kernel():
    for dtype in (torch.float32, torch.bfloat16):
        x = drawn(1, 16, 1, 1, dtype=dtype)
        for inputs, outputs in ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
            for groups in (2, 4, 8):
                assert native.fits_weight(x, inputs, outputs, groups)
                assert native.fits(x, outputs, inputs, groups)


def test_what_no_kernel_computes_goes_to_torch(kernels):
    assert not native.fits(drawn(1, 16, 2, 2, dtype=torch.float64), 16, 16, 4)
    single_channels = native.fits(drawn(1, 16, 2, 2, dtype=torch.bfloat16), 16, 16, 16)  # no pairs can be made
    assert single_channels == (kernels == "float")
    assert not native.fits(drawn(1, 18, 2, 2, dtype=torch.float32), 18, 18, 6)
    assert not native.fits(drawn(1, 16, 2, 2, dtype=torch.float32).to("meta"), 16, 16, 4)
    assert not native.fits(torch.randn(1, 16, 2, 2), 16, 16, 4)  # not channels-last
    layer = GroupConv2d(18, 18, 3, padding=1, groups=6, bias=False)
    x = torch.randn(2, 18, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1, groups=6))


@pytest.mark.parametrize("kernels", ["pairs", "float"], indirect=True)
@pytest.mark.parametrize("stride", [1, 2])
def test_without_groups_bf16_is_ours_where_torch_is_slow(stride, kernels, monkeypatch):
    layer = GroupConv2d(32, 64, 3, stride, padding=1, bias=False)
    x, called = drawn(2, 32, 9, 9, dtype=torch.bfloat16).requires_grad_(), []
    for name in ("convolution", "input_gradient", "weight_gradient"):
        own = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *given, own=own, name=name: called.append(name) or own(*given))
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    grad = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, (x, layer.weight), grad))
    of_head = dense.weight_gradient(grad, x, layer.weight.detach().bfloat16(), stride)
    wanted = expected(x.detach(), layer.weight.detach().bfloat16(), grad, stride, 1)
    assert all(distance(a, b) < TOLERANCE[torch.bfloat16] for a, b in zip(found, wanted, strict=True))
    assert distance(of_head, wanted[2]) < TOLERANCE[torch.bfloat16]
    every = ["convolution", "input_gradient", "weight_gradient", "weight_gradient"]
    assert called == (every if kernels == "float" else [])


@pytest.mark.parametrize(
    ("cpuinfo", "as_float", "slow", "tiles"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", True, True, False),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16 amx_tile", True, False, True),
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", False, False, False),
        (None, False, False, False),
    ],
    ids=["intel", "intel-amx", "amd", "not-linux"],
)
def test_the_processor_decides_how_bf16_is_multiplied(cpuinfo, as_float, slow, tiles, tmp_path, monkeypatch):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "words", processor.words.__wrapped__)
    found = (processor.prefers_float(), processor.slow_in_bf16(), processor.multiplies_tiles())
    assert found == (as_float, slow, tiles)


@pytest.mark.parametrize("kernels", ["float"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "groups", "stride", "ours"),
    [
        (torch.bfloat16, 4, 1, False),  # 8 channels a group
        (torch.bfloat16, 8, 1, True),
        (torch.bfloat16, 4, 2, True),
        (torch.float32, 4, 1, True),
    ],
)
def test_wide_groups_are_torchs_where_it_multiplies_tiles(kernels, dtype, groups, stride, ours, monkeypatch):
    monkeypatch.setattr(processor, "multiplies_tiles", lambda: True)
    monkeypatch.setattr(processor, "slow_in_bf16", lambda: False)
    layer = GroupConv2d(32, 32, 3, stride, padding=1, groups=groups, bias=False)
    x, called, own = drawn(2, 32, 9, 9, dtype=dtype), [], native.convolution
    monkeypatch.setattr(native, "convolution", lambda *given: called.append(given) or own(*given))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = layer(x)
    wanted = F.conv2d(x.double(), layer.weight.to(dtype).double(), stride=stride, padding=1, groups=groups)
    assert distance(out, wanted) < TOLERANCE[dtype]
    assert bool(called) is ours


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_a_layer_computes_with_them_and_a_wrong_one_is_caught(kernels, monkeypatch):
    layer = GroupConv2d(16, 32, 3, stride=2, padding=1, groups=4, bias=False)
    x = drawn(2, 16, 9, 9, dtype=torch.float32)
    wanted = F.conv2d(x, layer.weight, stride=2, padding=1, groups=4)
    torch.testing.assert_close(layer(x), wanted)
    monkeypatch.setattr(native, "convolution", lambda x, w, s, g: F.conv2d(x, w.flip(0), None, s, 1, 1, g))
    assert distance(layer(x), wanted.double()) > 0.1


@needs_kernels
def test_outputs_do_not_depend_on_threads():
    x, weight = drawn(5, 16, 17, 9, dtype=torch.float32), torch.randn(16, 4, 3, 3)
    one = native.convolution(x, weight, 1, 4)
    torch.set_num_threads(2)
    assert torch.equal(one, native.convolution(x, weight, 1, 4))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Kernels are looked for anew, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(build.VARIABLE, raising=False)
    build.kernels.cache_clear()
    yield tmp_path / "locallearn" / "kernels"
    build.kernels.cache_clear()


COMPILER = """#!/bin/sh
{script}
for made; do :; done
kept={kept}/$(echo "$*" | sed "s| -o $made||" | cksum | tr -d " ")
case "$*" in *" -c "*)
    [ -e "$kept" ] || {{ gcc "$@" -O0 && cp "$made" "$kept"; exit; }}
    exec cp "$kept" "$made"
esac
exec gcc "$@"
"""
"""A script around gcc that optimises nothing, and compiles nothing twice: what is made of objects is tested here."""


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return tmp_path_factory.mktemp("objects")


@pytest.fixture
def compiler(tmp_path, objects, monkeypatch):
    """Makes ``$CC`` that script, after some lines of a test's own."""

    def make(script=""):
        path = tmp_path / "cc"
        path.write_text(COMPILER.format(script=script, kept=objects))
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        build.kernels.cache_clear()
        code_cache._version.cache_clear()

    return make


@needs_kernels
def test_they_are_compiled_once_with_a_line_that_says_so(fresh, compiler, monkeypatch, capsys):
    compiler()
    assert "native (bf16, fp32)" in str(build.kernels())
    told = capsys.readouterr().err
    assert told == f"locallearn: compiling kernels for this processor, once; they are kept in {fresh}\n"
    assert sorted(p.suffix for p in fresh.iterdir()) == [".so", ".so"]
    build.kernels.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert len(build.kernels().libraries) == 2
    assert capsys.readouterr().err == ""


@needs_kernels
def test_they_are_kept_where_nobody_else_writes(fresh, compiler):
    compiler()
    before = os.umask(0o002)
    try:
        build.kernels()
    finally:
        os.umask(before)
    assert fresh.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o022 == 0 for path in fresh.iterdir())


def planted(path, tmp_path):
    """Replaces a library by one that leaves a mark where it is loaded."""
    source = tmp_path / "planted.c"
    mark = tmp_path / "loaded"
    source.write_text(f'#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fopen("{mark}", "w"); }}\n')
    path.unlink()
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", path], check=True)
    return mark


@needs_kernels
@pytest.mark.parametrize("how", ["content", "mode", "folder"])
def test_a_library_that_others_could_have_written_is_not_loaded(how, fresh, tmp_path, compiler):
    compiler()
    build.kernels()
    first, second = sorted(fresh.iterdir())
    mark = planted(first, tmp_path)
    if how != "content":  # under a name that tells its content
        right = f"{first.stem.rsplit('-', 1)[0]}-{hashlib.sha256(first.read_bytes()).hexdigest()[:32]}.so"
        first = first.rename(fresh / right)
    if how == "mode":
        first.chmod(0o777)
    elif how == "folder":
        fresh.chmod(0o777)
    build.kernels.cache_clear()
    found = build.kernels()
    assert not mark.exists()
    if how == "folder":
        assert "others can write to it" in str(found)
        fresh.chmod(0o700)
    else:
        assert len(found.libraries) == 2
        assert len(list(fresh.iterdir())) == 2  # what was planted is gone
        assert second.exists()


@needs_kernels
@pytest.mark.parametrize("keep", [64, -100])
def test_a_damaged_library_is_made_anew(keep, fresh, compiler):
    compiler()
    build.kernels()
    before = {path.name: path.read_bytes() for path in fresh.iterdir()}
    damaged = min(fresh.iterdir())
    damaged.unlink()  # what is loaded stays as it is
    damaged.write_bytes(before[damaged.name][:keep])
    damaged.chmod(0o700)
    build.kernels.cache_clear()
    assert len(build.kernels().libraries) == 2
    assert {path.name: path.read_bytes() for path in fresh.iterdir()} == before


@needs_kernels
def test_one_type_that_cannot_be_compiled_does_not_take_the_other_along(fresh, compiler):
    compiler('case "$*" in *-DBF16*) echo no bfloat16 >&2; exit 1;; esac')
    found = build.kernels()
    assert list(found.libraries) == [torch.float32]
    assert "native (fp32; " in str(found)
    assert "no bfloat16" in str(found)


@needs_kernels
def test_another_version_of_the_compiler_compiles_again(fresh, compiler):
    for version, expected in (("1.0", 2), ("1.0", 2), ("2.0", 4)):
        compiler(f'[ "$1" = --version ] && echo {version} && exit')
        assert len(build.kernels().libraries) == 2
        assert len(list(fresh.iterdir())) == expected


@needs_kernels
def test_the_compiler_may_have_arguments(fresh, compiler, monkeypatch):
    compiler('[ "$1" = -DARGUMENT ] || exit 3')
    assert not build.kernels().libraries
    build.kernels.cache_clear()
    monkeypatch.setenv("CC", f"{os.environ['CC']} -DARGUMENT")
    assert len(build.kernels().libraries) == 2
    build.kernels.cache_clear()
    monkeypatch.setenv("CC", "gcc 'open")
    assert "No closing quotation" in str(build.kernels())


@needs_kernels
@pytest.mark.parametrize("function", ["aligned_alloc", "calloc"])
def test_without_memory_there_is_an_error_and_no_crash(function, fresh, tmp_path, compiler):
    arguments = {"aligned_alloc": "a, n", "calloc": "n, s"}[function]
    (tmp_path / "none.h").write_text(f"#include <stdlib.h>\n#define {function}({arguments}) ((void *)0)\n")
    compiler(f'set -- -include {tmp_path / "none.h"} "$@"')
    x, weight = drawn(2, 16, 8, 8, dtype=torch.float32), torch.randn(16, 4, 3, 3)
    with pytest.raises(MemoryError, match="scratch space"):
        native.weight_gradient(x, x, 1, 4)
    if function == "aligned_alloc":
        with pytest.raises(MemoryError, match="scratch space"):
            native.convolution(x, weight, 1, 4)
    else:
        assert (
            distance(native.convolution(x, weight, 1, 4), F.conv2d(x.double(), weight.double(), None, 1, 1, 1, 4))
            < 1e-5
        )


def test_without_a_compiler_torch_computes_and_says_so(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert not build.kernels().libraries
    assert str(build.kernels()).startswith("torch (")


@needs_kernels
@pytest.mark.parametrize(("compiler", "why"), [("false", "non-zero exit"), ("/no/such/cc", "No such file")])
def test_a_compiler_that_fails_is_named(compiler, why, fresh, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert compiler in str(build.kernels())
    assert why in str(build.kernels())
    assert not [p for p in fresh.glob("*") if p.suffix == ".so"]


@needs_kernels
def test_without_a_place_to_keep_them_torch_computes(fresh, monkeypatch, tmp_path):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert "Not a directory" in str(build.kernels())
    build.kernels.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert "home directory" in str(build.kernels())


def test_the_variable_chooses(fresh, monkeypatch):
    monkeypatch.setenv(build.VARIABLE, "torch")
    assert str(build.kernels()) == "torch (LOCALLEARN_KERNELS=torch)"
    build.kernels.cache_clear()
    monkeypatch.setenv(build.VARIABLE, "fast")
    with pytest.raises(ConfigError, match="LOCALLEARN_KERNELS.*fast.*auto, native or torch"):
        build.kernels()
    build.kernels.cache_clear()
    monkeypatch.setenv(build.VARIABLE, "native")
    monkeypatch.setenv("CC", os.devnull)
    with pytest.raises(ConfigError, match="auto or torch"):
        build.kernels()
