import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locallearn.errors import UsageError
from locallearn.runtime.feature_cache import FeatureCache, pack, unpack

CPU = torch.device("cpu")


def features(shape=(6, 4, 3, 3), dtype=torch.float32, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu() * 7
    return drawn.to(dtype)


def there_and_back(x, dtype, layout=torch.contiguous_format):
    return unpack(pack(x, dtype), CPU, layout)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4)])
@pytest.mark.parametrize("like", [torch.float32, torch.bfloat16])
def test_fp32_is_exact(shape, like):
    x = features(shape, like)
    back = there_and_back(x, "fp32")
    assert back.dtype == like
    assert torch.equal(back, x)


def test_bf16_rounds_to_bf16():
    x = features()
    back = there_and_back(x, "bf16")
    assert back.dtype == torch.float32
    assert torch.equal(back, x.bfloat16().float())
    assert not torch.equal(back, x)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_uint8_errs_by_half_a_step_of_the_channels_range(images, channels, side, scale, shift):
    x = features((images, channels, side, side)) * scale + shift
    back = there_and_back(x, "uint8")
    step_C = (x.amax((0, 2, 3)) - x.amin((0, 2, 3))) / 255
    tolerance = 0.5 * step_C.view(1, -1, 1, 1) + 1e-6 * x.abs().max()
    assert bool(((back - x).abs() <= tolerance).all())


def test_uint8_of_one_value_is_exact_and_takes_a_byte():
    x = torch.full((2, 3), 1.5)
    kept = pack(x, "uint8")
    assert kept["values"].nbytes == 6
    assert torch.equal(unpack(kept, CPU, torch.contiguous_format), x)


def test_memory_layout_is_as_asked():
    back = there_and_back(features(), "bf16", torch.channels_last)
    assert back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_deeper_level_takes_the_place(tmp_path, on_disk):
    cache = FeatureCache(10**6, tmp_path / "features" if on_disk else None)
    assert cache.get((0, 1)) is None
    cache.put((0, 1), 1, pack(features(), "fp32"))
    cache.put((0, 1), 2, pack(features((6, 2), seed=1), "fp32"))
    level, kept = cache.get((0, 1))
    assert level == 2
    assert torch.equal(kept["values"], features((6, 2), seed=1))
    assert cache.bytes == 6 * 2 * 4
    assert cache.get((1, 1)) is None
    assert (tmp_path / "features").exists() == on_disk
    cache.clear()
    assert cache.get((0, 1)) is None
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), max_size=30), st.integers(0, 300))
def test_never_above_its_bound_and_what_is_kept_is_the_latest_that_fitted(puts, limit):
    cache, expected = FeatureCache(limit), {}
    for level, (step, size) in enumerate(puts):
        kept = {"values": torch.full((size,), level, dtype=torch.int32), "like": torch.empty(0)}
        cache.put((0, step), level, kept)
        others = sum(n * 4 for key, (_, n) in expected.items() if key != step)
        if others + size * 4 <= limit:
            expected[step] = (level, size)
        assert cache.bytes == sum(n * 4 for _, n in expected.values()) <= limit
    for step in range(4):
        found = cache.get((0, step))
        assert (found is None) == (step not in expected)
        if found:
            assert (found[0], len(found[1]["values"])) == expected[step]
            assert bool((found[1]["values"] == found[0]).all())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(10**6, tmp_path / "file" / "features")
    with pytest.raises(UsageError, match=r"0-0\.safetensors: cannot be written"):
        cache.put((0, 0), 1, pack(features(), "fp32"))
