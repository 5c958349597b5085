"""Any memory layout, byte order and alignment gives the same bits; inputs are never written; out= is exact.

And every type: what comes out of which, exactly for integers, never narrower than NumPy's common type.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastconv as fc
from fastconv import grad
from fastconv.backends import backends, owner
from fastconv.spec import DTYPES

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    with fc.use_backend(request.param):
        yield request.param


def normal(*shape: int, dtype: Any = "f4", seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def whole(*shape: int, dtype: Any = "f4", seed: int = 0) -> Any:
    """Random whole numbers, whose sums are exact."""
    low = 0 if np.dtype(dtype).kind == "u" else -4
    return np.random.default_rng([seed, *shape]).integers(low, 5, shape).astype(dtype)


def poisoned(like: Any) -> Any:
    """An array of what no result holds."""
    return np.full_like(like, np.nan if like.dtype.kind not in "iu" else np.iinfo(like.dtype).max - 7)


# --------------------------------------------------------------------------- every function, on two problems

Operands = dict[str, Any]
Function = Callable[[Operands], Any]

FUNCTIONS: dict[str, Function] = {
    "conv2d": lambda a: fc.conv2d(a["x"], a["w"], a["b"]),
    "conv2d padded": lambda a: fc.conv2d(a["x"], a["w"], stride=2, padding=((1, 0), (0, 1))),
    "conv2d reflect": lambda a: fc.conv2d(a["x"], a["w"], padding=1, padding_mode="reflect"),
    "pointwise": lambda a: fc.conv2d(a["x"], a["w1"], a["b"]),
    "conv_transpose2d": lambda a: fc.conv_transpose2d(a["y"], a["w"], stride=2, output_padding=1),
    "unfold": lambda a: fc.unfold(a["x"], 2, padding=1),
    "fold": lambda a: fc.fold(a["columns"], (7, 6), 2),
    "max_pool2d": lambda a: fc.max_pool2d(a["x"], 3, 2, 1, return_indices=True),
    "avg_pool2d": lambda a: fc.avg_pool2d(a["x"], 3, 2, 1),
    "lp_pool2d": lambda a: fc.lp_pool2d(a["x"], 3, 3, 2),
    "adaptive_max_pool2d": lambda a: fc.adaptive_max_pool2d(a["x"], (3, 4), True),
    "adaptive_avg_pool2d": lambda a: fc.adaptive_avg_pool2d(a["x"], (3, 4)),
    "adaptive_avg_pool2d to one": lambda a: fc.adaptive_avg_pool2d(a["x"], 1),
    "max_unpool2d": lambda a: fc.max_unpool2d(a["p"], a["i"], 2, output_size=(7, 6)),
    "grad.conv2d_input": lambda a: grad.conv2d_input(a["x"].shape, a["w"], a["y"]),
    "grad.conv2d_weight": lambda a: grad.conv2d_weight(a["x"], a["w"].shape, a["y"]),
    "grad.conv2d_bias": lambda a: grad.conv2d_bias(a["y"]),
    "grad.conv_transpose2d_input": lambda a: grad.conv_transpose2d_input(a["y"].shape, a["w"], a["x"]),
    "grad.conv_transpose2d_weight": lambda a: grad.conv_transpose2d_weight(a["y"], a["w"].shape, a["x"]),
    "grad.max_pool2d": lambda a: grad.max_pool2d(a["p"], a["x"], 2),
    "grad.max_pool2d indices": lambda a: grad.max_pool2d(a["p"], a["x"], 2, indices=a["i"]),
    "grad.avg_pool2d": lambda a: grad.avg_pool2d(a["p"], a["x"], 2),
    "grad.lp_pool2d": lambda a: grad.lp_pool2d(a["p"], a["x"], 3, 2),
    "grad.adaptive_max_pool2d": lambda a: grad.adaptive_max_pool2d(a["p"], a["x"], 3),
    "grad.adaptive_avg_pool2d": lambda a: grad.adaptive_avg_pool2d(a["p"], a["x"], 3),
    "grad.max_unpool2d": lambda a: grad.max_unpool2d(a["x"], a["i"]),
}  # fmt: skip


WEIGHTS = ("w", "w1", "b")  # operands without a batch axis

# Averages and norms of integers are float64, and so are the gradients that come back.
AVERAGE_GRADIENTS = ("grad.avg_pool2d", "grad.lp_pool2d", "grad.adaptive_avg_pool2d")


def operands(dtype: Any, batch: int, make: Callable[..., Any] = normal, channels: int = 4) -> Operands:
    c = channels
    x = make(batch, c, 7, 6, dtype=dtype)
    return {
        "x": x,
        "w": make(3, c, 3, 2, dtype=dtype),
        "w1": make(3, c, 1, 1, dtype=dtype),
        "b": make(3, dtype=dtype),
        "y": make(batch, 3, 5, 5, dtype=dtype),
        "columns": make(batch, 4 * c, 30, dtype=dtype),
        "p": make(batch, c, 3, 3, dtype=dtype),
        "i": np.random.default_rng(batch).permuted(np.tile(np.arange(9), (batch, c, 1)), axis=-1).reshape(batch, c, 3, 3),
    }  # fmt: skip


def unaligned(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 1, "u1")
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert array.dtype.itemsize == 1 or not view.flags.aligned
    return view


def read_only(array: Any) -> Any:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def turned(array: Any) -> Any:
    """The last two axes stored the other way round."""
    return array.swapaxes(-1, -2).copy().swapaxes(-1, -2) if array.ndim > 1 else array


def gaps(array: Any) -> Any:
    """Every second element along every axis of a larger array."""
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran": np.asfortranarray,
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a,
    "batch last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0),
    "every second": gaps,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "transposed": turned,
    "cut out": lambda a: np.pad(a, [(1, 2)] * a.ndim)[(slice(1, -2),) * a.ndim],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()) if a.dtype != BFLOAT16 else a,
    "unaligned": unaligned,
    "read-only": read_only,
}  # fmt: skip


def together(result: Any) -> bytes:
    """The bits of a result, one array or two."""
    return b"".join(array.tobytes() for array in (result if isinstance(result, tuple) else (result,)))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_any_layout_gives_the_same_bits(backend: str, layout: str, batch: int, function: str) -> None:
    """Not only the right answer: the very bits of C order, in random float32; and nothing is written."""
    call, change = FUNCTIONS[function], LAYOUTS[layout]
    given = operands("f4", batch)
    changed = {name: change(array) for name, array in given.items()}
    kept = {name: array.tobytes() for name, array in changed.items()}
    expected = call(given)
    assert together(call(changed)) == together(expected)
    assert {name: array.tobytes() for name, array in changed.items()} == kept


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["f8", "f2", BFLOAT16, "i1", "u1", "i2", "i8", "u8"], ids=str)
def test_any_layout_in_any_type(backend: str, dtype: Any, function: str) -> None:
    """Channels last, byte-swapped and unaligned at once, each type."""
    call = FUNCTIONS[function]
    given = operands(dtype, 2, whole)
    if np.dtype(dtype).kind in "iu" and function in AVERAGE_GRADIENTS:
        given["p"] = whole(2, 4, 3, 3, dtype="f8")
    changed = {
        name: unaligned(LAYOUTS["byte-swapped"](LAYOUTS["channels last"](array)))
        for name, array in given.items()
    }
    kept = {name: array.tobytes() for name, array in changed.items()}
    assert together(call(changed)) == together(call(given))
    assert {name: array.tobytes() for name, array in changed.items()} == kept


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_any_layout_gives_the_same_bits_in_several_blocks(layout: str, dtype: str) -> None:
    """Problems large enough to be cut into blocks, for each of im2col's algorithms and both gradients."""
    change = LAYOUTS[layout]
    with fc.use_backend("im2col"):
        for size, k in (((1, 12, 40, 41), 1), ((1, 12, 40, 41), 3), ((3, 16, 20, 20), 3)):
            x, w, b = (
                normal(*size, dtype=dtype),
                normal(8, size[1], k, k, dtype=dtype),
                normal(8, dtype=dtype),
            )
            dy = normal(size[0], 8, size[2] - k + 1, size[3] - k + 1, dtype=dtype)
            calls: list[tuple[str, Callable[..., Any]]] = [
                ("conv2d", lambda x, w, b, dy: fc.conv2d(x, w, b)),
                ("input gradient", lambda x, w, b, dy: grad.conv2d_input(x.shape, w, dy)),
                ("weight gradient", lambda x, w, b, dy: grad.conv2d_weight(x, w.shape, dy)),
            ]
            if k > 1:
                calls.append(("fft", lambda x, w, b, dy: fc.conv2d(x, w, b, algorithm="fft")))
            for name, call in calls:
                changed = call(change(x), change(w), change(b), change(dy))
                assert changed.tobytes() == call(x, w, b, dy).tobytes(), (name, size, k)


