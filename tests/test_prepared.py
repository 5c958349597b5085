"""Prepared convolutions give what the plain call gives, for any image, from their own copy of the weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends import backends, owner

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]


def random(*shape: int, dtype: str = "f4") -> Any:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_any_batch_and_size(backend: str, dtype: str) -> None:
    w, b = random(4, 2, 3, 3, dtype=dtype), random(4, dtype=dtype)
    keywords: dict[str, Any] = {"stride": 2, "padding": "same", "groups": 2, "backend": backend}
    prepared = fc.prepare_conv2d(w, b, **keywords)
    for shape in ((1, 4, 5, 6), (3, 4, 8, 3), (4, 7, 7)):
        x = random(*shape, dtype=dtype)
        np.testing.assert_array_equal(prepared(x), fc.conv2d(x, w, b, **keywords))
    out = np.empty((4, 4, 4), dtype)
    assert prepared(x, out=out) is out


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_rank_and_the_transpose(rank: int) -> None:
    x, w = random(2, 4, *(6, 5, 4)[:rank]), random(4, 3, *(2,) * rank)
    conv, transposed = getattr(fc, f"conv{rank}d"), getattr(fc, f"conv_transpose{rank}d")
    forward = w.swapaxes(0, 1).copy()
    np.testing.assert_array_equal(getattr(fc, f"prepare_conv{rank}d")(forward)(x), conv(x, forward))
    prepared = getattr(fc, f"prepare_conv_transpose{rank}d")(w, stride=2, output_padding=1)
    np.testing.assert_array_equal(prepared(x), transposed(x, w, stride=2, output_padding=1))


def test_weights_are_its_own() -> None:
    w, b, x = random(2, 3, 3, 3), random(2), random(1, 3, 6, 6)
    prepared = fc.prepare_conv2d(w, b)
    expected = prepared(x)
    w[...], b[...] = 0, 0
    np.testing.assert_array_equal(prepared(x), expected)
    assert np.any(expected)


def test_packing_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastconv.backends.im2col import gemm

    packed = []
    pack = gemm.pack

    def counted(s: Any, weight: Any) -> Any:
        packed.append(weight.shape)
        return pack(s, weight)

    monkeypatch.setattr(gemm, "pack", counted)
    prepared = fc.prepare_conv2d(random(2, 3, 3, 3, dtype="f2"), backend="im2col", algorithm="im2col")
    for size in (5, 6, 7, 5):
        prepared(random(1, 3, size, size, dtype="f2"))
    assert len(packed) == 1


def test_many_threads() -> None:
    prepared = fc.prepare_conv2d(random(4, 3, 3, 3, dtype="f2"))
    x = random(2, 3, 9, 9, dtype="f2")
    expected = prepared(x).tobytes()
    with ThreadPoolExecutor(8) as pool:
        assert all(result.tobytes() == expected for result in pool.map(lambda _: prepared(x), range(64)))


def test_it_says_what_it_is() -> None:
    assert repr(fc.prepare_conv2d(random(2, 3, 3, 3))) == "<PreparedConv weight (2, 3, 3, 3) float32>"
