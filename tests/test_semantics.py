"""Every decision of the design's section on semantics, one test each, named by the sentence it holds."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastconv as fc
from fastconv import grad, testing
from fastconv.backends import backends, owner
from fastconv.plan import MAX_ERROR
from fastconv.spec import DTYPES, Op, parse

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
FLOATS = [np.dtype("f2"), np.dtype(ml_dtypes.bfloat16), np.dtype("f4"), np.dtype("f8")]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    with fc.use_backend(request.param):
        yield request.param


def whole(*shape: int, dtype: Any = "f4", seed: int = 0) -> Any:
    """Random whole numbers, whose sums are exact."""
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)


# --- cross-correlation and layout


def test_cross_correlation_no_flip(backend: str) -> None:
    """Cross-correlation, no flip."""
    x = np.array([[1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]], "f4")[None]
    w = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], "f4")[None, None]
    np.testing.assert_array_equal(fc.conv2d(x, w)[0], [[15, 16], [6, 15]])


def test_unbatched_input(backend: str) -> None:
    """Unbatched input accepted as torch does."""
    x, w = whole(2, 4, 6, 7), whole(3, 4, 3, 2)
    np.testing.assert_array_equal(fc.conv2d(x[0], w), fc.conv2d(x, w)[0])
    np.testing.assert_array_equal(fc.max_pool2d(x[0], 2), fc.max_pool2d(x, 2)[0])
    np.testing.assert_array_equal(fc.unfold(x[0], 2), fc.unfold(x, 2)[0])
    values, indices = fc.max_pool2d(x[0], 2, return_indices=True)
    assert values.shape == indices.shape == (4, 3, 3)


def test_zero_size_batch(backend: str) -> None:
    """Zero-size batch gives zero-size output."""
    x, w = np.zeros((0, 4, 6, 7), "f4"), whole(3, 4, 3, 2)
    assert fc.conv2d(x, w).shape == (0, 3, 4, 6)
    assert fc.conv_transpose2d(np.zeros((0, 3, 4, 6), "f4"), w).shape == (0, 4, 6, 7)
    assert fc.max_pool2d(x, 2).shape == (0, 4, 3, 3)
    assert fc.avg_pool2d(x, 2).shape == (0, 4, 3, 3)
    assert fc.adaptive_avg_pool2d(x, 1).shape == (0, 4, 1, 1)
    weight_grad = grad.conv2d_weight(x, w.shape, np.zeros((0, 3, 4, 6), "f4"))
    np.testing.assert_array_equal(weight_grad, np.zeros_like(w))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_layout_is_batch_channels_space(backend: str, rank: int) -> None:
    """Layout N,C,spatial..., by the definition, element by element."""
    size, kernel = (5, 4, 3)[:rank], (2, 3, 2)[:rank]
    x, w, b = whole(2, 3, *size), whole(4, 3, *kernel), whole(4)
    result = getattr(fc, f"conv{rank}d")(x, w, b)
    assert result.shape == (2, 4, *(n - k + 1 for n, k in zip(size, kernel, strict=True)))
    for n, o, *q in np.ndindex(result.shape):
        window = x[(n, slice(None), *(slice(i, i + k) for i, k in zip(q, kernel, strict=True)))]
        assert result[(n, o, *q)] == (window * w[o]).sum() + b[o]


def test_groups_split_channels(backend: str) -> None:
    """Groups, as torch has them: channels are split into as many independent convolutions."""
    x, w = whole(2, 6, 5, 5), whole(9, 2, 3, 3)
    parts = [fc.conv2d(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3]) for g in range(3)]
    np.testing.assert_array_equal(fc.conv2d(x, w, groups=3), np.concatenate(parts, axis=1))


# --- padding


@pytest.mark.parametrize(
    ("size", "k", "s", "d"), list(itertools.product((5, 6, 7), (1, 2, 3, 4), (1, 2, 3), (1, 2)))
)
def test_same_is_same_upper_at_any_stride(size: int, k: int, s: int, d: int) -> None:
    """The name same (= SAME_UPPER, any stride: total = max((ceil(H/s)-1)s + d(k-1) + 1 - H, 0), the odd one after)."""
    total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
    x, w = whole(1, 2, size), whole(3, 2, k)
    for name, pads in (
        ("same", (total // 2, total - total // 2)),
        ("same_lower", (total - total // 2, total // 2)),
    ):
        expected = fc.conv1d(np.pad(x, ((0, 0), (0, 0), pads)), w, stride=s, dilation=d)
        result = fc.conv1d(x, w, stride=s, dilation=d, padding=name)
        assert result.shape[-1] == -(-size // s)
        np.testing.assert_array_equal(result, expected)


def test_padding_forms(backend: str) -> None:
    """padding: int, one int per axis, one (before, after) pair per axis, "valid"."""
    x, w = whole(1, 2, 5, 6), whole(3, 2, 3, 2)
    for padding, pads in (
        (1, ((1, 1), (1, 1))),
        ((1, 2), ((1, 1), (2, 2))),
        (((0, 2), (1, 0)), ((0, 2), (1, 0))),
        ("valid", ((0, 0), (0, 0))),
    ):
        padded = np.pad(x, ((0, 0), (0, 0), *pads))
        np.testing.assert_array_equal(fc.conv2d(x, w, padding=padding), fc.conv2d(padded, w))


def test_pool_padding_is_minus_infinity(backend: str) -> None:
    """Pool padding value is -inf for max."""
    x = -np.arange(1, 10, dtype="f4").reshape(1, 3, 3)
    assert fc.max_pool2d(x, 2, 1, 1).max() == -1
    assert fc.max_pool2d(x.astype("i1"), 2, 1, 1).max() == -1


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_both_divisors(backend: str, dtype: str) -> None:
    """Each of avg's two divisors is honoured."""
    x = np.ones((1, 4, 4), dtype)
    include, exclude = fc.avg_pool2d(x, 3, 1, 1), fc.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert include[0, 0, 0] == np.true_divide(4, 9, dtype=dtype)
    assert include[0, 1, 1] == 1
    np.testing.assert_array_equal(exclude, np.ones_like(exclude))
    assert fc.avg_pool2d(x, 3, 1, 1, divisor_override=2)[0, 1, 1] == 4.5


NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "symmetric": "symmetric"}


@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_padding_modes(backend: str, mode: str) -> None:
    """padding_mode for convolutions: zeros reflect replicate circular symmetric."""
    x, w = whole(2, 2, 5, 6), whole(3, 2, 3, 4)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 1), (0, 4)), mode=NUMPY_MODES[mode])  # type: ignore[call-overload]
    result = fc.conv2d(x, w, padding=((2, 1), (0, 4)), padding_mode=mode)
    np.testing.assert_array_equal(result, fc.conv2d(padded, w))


def test_padded_zeros_take_part(backend: str) -> None:
    """conv(x, padding) is conv(pad(x)), even where 0 * inf is NaN."""
    x, w = np.ones((1, 3, 3), "f4"), np.ones((1, 1, 3, 3), "f4")
    w[0, 0, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        expected = fc.conv2d(np.pad(x, ((0, 0), (1, 1), (1, 1))), w)
    np.testing.assert_array_equal(fc.conv2d(x, w, padding=1), expected)
    assert np.isnan(expected[0, 0, 0])


def test_what_numpy_is_told_to_raise_is_an_answer(backend: str) -> None:
    """inf - inf is NaN, at the first call and at the next; what NumPy does elsewhere stays as it was."""
    x, w = np.full((1, 2, 3, 3), np.inf, "f4"), np.ones((1, 2, 3, 3), "f4")
    w[0, 1] = -1
    with np.errstate(all="raise"):
        before = np.geterr()
        assert all(np.isnan(fc.conv2d(x, w)).all() for _ in range(2))
        assert np.geterr() == before


# --- pools


def test_stride_defaults_to_the_kernel(backend: str) -> None:
    """Pool stride defaults to the kernel."""
    x = whole(1, 2, 9, 8)
    np.testing.assert_array_equal(fc.max_pool2d(x, (3, 2)), fc.max_pool2d(x, (3, 2), (3, 2)))
    np.testing.assert_array_equal(fc.avg_pool2d(x, (3, 2)), fc.avg_pool2d(x, (3, 2), (3, 2)))


def test_ceil_mode_drops_a_window_in_the_right_padding(backend: str) -> None:
    """ceil_mode: a last window that would start in the right padding is dropped (torch)."""
    x = whole(1, 1, 4)
    assert fc.max_pool1d(x, 2, 3, 1, ceil_mode=True).shape[-1] == 2
    assert fc.max_pool1d(whole(1, 1, 5), 2, 5, 1, ceil_mode=True).shape[-1] == 2
    assert fc.max_pool1d(whole(1, 1, 4), 2, 5, 1, ceil_mode=True).shape[-1] == 1


def test_average_divisor_in_ceil_mode(backend: str) -> None:
    """Average divisor in ceil mode counts to H+pad only: the fixture of the design."""
    x = np.arange(1, 17, dtype="f4").reshape(1, 4, 4)
    expected = np.array([[14 / 9, 10 / 3, 2], [19 / 3, 11, 6], [4.5, 7.5, 4]], "f4")
    np.testing.assert_array_equal(fc.avg_pool2d(x, 3, 2, 1, ceil_mode=True)[0], expected)


def test_nan_propagates_in_max(backend: str) -> None:
    """Max pool: NaN propagates."""
    x = np.array([[1, np.nan, 3, 4, 5, np.nan, np.nan, 1]], "f4")
    values, indices = fc.max_pool1d(x, 4, return_indices=True)
    assert np.isnan(values).all()
    np.testing.assert_array_equal(indices, [[1, 6]])  # torch: the last NaN wins


def test_ties_keep_the_first(backend: str) -> None:
    """Ties keep the first; indices are flat per plane (int64)."""
    x = np.zeros((2, 3, 4, 6), "f4")
    _, indices = fc.max_pool2d(x, 2, return_indices=True)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices[1, 2], [[0, 2, 4], [12, 14, 16]])
    empty = np.full((1, 1, 4), -np.inf, "f4")
    np.testing.assert_array_equal(fc.max_pool1d(empty, 2, return_indices=True)[1], [[[0, 2]]])