def test_one_operand_of_each_layout(backend: str) -> None:
    """Operands need not share a layout."""
    x, w, b = whole(2, 4, 6, 5), whole(3, 4, 3, 2), whole(3)
    expected = fc.conv2d(x, w, b)
    for mine, other in itertools.permutations(LAYOUTS.values(), 2):
        np.testing.assert_array_equal(fc.conv2d(mine(x), other(w), mine(b)), expected)


def test_overlapping_input(backend: str) -> None:
    """A view whose elements share memory (stride 0, or a sliding window) is read like any other."""
    repeated = np.broadcast_to(normal(7, 6), (2, 4, 7, 6))
    sliding = np.lib.stride_tricks.sliding_window_view(normal(40), 6)[:28].reshape(1, 4, 7, 6)
    for view in (repeated, sliding):
        given = operands("f4", view.shape[0])
        for name, call in FUNCTIONS.items():
            result, expected = call({**given, "x": view}), call({**given, "x": view.copy()})
            assert together(result) == together(expected), name
    one = np.broadcast_to(np.float32(1), (2, 3, 5, 5))
    weight = np.broadcast_to(np.float32(2), (4, 3, 3, 3))
    np.testing.assert_array_equal(fc.conv2d(one, weight, one[0, 0, 0, :4]), np.full((2, 4, 3, 3), 55))


