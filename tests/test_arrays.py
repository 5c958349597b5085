"""Any memory layout, byte order and alignment gives the right answer; inputs are never written; out= is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import grad
from fastconv.backends import backends, owner

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]


def unaligned(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 1, "u1")
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran": np.asfortranarray,
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "transposed": lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "cut out": lambda a: np.pad(a, [(1, 2)] * a.ndim)[(slice(1, -2),) * a.ndim],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "read-only": read_only,
}


def operands(dtype: str = "f4") -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return tuple(
        rng.integers(-4, 5, shape).astype(dtype) for shape in ((2, 4, 6, 5), (6, 4, 3, 2), (2, 6, 4, 4))
    )  # type: ignore[return-value]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_layouts(backend: str, layout: str, dtype: str) -> None:
    change = LAYOUTS[layout]
    x, w, dy = operands(dtype)
    xx, ww, dd = change(x), change(w), change(dy)
    kept = [array.tobytes() for array in (xx, ww, dd)]
    with fc.use_backend(backend):
        np.testing.assert_array_equal(fc.conv2d(xx, ww), fc.conv2d(x, w))
        np.testing.assert_array_equal(fc.conv2d(xx, ww[:, :, :1, :1]), fc.conv2d(x, w[:, :, :1, :1]))
        np.testing.assert_array_equal(fc.conv_transpose2d(dd, ww), fc.conv_transpose2d(dy, w))
        np.testing.assert_array_equal(grad.conv2d_weight(xx, w.shape, dd), grad.conv2d_weight(x, w.shape, dy))
        for ours, expected in zip(
            fc.max_pool2d(xx, 2, return_indices=True), fc.max_pool2d(x, 2, return_indices=True), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(fc.avg_pool2d(xx, 3, 1), fc.avg_pool2d(x, 3, 1))
        np.testing.assert_array_equal(fc.unfold(xx, 2), fc.unfold(x, 2))
    assert kept == [array.tobytes() for array in (xx, ww, dd)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_overlapping_input(backend: str) -> None:
    """A view whose elements share memory (stride 0, or a sliding window) is read like any other."""
    x = np.broadcast_to(np.arange(5, dtype="f4"), (2, 3, 6, 5))
    sliding = np.lib.stride_tricks.sliding_window_view(np.arange(40, dtype="f4"), 12)[:8].reshape(1, 1, 8, 12)
    w = np.arange(4, dtype="f4").reshape(1, 1, 2, 2)
    with fc.use_backend(backend):
        np.testing.assert_array_equal(
            fc.conv2d(x, np.tile(w, (1, 3, 1, 1))), fc.conv2d(x.copy(), np.tile(w, (1, 3, 1, 1)))
        )
        np.testing.assert_array_equal(fc.conv2d(sliding, w), fc.conv2d(sliding.copy(), w))
        np.testing.assert_array_equal(fc.max_pool2d(sliding, 2), fc.max_pool2d(sliding.copy(), 2))


def test_memory_map(tmp_path: Path) -> None:
    x, w, _ = operands()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    result = fc.conv2d(mapped, w)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, fc.conv2d(x, w))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
def test_out_in_any_layout(backend: str, layout: str) -> None:
    x, w, _ = operands()
    expected = fc.conv2d(x, w, backend=backend)
    out = LAYOUTS[layout](np.full_like(expected, np.nan))
    assert fc.conv2d(x, w, out=out, backend=backend) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_may_overlap_its_operands(backend: str) -> None:
    x = np.arange(36, dtype="f4").reshape(1, 1, 6, 6)
    w = np.ones((1, 1, 3, 3), "f4")
    expected = fc.conv2d(x, w, padding=1, backend=backend)
    assert fc.conv2d(x, w, padding=1, out=x, backend=backend) is x
    np.testing.assert_array_equal(x, expected)
    y = np.arange(36, dtype="f4").reshape(1, 1, 6, 6)
    pooled = fc.max_pool2d(y, 2, backend=backend)
    fc.max_pool2d(y, 2, out=y[:, :, :3, :3], backend=backend)
    np.testing.assert_array_equal(y[:, :, :3, :3], pooled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_every_function(backend: str) -> None:
    x, w, dy = operands()
    values, indices = fc.max_pool2d(x, 2, return_indices=True, backend=backend)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (fc.conv2d, (x, w)), (fc.conv_transpose2d, (dy, w)), (fc.avg_pool2d, (x, 2)), (fc.lp_pool2d, (x, 2, 2)),
        (fc.adaptive_avg_pool2d, (x, 2)), (fc.max_unpool2d, (values, indices, 2, None, 0, (6, 5))), (fc.unfold, (x, 2)),
        (grad.conv2d_input, (x.shape, w, dy)), (grad.conv2d_weight, (x, w.shape, dy)), (grad.max_pool2d, (values, x, 2)),
        (grad.max_unpool2d, (x, indices)),
    ]  # fmt: skip
    for function, arguments in calls:
        expected = function(*arguments, backend=backend)
        out = np.full_like(expected, np.nan)
        assert function(*arguments, out=out, backend=backend) is out
        np.testing.assert_array_equal(out, expected)
    out_pair = (np.full_like(values, np.nan), np.full_like(indices, -1))
    got = fc.max_pool2d(x, 2, return_indices=True, out=out_pair, backend=backend)
    assert got[0] is out_pair[0]
    assert got[1] is out_pair[1]
    np.testing.assert_array_equal(out_pair[1], indices)
    single = np.full((6, 4, 4), np.nan, "f4")
    assert fc.conv2d(x[0], w, out=single, backend=backend) is single
    np.testing.assert_array_equal(single, fc.conv2d(x, w, backend=backend)[0])