@pytest.mark.parametrize("p", [1, 2, 3, 2.5])
def test_lp_pool_uses_absolute_values(backend: str, p: float) -> None:
    """Lp pool uses |x|^p."""
    x = whole(1, 2, 8, dtype="f8")
    np.testing.assert_array_equal(fc.lp_pool1d(x, p, 2), fc.lp_pool1d(-x, p, 2))
    expected = (np.abs(x.reshape(1, 2, 4, 2)) ** p).sum(-1) ** (1 / p)
    allowed = testing.tolerance(fc.explain(fc.lp_pool1d, x, p, 2), (x,))
    _, detail = testing.compare(fc.lp_pool1d(x, p, 2), expected, allowed)
    assert not detail


@pytest.mark.parametrize(("size", "o"), [(7, 3), (5, 5), (9, 1), (4, 7), (10, 4)])
def test_adaptive_bins(backend: str, size: int, o: int) -> None:
    """Adaptive bins: start floor(i*H/o), end ceil((i+1)*H/o)."""
    x = whole(1, 2, size, dtype="f8")
    bins = [x[..., i * size // o : -(-(i + 1) * size // o)] for i in range(o)]
    np.testing.assert_array_equal(fc.adaptive_max_pool1d(x, o), np.stack([b.max(-1) for b in bins], -1))
    sums = np.stack([b.sum(-1) / b.shape[-1] for b in bins], -1)
    np.testing.assert_array_equal(fc.adaptive_avg_pool1d(x, o), sums)


def test_adaptive_none_keeps_an_axis(backend: str) -> None:
    """output_size of None keeps the axis (torch)."""
    assert fc.adaptive_avg_pool2d(whole(1, 2, 5, 7), (None, 3)).shape == (1, 2, 5, 3)


# --- types


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_are_stored_as_such(backend: str, dtype: Any) -> None:
    """float16/bfloat16 stored as such, accumulated in float32."""
    # 2048 ones and a half: float16 sums would stall at 2048, float32 ones do not.
    x, w = np.ones((1, 1, 4097), dtype), np.ones((1, 1, 4097), dtype)
    result = fc.conv1d(x, w)
    assert result.dtype == dtype
    assert result[0, 0, 0] == np.float64(4097).astype(dtype)
    assert fc.avg_pool1d(x, 4097).dtype == dtype
    assert fc.avg_pool1d(x, 4097)[0, 0, 0] == 1


@pytest.mark.parametrize("name", [name for name, row in DTYPES.items() if row.kind != "f"])
def test_integers_are_exact(backend: str, name: str) -> None:
    """int8/uint8 -> int32 and other integers exactly, never through float."""
    largest = np.iinfo(name).max
    x = np.full((1, 2, 3), largest, name)
    w = np.ones((1, 2, 2), name)
    w[0, 1] = 2
    result = fc.conv1d(x, w)
    assert result.dtype.name == DTYPES[name].out
    exact = 6 * largest % 2**64
    assert result[0, 0, 0] == np.uint64(exact).astype(result.dtype)


@pytest.mark.parametrize(("x_dtype", "w_dtype"), [("u1", "i1"), ("i1", "u1")])
def test_mixed_bytes_give_int32(backend: str, x_dtype: str, w_dtype: str) -> None:
    """int8/uint8 -> int32, all mixes."""
    x = np.full((1, 1, 2), np.iinfo(x_dtype).max, x_dtype)
    w = np.full((1, 1, 2), np.iinfo(w_dtype).max, w_dtype)
    result = fc.conv1d(x, w)
    assert result.dtype == np.int32
    assert result[0, 0, 0] == 2 * int(np.iinfo(x_dtype).max) * int(np.iinfo(w_dtype).max)


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype", "expected"),
    [("f4", "f8", "f8"), ("f2", "f4", "f4"), ("i1", "f4", "f4"), ("i4", "f4", "f8"), ("f8", "u1", "f8")],
)
def test_mixed_types_follow_result_type(backend: str, x_dtype: str, w_dtype: str, expected: str) -> None:
    """Mixed float inputs follow np.result_type; the output is never silently narrowed."""
    result = fc.conv1d(whole(1, 2, 5).astype(x_dtype), whole(3, 2, 2).astype(w_dtype))
    assert result.dtype == np.dtype(expected) == np.result_type(x_dtype, w_dtype)
    wide_bias = fc.conv1d(whole(1, 2, 5), whole(3, 2, 2), np.zeros(3))
    assert wide_bias.dtype == np.float64


def test_integer_averages_are_float64(backend: str) -> None:
    """Averages of integers are what numpy.mean gives."""
    x = np.array([[[1, 2, 4, 255]]], "u1")
    result = fc.avg_pool1d(x, 4)
    assert result.dtype == np.float64
    assert result[0, 0, 0] == x.mean()


def test_same_kind_of_array_out(backend: str) -> None:
    """Same kind of array out as in."""
    matrix = whole(4, 6).view(np.matrix) if hasattr(np, "matrix") else whole(4, 6)
    assert type(fc.conv1d(np.asarray(matrix)[None], whole(2, 4, 3))) is np.ndarray


class DeviceArray:
    """What a CuPy array looks like from outside; reading anything else of it fails the test."""

    shape, ndim, dtype = (1, 1, 4, 4), 4, np.dtype("f4")


DeviceArray.__module__ = "cupy"


def test_no_silent_copies_between_host_and_device() -> None:
    """No silent host<->device copies: arrays of two kinds never meet, and a backend takes its own kind only."""
    device: Any = DeviceArray()
    host = np.ones((1, 1, 2, 2), "f4")
    with pytest.raises(TypeError, match="weight: got a numpy array where input is a cupy array"):
        fc.conv2d(device, host)
    with pytest.raises(TypeError, match="out: got a cupy array, expected a numpy array"):
        fc.conv2d(host, host, out=device)
    for backend in BACKENDS:
        with pytest.raises(TypeError, match=f"backend: '{backend}' works on numpy arrays, got cupy arrays"):
            fc.max_pool2d(device, 2, backend=backend)
    if fc.backends()["cupy"] != "available":
        with (
            fc.use_backend("auto"),
            pytest.raises(fc.BackendUnavailable, match="no backend can take cupy arrays here"),
        ):
            fc.max_pool2d(device, 2)


# --- precision, reproducibility, workspace


TRANSFORMS = [
    "n1 c1x96x96 k2x33x33 s1 p16 f32",
    "n2 c3x90x80 k2x25x25 s2 p3 f32",
    "n1 c2x4000 k2x301 s1 p0 f32",
]


@pytest.mark.parametrize("problem", TRANSFORMS)
@pytest.mark.parametrize("kind", ["normal", "integers"])
def test_default_transforms_stay_under_their_bound(problem: str, kind: str) -> None:
    """Precision "default" = additionally transforms whose normwise error stays under 6e-6 in float32."""
    plan = fc.explain(problem, backend="im2col")
    assert plan.algorithm == "fft"
    assert 0 < plan.run.error <= MAX_ERROR
    x, w = testing.operands(plan.spec, Op.CONV, kind)
    exact = testing.reference(plan.spec, Op.CONV, (x, w), backend="im2col")
    error = np.abs(plan(x, w) - exact).max() / np.abs(exact).max()
    assert 0 < error < MAX_ERROR


@pytest.mark.parametrize("problem", ["n1 c3x6x7 k4x3x3 s1 p1 f32", "n1 c2x6x7 k4x1x1 s1 p0 f64"])
def test_tf32_is_opt_in_and_nothing_without_tensor_cores(backend: str, problem: str) -> None:
    """Precision "tf32" = opt-in, GPU tensor cores: on a CPU the bits are those of "default"."""
    x, w = testing.operands(parse(problem), Op.CONV, "normal")
    padding = parse(problem).padding
    results = [fc.conv2d(x, w, padding=padding, precision=p).tobytes() for p in ("default", "tf32")]
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_one_answer_in_every_backend(backend: str, dtype: str) -> None:
    """One answer, the same in every backend: within the bounds of plain sums, whatever the algorithm."""
    for problem in (
        "n2 c3x6x7 k4x3x3 s2 p1",
        "avg n1 c2x7x8 k3x3 s2 p1 ceil",
        "lp3 n1 c2x7x8 k3x3",
        "max n1 c2x7x8 k3x3 p1 indices",
    ):
        for kind in ("integers", "normal"):
            testing.assert_agrees(fc.explain(f"{problem} {'f32' if dtype == 'f4' else 'f64'}"), kind)


@pytest.mark.parametrize("function", ["input", "weight", "avg", "lp", "adaptive"])
def test_same_bits_of_everything_with_any_number_of_threads(backend: str, function: str) -> None:
    """Reproducible: gradients and pools too, in random float32, and again in the same process."""
    n = 5 if backend == "naive" else 33
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((3, 4, n, n)).astype("f4"), rng.standard_normal((5, 4, 3, 3)).astype("f4")
    dy = rng.standard_normal((3, 5, n - 2, n - 2)).astype("f4")
    calls = {
        "input": lambda: grad.conv2d_input(x.shape, w, dy),
        "weight": lambda: grad.conv2d_weight(x, w.shape, dy),
        "avg": lambda: fc.avg_pool2d(x, 3, 2, 1),
        "lp": lambda: fc.lp_pool2d(x, 3, 3),
        "adaptive": lambda: fc.adaptive_avg_pool2d(x, 3),
    }
    before = fc.get_num_threads()
    seen = set()
    try:
        for threads in (1, 2, 3, 7, 1):
            fc.set_num_threads(threads)
            seen.add(calls[function]().tobytes())
    finally:
        fc.set_num_threads(before)
    assert len(seen) == 1


@pytest.mark.parametrize("limit", [20_000, 60_000, 10**6])
def test_a_limit_changes_the_plan_not_the_answer(limit: int) -> None:
    """workspace_limit (bytes): no plan allocates more scratch than that; the numbers are the same."""
    x, w = whole(2, 8, 20, 20), whole(6, 8, 3, 3)
    expected = fc.conv2d(x, w, padding=1, backend="im2col")
    plan = fc.explain(fc.conv2d, x, w, padding=1, backend="im2col", workspace_limit=limit)
    assert plan.workspace <= limit
    np.testing.assert_array_equal(
        fc.conv2d(x, w, padding=1, backend="im2col", workspace_limit=limit), expected
    )


def test_highest_precision_takes_no_transform() -> None:
    """precision "highest" = sums in the stated accumulation type, no transform."""
    problem = "n1 c1x128x128 k1x33x33 s1 p16 f32"
    assert fc.explain(problem, backend="im2col").algorithm == "fft"
    plan = fc.explain(problem, backend="im2col", precision="highest")
    assert plan.algorithm == "im2col"
    assert "transform" in plan.declined["fft"]


def test_float64_takes_no_transform_by_default() -> None:
    """float64 never uses transforms by default."""
    problem = "n1 c1x128x128 k1x33x33 s1 p16 f64"
    assert fc.explain(problem, backend="im2col").algorithm == "im2col"
    assert fc.explain(problem, backend="im2col", algorithm="fft").algorithm == "fft"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_fft_is_never_chosen_for_data_it_would_spread(value: float) -> None:
    """FFT is never chosen for integers or on its own for non-finite data."""
    x, w = np.zeros((1, 1, 96, 96), "f4"), np.ones((1, 1, 33, 33), "f4")
    x[0, 0, 0, 0] = value
    assert (
        fc.explain(fc.conv2d, x * 0 if value == 1e38 else np.zeros_like(x), w, backend="im2col").algorithm
        == "fft"
    )
    result = fc.conv2d(x, w, backend="im2col")
    assert np.count_nonzero(result) + np.count_nonzero(np.isnan(result)) == (2 if np.isnan(value) else 1)
    assert fc.explain(fc.conv2d, x, w, backend="im2col").algorithm == "im2col"
    integers = "n1 c1x96x96 k1x33x33 s1 p0 s32"
    assert "float" in fc.explain(integers, backend="im2col").declined["fft"]


@pytest.mark.parametrize(
    "problem", ["n3 c16x20x20 k24x3x3 p1", "n1 c64x9x9 k64x1x1", "n2 c1x64x64 k2x31x31", "n1 c300x1x1 k1x1x1"]
)
def test_same_bits_with_any_number_of_threads(backend: str, problem: str) -> None:
    """Same inputs, same machine, same settings -> same bits, whatever the number of threads."""
    if backend == "naive":
        problem = "n1 c2x6x6 k3x3x3 p1"
    spec = fc.parse(problem)
    assert isinstance(spec, fc.ConvSpec)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype("f4") for shape in (spec.input_shape, spec.weight_shape))
    before = fc.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 1):
            fc.set_num_threads(threads)
            results.append(fc.conv2d(x, w, padding=spec.padding))
    finally:
        fc.set_num_threads(before)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_workspace_limit_is_kept_or_refused_with_the_smallest() -> None:
    """If nothing fits, an error that says the smallest that would."""
    problem = "n1 c64x28x28 k64x3x3 s1 p1 f32"
    with pytest.raises(fc.Unsupported) as caught:
        fc.explain(problem, backend="im2col", workspace_limit=100)
    smallest = caught.value.workspace
    assert smallest is not None
    assert str(smallest) in str(caught.value)
    plan = fc.explain(problem, backend="im2col", workspace_limit=smallest)
    assert plan.workspace <= smallest
    with pytest.raises(fc.Unsupported):
        fc.explain(problem, backend="im2col", workspace_limit=smallest - 1)