def test_memory_map(backend: str, tmp_path: Path) -> None:
    x, w = whole(2, 4, 6, 5), whole(3, 4, 3, 2)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    result = fc.conv2d(mapped, w)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, fc.conv2d(x, w))
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", result.dtype, result.shape)
    out[...] = np.nan
    assert fc.conv2d(mapped, w, out=out) is out
    np.testing.assert_array_equal(out, result)


class Stubborn(np.ndarray[Any, Any]):
    """A subclass whose own indexing and arithmetic would spoil every result."""

    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("indexed")

    def __array_ufunc__(self, *arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("computed")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("batch", [1, 2])
def test_subclasses_are_read_as_plain_arrays(backend: str, batch: int, function: str) -> None:
    """Same kind of array out as in: a subclass of NumPy's array gives NumPy's array."""
    given = operands("f4", batch)
    call = FUNCTIONS[function]
    result = call({name: array.view(Stubborn) for name, array in given.items()})
    assert together(result) == together(call(given))
    assert all(type(a) is np.ndarray for a in (result if isinstance(result, tuple) else (result,)))


def test_matrix(backend: str) -> None:
    """np.matrix, which turns every view back into two axes, as an unbatched signal and as its result."""
    x, w = whole(4, 9), whole(3, 4, 2)
    expected = fc.conv1d(x, w)
    result = fc.conv1d(x.view(np.matrix), w)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(fc.max_pool1d(x.view(np.matrix), 2), fc.max_pool1d(x, 2))
    out = poisoned(expected).view(np.matrix)
    assert fc.conv1d(x, w, out=out) is out
    np.testing.assert_array_equal(np.asarray(out), expected)


# --------------------------------------------------------------------------- batches


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unbatched_is_the_only_image(backend: str, function: str) -> None:
    """Unbatched input accepted as torch does, by every function."""
    given, call = operands("f4", 1), FUNCTIONS[function]
    alone = {name: array if name in WEIGHTS else array[0] for name, array in given.items()}
    result, expected = call(alone), call(given)
    assert together(result) == together(expected)
    if "weight" not in function and "bias" not in function:
        pairs = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
        assert all(mine.shape == other.shape[1:] for mine, other in pairs)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_zero_size_batch(backend: str, function: str) -> None:
    """Zero-size batch gives zero-size output, and gradients of weights that are zero."""
    given, call = operands("f4", 1), FUNCTIONS[function]
    result = call({name: array if name in WEIGHTS else array[:0] for name, array in given.items()})
    expected = call(given)
    for mine, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        if "weight" in function or "bias" in function:
            np.testing.assert_array_equal(mine, np.zeros_like(other))
        else:
            assert mine.shape == (0, *other.shape[1:])
        assert mine.dtype == other.dtype


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if "weight" not in f and "bias" not in f])
def test_images_do_not_meet(backend: str, function: str) -> None:
    """Each image of a batch gets the bits it gets alone (sums over the batch apart)."""
    given, call = operands("f4", 3, whole), FUNCTIONS[function]
    result = call(given)
    for n in range(3):
        alone = call({name: array if name in WEIGHTS else array[n : n + 1] for name, array in given.items()})
        for mine, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, alone)), strict=True):
            np.testing.assert_array_equal(mine[n], other[0])


