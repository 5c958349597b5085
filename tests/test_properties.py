"""Laws that hold whatever the numbers: linearity, equivariance, adjoints, ranks, limits, threads."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import grad, testing
from fastconv.backends import Unsupported, backends, owner
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, parse

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
CONVS = [
    text
    for text in PROBLEMS["edges"]
    if isinstance(spec := parse(text), ConvSpec) and spec.dtype == "float32"
]
POOLS = [
    text
    for text in PROBLEMS["edges"]
    if isinstance(spec := parse(text), PoolSpec) and spec.dtype == "float32"
]
often = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**16)


def whole(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype("float64")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", CONVS)
def test_adjoint_identity(problem: str, backend: str) -> None:
    """<conv x, dy> = <x, dx> = <w, dw>, exactly."""
    spec = parse(problem.replace("f32", "f64"))
    assert isinstance(spec, ConvSpec)
    x, w, dy = whole(spec.input_shape, 1), whole(spec.weight_shape, 2), whole(spec.output_shape, 3)
    y = plan(spec, Op.CONV, backend, "auto", "highest")(x, w)
    dx = plan(spec, Op.CONV_INPUT_GRAD, backend, "auto", "highest")(dy, w)
    dw = plan(spec, Op.CONV_WEIGHT_GRAD, backend, "auto", "highest")(x, dy)
    assert np.vdot(y, dy) == np.vdot(x, dx) == np.vdot(w, dw)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", CONVS)
def test_unfold_and_fold_are_adjoint(problem: str, backend: str) -> None:
    """<unfold x, c> = <x, fold c>, exactly."""
    spec = parse(problem.replace("f32", "f64"))
    assert isinstance(spec, ConvSpec)
    x, columns = whole(spec.input_shape, 1), whole(spec.columns_shape, 2)
    unfolded = plan(spec, Op.UNFOLD, backend)(x)
    folded = plan(spec, Op.FOLD, backend)(columns)
    assert np.vdot(unfolded, columns) == np.vdot(x, folded)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", [p for p in POOLS if p.startswith("max")])
def test_max_gradient_keeps_the_sum(problem: str, backend: str) -> None:
    """Every gradient lands on exactly one element."""
    spec = parse(problem)
    assert isinstance(spec, PoolSpec)
    given_operands = testing.operands(spec, Op.POOL_INPUT_GRAD, "integers")
    dx = plan(spec, Op.POOL_INPUT_GRAD, backend)(*given_operands)
    assert dx.sum() == given_operands[0].sum()


@often
@given(seed=seeds, a=st.integers(-3, 3), b=st.integers(-3, 3), name=st.sampled_from(BACKENDS))
def test_linearity(seed: int, a: int, b: int, name: str) -> None:
    x, z, w = whole((1, 2, 5, 6), seed), whole((1, 2, 5, 6), seed + 1), whole((3, 2, 3, 2), seed + 2)
    with fc.use_backend(name):
        combined = fc.conv2d(a * x + b * z, w, padding=1)
        np.testing.assert_array_equal(
            combined, a * fc.conv2d(x, w, padding=1) + b * fc.conv2d(z, w, padding=1)
        )


@often
@given(seed=seeds, dy=st.integers(0, 2), dx=st.integers(0, 2), name=st.sampled_from(BACKENDS))
def test_shift_equivariance(seed: int, dy: int, dx: int, name: str) -> None:
    x, w = whole((1, 2, 9, 9), seed), whole((2, 2, 3, 3), seed + 1)
    moved = np.zeros_like(x)
    moved[:, :, dy:, dx:] = x[:, :, : 9 - dy, : 9 - dx]
    with fc.use_backend(name):
        np.testing.assert_array_equal(
            fc.conv2d(moved, w)[:, :, dy:, dx:], fc.conv2d(x, w)[:, :, : 7 - dy, : 7 - dx]
        )


@often
@given(seed=seeds, s=st.integers(1, 4), size=st.integers(3, 11), name=st.sampled_from(BACKENDS))
def test_stride_is_subsampling(seed: int, s: int, size: int, name: str) -> None:
    x, w = whole((2, 2, size, size), seed), whole((3, 2, 3, 3), seed + 1)
    with fc.use_backend(name):
        np.testing.assert_array_equal(fc.conv2d(x, w, stride=s), fc.conv2d(x, w)[:, :, ::s, ::s])


@often
@given(
    seed=seeds, name=st.sampled_from(BACKENDS), p=st.integers(0, 2), s=st.integers(1, 3), d=st.integers(1, 2)
)
def test_ranks_agree(seed: int, name: str, p: int, s: int, d: int) -> None:
    """conv1d is conv2d of one row is conv3d of one plane; so are the pools."""
    x, w = whole((2, 3, 9), seed), whole((4, 3, 3), seed + 1)
    with fc.use_backend(name):
        line = fc.conv1d(x, w, None, s, p, d)
        row = fc.conv2d(x[:, :, None], w[:, :, None], None, (1, s), (0, p), (1, d))
        plane = fc.conv3d(x[:, :, None, None], w[:, :, None, None], None, (1, 1, s), (0, 0, p), (1, 1, d))
        np.testing.assert_array_equal(line, row[:, :, 0])
        np.testing.assert_array_equal(line, plane[:, :, 0, 0])
        pooled = fc.max_pool1d(x, 3, s, min(p, 1))
        np.testing.assert_array_equal(
            pooled, fc.max_pool2d(x[:, :, None], (1, 3), (1, s), (0, min(p, 1)))[:, :, 0]
        )


@often
@given(seed=seeds, name=st.sampled_from(BACKENDS), groups=st.sampled_from((1, 2, 4)))
def test_groups_are_separate_convolutions(seed: int, name: str, groups: int) -> None:
    x, w = whole((2, 4, 5, 5), seed), whole((8, 4 // groups, 3, 3), seed + 1)
    share, outs = 4 // groups, 8 // groups
    with fc.use_backend(name):
        whole_result = fc.conv2d(x, w, groups=groups)
        parts = [
            fc.conv2d(x[:, g * share : (g + 1) * share], w[g * outs : (g + 1) * outs]) for g in range(groups)
        ]
    np.testing.assert_array_equal(whole_result, np.concatenate(parts, 1))


@pytest.mark.parametrize(
    "problem",
    [
        "n3 c6x17x15 k8x3x3 s1 p1",
        "n2 c4x20x9 k6x5x3 s2 p2x1 d1x2 g2",
        "n1 c3x40 k5x7 s1 p3",
        "n1 c2x7x8x9 k3x3x2x3 s1 p1",
    ],
)
@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.UNFOLD, Op.FOLD])
def test_a_limit_does_not_change_whole_numbers(problem: str, op: Op) -> None:
    spec = parse(problem)
    operands = testing.operands(spec, op, "integers")
    free = plan(spec, op, "im2col", "auto", "highest")
    expected = free(*operands)
    least = 0  # unfolding without padding needs nothing
    try:
        plan(spec, op, "im2col", "auto", "highest", 0)
    except Unsupported as refusal:
        least = refusal.workspace or 0
    for limit in (least, 2 * least, 5 * least, free.workspace // 2 + least):
        made = plan(spec, op, "im2col", "auto", "highest", limit)
        assert made.workspace <= limit
        np.testing.assert_array_equal(made(*operands), expected)


@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.UNFOLD, Op.FOLD])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_ragged_blocks_on_several_threads(monkeypatch: pytest.MonkeyPatch, op: Op, dtype: str) -> None:
    """Blocks of unequal size, in whatever order threads take them."""
    from fastconv.backends.im2col import gemm

    monkeypatch.setattr(gemm, "TARGET_BYTES", 20_000)
    before = fc.get_num_threads()
    try:
        fc.set_num_threads(4)
        made = plan.__wrapped__(parse(f"n3 c8x7x7 k8x3x3 s1 p1 {dtype}"), op, "im2col", "auto", "highest")
        for seed in range(20):
            testing.assert_agrees(made, "integers", seed % 3)
    finally:
        fc.set_num_threads(before)


def test_calls_from_many_threads_at_once() -> None:
    """Concurrent calls give the bits a single one gives, and BLAS keeps its thread count."""
    from threadpoolctl import threadpool_info

    before = [row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas"]
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 16, 20, 20)).astype("f4"), rng.standard_normal((16, 16, 3, 3)).astype("f4")
    expected = fc.conv2d(x, w, padding=1, backend="im2col").tobytes()
    barrier = threading.Barrier(6)

    def call(_: int) -> bool:
        barrier.wait()
        return all(fc.conv2d(x, w, padding=1, backend="im2col").tobytes() == expected for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(6)))
    assert [row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas"] == before


def test_calls_after_fork() -> None:
    """A forked child computes what its parent does."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    code = (
        "import multiprocessing as m, numpy as np, fastconv as fc\n"
        "x = np.ones((4, 8, 90, 90), 'f4'); w = np.ones((8, 8, 3, 3), 'f4')\n"
        "here = fc.conv2d(x, w, backend='im2col')\n"
        "def child(queue): queue.put(bool((fc.conv2d(x, w, backend='im2col') == 72).all()))\n"
        "c = m.get_context('fork'); q = c.Queue(); p = c.Process(target=child, args=(q,)); p.start()\n"
        "assert q.get(timeout=60); p.join(); assert (here == 72).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_overflow_and_invalid_are_answers_not_warnings() -> None:
    """Inf and NaN come out as torch gives them, also from other threads, without a warning."""
    x = np.full((64, 1, 64, 64), 3e38, "f4")
    w = np.array([[[[2.0, -2.0]]]], "f4")
    w[0, 0, 0, 1] = 2
    assert np.isinf(fc.conv2d(x, w, backend="im2col")).all()
    assert np.isinf(fc.avg_pool2d(x, 2, backend="im2col")).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_functions_match_plans(backend: str) -> None:
    """The public gradients are the plans of the forward call's spec."""
    spec = parse("n2 c4x7x6 k6x3x2 s2x1 p1 d1x2 g2 f32")
    assert isinstance(spec, ConvSpec)
    (dy, w), (x, _) = testing.operands(spec, Op.CONV_INPUT_GRAD), testing.operands(spec, Op.CONV)
    rest = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": 2,
        "backend": backend,
    }
    dx = grad.conv2d_input(spec.input_shape, w, dy, **rest)  # type: ignore[arg-type]
    dw = grad.conv2d_weight(x, spec.weight_shape, dy, **rest)  # type: ignore[arg-type]
    np.testing.assert_array_equal(dx, plan(spec, Op.CONV_INPUT_GRAD, backend)(dy, w))
    np.testing.assert_array_equal(dw, plan(spec, Op.CONV_WEIGHT_GRAD, backend)(x, dy))