def test_unsupported_carries_every_reason() -> None:
    """Unsupported carries every algorithm's reason."""
    with pytest.raises(fc.Unsupported) as caught:
        fc.explain("n1 c64x28x28 k64x3x3 s1 p1 f32", backend="im2col", workspace_limit=100)
    assert set(caught.value.reasons) == {"pointwise", "im2col", "fft"}


def test_unavailable_says_why() -> None:
    """BackendUnavailable says what is missing."""
    for name, state in fc.backends().items():
        if state != "available":
            with pytest.raises(fc.BackendUnavailable, match=name):
                fc.set_backend(name)


# --- transposed convolution


@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "dilation", "groups"),
    [
        (1, 0, 0, 1, 1),
        (2, 1, 1, 1, 1),
        (3, 2, 2, 2, 2),
        (1, 0, 1, 2, 1),
        ((2, 1), (0, 1), (1, 0), (1, 2), 2),
        (1, 0, 1, 3, 1),
    ],
)
def test_transposed_convolution_is_the_adjoint(
    backend: str, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: int
) -> None:
    """A transposed convolution is the input gradient of its spec."""
    x, w = whole(2, 4, 4, 5, dtype="f8"), whole(4, 6 // groups, 3, 2, dtype="f8")
    y = fc.conv_transpose2d(x, w, None, stride, padding, output_padding, groups, dilation)
    other = whole(*y.shape, dtype="f8", seed=1)
    back = grad.conv_transpose2d_input(x.shape, w, other, stride, padding, output_padding, groups, dilation)
    assert np.vdot(y, other) == np.vdot(x, back)
    weight_grad = grad.conv_transpose2d_weight(
        x, w.shape, other, stride, padding, output_padding, groups, dilation
    )
    assert np.vdot(weight_grad, w) == np.vdot(y, other)
    bias = whole(6, dtype="f8")
    with_bias = fc.conv_transpose2d(x, w, bias, stride, padding, output_padding, groups, dilation)
    np.testing.assert_array_equal(with_bias, y + bias[:, None, None])