# --------------------------------------------------------------------------- out=


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
@pytest.mark.parametrize("batch", [1, 2])
def test_out_in_any_layout(backend: str, batch: int, layout: str) -> None:
    given = operands("f4", batch)
    x, w, b, y = given["x"], given["w"], given["b"], given["y"]
    calls: list[Callable[..., Any]] = [
        lambda **k: fc.conv2d(x, w, b, **k),
        lambda **k: fc.conv2d(x, w[:, :, :1, :1], **k),
        lambda **k: fc.conv_transpose2d(y, w, **k),
        lambda **k: fc.avg_pool2d(x, 2, **k),
        lambda **k: fc.unfold(x, 2, **k),
        lambda **k: grad.conv2d_weight(x, w.shape, y, **k),
    ]
    for call in calls:
        expected = call()
        out = LAYOUTS[layout](poisoned(expected))
        assert call(out=out) is out
        assert np.array_equal(out, expected)


def test_out_of_every_function(backend: str) -> None:
    given = operands("f4", 2)
    x, w, y, p, i = (given[name] for name in "xwypi")
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (fc.conv2d, (x, w)), (fc.conv_transpose2d, (y, w)), (fc.max_pool2d, (x, 2)), (fc.avg_pool2d, (x, 2)),
        (fc.lp_pool2d, (x, 2, 2)), (fc.adaptive_max_pool2d, (x, 2)), (fc.adaptive_avg_pool2d, (x, 2)),
        (fc.max_unpool2d, (p, i, 2)), (fc.unfold, (x, 2)), (fc.fold, (given["columns"], (7, 6), 2)),
        (grad.conv2d_input, (x.shape, w, y)), (grad.conv2d_weight, (x, w.shape, y)),
        (grad.conv_transpose2d_input, (y.shape, w, x)), (grad.conv_transpose2d_weight, (y, w.shape, x)),
        (grad.max_pool2d, (p, x, 2)), (grad.avg_pool2d, (p, x, 2)), (grad.lp_pool2d, (p, x, 2, 2)),
        (grad.adaptive_max_pool2d, (p, x, 3)), (grad.adaptive_avg_pool2d, (p, x, 3)), (grad.max_unpool2d, (x, i)),
        (grad.unfold, (given["columns"], (7, 6), 2)), (grad.fold, (x, 2)),
    ]  # fmt: skip
    for function, arguments in calls:
        expected = function(*arguments)
        out = poisoned(expected)
        assert function(*arguments, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("function", [fc.max_pool2d, fc.adaptive_max_pool2d])
def test_out_of_values_and_indices(backend: str, function: Any) -> None:
    x = normal(2, 4, 6, 6)
    for given in (x, x[0]):
        expected = function(given, 3, return_indices=True)
        for change in (np.array, np.asfortranarray, gaps):
            pair = tuple(change(poisoned(array)) for array in expected)
            got = function(given, 3, return_indices=True, out=pair)
            assert got[0] is pair[0]
            assert got[1] is pair[1]
            for mine, other in zip(pair, expected, strict=True):
                np.testing.assert_array_equal(mine, other)


def test_out_unbatched(backend: str) -> None:
    x, w = whole(4, 6, 5), whole(3, 4, 3, 2)
    expected = fc.conv2d(x, w)
    for change in (np.array, np.asfortranarray, gaps):
        out = change(poisoned(expected))
        assert fc.conv2d(x, w, out=out) is out
        np.testing.assert_array_equal(out, expected)


def test_out_may_be_an_operand(backend: str) -> None:
    x, w = whole(1, 1, 6, 6), whole(1, 1, 3, 3)
    expected = fc.conv2d(x, w, padding=1)
    assert fc.conv2d(x, w, padding=1, out=x) is x
    np.testing.assert_array_equal(x, expected)
    y = whole(2, 3, 6, 6, seed=1)
    pooled = fc.max_pool2d(y, 3, 1, 1)
    fc.max_pool2d(y, 3, 1, 1, out=y)
    np.testing.assert_array_equal(y, pooled)
    y = whole(1, 1, 6, 6, seed=2)
    pooled = fc.max_pool2d(y, 2)
    fc.max_pool2d(y, 2, out=y[:, :, :3, :3])
    np.testing.assert_array_equal(y[:, :, :3, :3], pooled)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shift", [0, 1, 40, 95])
def test_out_may_share_memory_with_any_operand(backend: str, k: int, shift: int) -> None:
    """With the input, the weight and the bias, wherever they overlap."""
    size = 4 + k - 1
    x, w, b = whole(2, 3, size, size), whole(3, 3, k, k), whole(3)
    expected = fc.conv2d(x, w, b)
    for name in "xwb":
        memory = np.full(expected.size + 400, np.nan, "f4")
        fresh = {"x": x, "w": w, "b": b}
        # The operand starts `shift` elements into the memory that `out` begins.
        fresh[name] = memory[shift : shift + fresh[name].size].reshape(fresh[name].shape)
        fresh[name][...] = {"x": x, "w": w, "b": b}[name]
        out = memory[: expected.size].reshape(expected.shape)
        assert fc.conv2d(fresh["x"], fresh["w"], fresh["b"], out=out) is out
        np.testing.assert_array_equal(out, expected, err_msg=f"out overlaps {name}")


@pytest.mark.parametrize("transposed", [False, True])
def test_out_may_share_memory_with_the_bias(backend: str, transposed: bool) -> None:
    function, x, w = (
        (fc.conv_transpose2d, whole(1, 3, 4, 4), whole(3, 6, 2, 2))
        if transposed
        else (fc.conv2d, whole(1, 3, 4, 4), whole(6, 3, 1, 1))
    )
    expected = function(x, w, np.arange(6, dtype="f4"))
    out = poisoned(expected)
    bias = out.reshape(-1)[:6]
    bias[...] = np.arange(6)
    function(x, w, bias, out=out)
    np.testing.assert_array_equal(out, expected)


# --------------------------------------------------------------------------- types


@pytest.mark.parametrize("name", DTYPES)
def test_result_types(backend: str, name: str) -> None:
    """Floats stay; int8/uint8 give int32, other integers 64 bits; a maximum keeps its type; averages are float64."""
    row, dtype = DTYPES[name], BFLOAT16 if name == "bfloat16" else np.dtype(name)
    a = operands(dtype, 1, whole)
    x, w, y = a["x"], a["w"], a["y"]
    for sums in (
        fc.conv2d(x, w), fc.conv_transpose2d(y, w), grad.conv2d_input(x.shape, w, y), grad.conv2d_weight(x, w.shape, y),
        grad.conv2d_bias(y), fc.fold(a["columns"], (7, 6), 2),
    ):  # fmt: skip
        assert sums.dtype.name == row.out
    for same in (
        fc.max_pool2d(x, 2),
        fc.adaptive_max_pool2d(x, 2),
        fc.unfold(x, 2),
        fc.max_unpool2d(a["p"], a["i"], 2),
    ):
        assert same.dtype == dtype
    for mean in (fc.avg_pool2d(x, 2), fc.adaptive_avg_pool2d(x, 2), fc.lp_pool2d(x, 2, 2)):
        assert mean.dtype.name == row.mean


FLOATS: list[Any] = ["f2", BFLOAT16, "f4", "f8"]


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.product(FLOATS, [*FLOATS, "i1", "u1", "i2", "i4"])), ids=str
)
def test_mixed_types_follow_numpy(backend: str, first: Any, second: Any) -> None:
    """Mixed inputs follow np.result_type, either way round, or are refused where it has no answer."""
    x, w = np.abs(whole(1, 2, 5)).astype(first), np.abs(whole(3, 2, 2)).astype(second)
    exact = fc.conv1d(x.astype("f8"), w.astype("f8"))
    try:
        expected = np.result_type(x.dtype, w.dtype)
    except TypeError:
        with pytest.raises(TypeError, match="no common type"):
            fc.conv1d(x, w)
        return
    result, swapped = fc.conv1d(x, w), fc.conv1d(x.astype(second), w.astype(first))
    assert result.dtype == swapped.dtype == expected
    np.testing.assert_array_equal(result.astype("f8"), exact)


@pytest.mark.parametrize("function", ["conv", "transposed"])
def test_a_wider_bias_widens(backend: str, function: str) -> None:
    """The output is never silently narrowed: a float64 bias is added in float64."""
    fine = np.array([1 / 3, -1e-9, 2.0**-40])
    x, w = whole(1, 3, 5), whole(3, 3, 2)
    call = fc.conv1d if function == "conv" else fc.conv_transpose1d
    result = call(x, w, fine)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, call(x.astype("f8"), w.astype("f8")) + fine[:, None])


def test_gradients_of_another_type(backend: str) -> None:
    """A float64 gradient of a float32 pool stays float64."""
    x = whole(1, 2, 6, 6)
    for gradient in (grad.max_pool2d, grad.avg_pool2d):
        result = gradient(np.full((1, 2, 3, 3), 1 / 3), x, 2)
        assert result.dtype == np.float64
        assert result.max() == (1 / 3 if gradient is grad.max_pool2d else 1 / 3 / 4)


def exactly(x: Any, w: Any, dtype: str) -> Any:
    """A 1-D convolution of one window in Python's integers, wrapped as two's complement into `dtype`."""
    total = sum(int(a) * int(b) for a, b in zip(x.ravel(), w.ravel(), strict=True))
    return np.uint64(total % 2**64).astype(dtype)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name, row in DTYPES.items() if row.kind != "f"])
def test_integers_are_exact_over_their_whole_range(backend: str, name: str, seed: int) -> None:
    """Other integers exactly, never through float: random ones of the whole range, and the two ends."""
    info, rng = np.iinfo(name), np.random.default_rng(seed)
    x, w = rng.integers(info.min, info.max, (2, 1, 3, 9), dtype=name, endpoint=True)
    x[..., :2], w[..., :2] = (
        [info.min, info.max],
        [[info.min, info.max], [info.max, info.min], [info.min, info.min]],
    )
    result = fc.conv1d(x, w)
    assert result.dtype.name == DTYPES[name].out
    assert result[0, 0, 0] == exactly(x, w, DTYPES[name].out)
    transposed = fc.conv_transpose1d(x[..., :1], w.swapaxes(0, 1)[..., :1])
    assert transposed[0, 0, 0] == exactly(x[..., :1], w[..., :1], DTYPES[name].out)


@pytest.mark.parametrize(("first", "second"), [("i1", "i1"), ("u1", "u1"), ("i1", "u1"), ("u1", "i1")])
def test_bytes_are_summed_in_int32_up_to_its_very_end(backend: str, first: str, second: str) -> None:
    """int8/uint8 -> int32, every mix: the longest sum that always fits is exact, one term more is refused."""
    ends = [max(np.iinfo(t).max, -np.iinfo(t).min) for t in (first, second)]
    extremes = [np.iinfo(t).min if t == "i1" else np.iinfo(t).max for t in (first, second)]
    longest = (2**31 - 1) // (int(ends[0]) * int(ends[1]))
    x, w = (
        np.full((1, 1, longest), extreme, t) for extreme, t in zip(extremes, (first, second), strict=True)
    )
    result = fc.conv1d(x, w)
    assert result.dtype == np.int32
    assert int(result[0, 0, 0]) == longest * int(extremes[0]) * int(extremes[1])
    x, w = (np.append(a, a[..., :1], axis=-1) for a in (x, w))
    with pytest.raises(ValueError, match=rf"{longest + 1} products of .* 2\*\*31 - 1"):
        fc.conv1d(x, w)
    wide = fc.conv1d(x.astype("i2"), w.astype("i2"))
    assert int(wide[0, 0, 0]) == (longest + 1) * int(extremes[0]) * int(extremes[1])


def test_64_bit_sums_wrap(backend: str) -> None:
    """Beyond 64 bits integers wrap, as two's complement (and NumPy) does."""
    x = np.array([[[2**63 - 1, -(2**63), 12345]]])
    w = np.array([[[3, -1, 2**62]]])
    assert fc.conv1d(x, w)[0, 0, 0] == exactly(x, w, "int64")
    big = np.full((1, 1, 3), 2**64 - 1, "u8")
    assert fc.conv1d(big, big)[0, 0, 0] == exactly(big, big, "uint64") == 3


def test_averages_of_large_integers(backend: str) -> None:
    """Averages of integers are float64 and lose nothing on the way: what numpy.mean gives."""
    x = np.array([[[2**31 - 1, 2**31 - 1, 2**31 - 2, 7]]], "i4")
    assert fc.avg_pool1d(x, 4)[0, 0, 0] == x.mean()
    assert fc.avg_pool1d(x, 2)[0, 0, 1] == (2**31 - 2 + 7) / 2


def test_half_results_overflow_to_infinity_without_a_warning(backend: str) -> None:
    """float16 stored as such: a sum beyond it is inf, while the sum itself is formed in float32."""
    x, w = np.full((1, 1, 3), 6e4, "f2"), np.ones((1, 1, 3), "f2")
    assert fc.conv1d(x, w)[0, 0, 0] == np.inf
    w[..., 1] = -1
    assert fc.conv1d(x, w)[0, 0, 0] == np.float16(6e4)
    assert fc.avg_pool1d(x, 3)[0, 0, 0] == np.float16(6e4)
