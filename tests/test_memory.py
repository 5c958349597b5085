"""What plans predict is what they take, and no plan takes more than its limit."""

from __future__ import annotations

import importlib.util
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import testing
from fastconv.backends import Unsupported
from fastconv.compare.memory import Request, peaks
from fastconv.compare.workloads import default, with_gradients
from fastconv.plan import Plan, plan
from fastconv.spec import Op, Spec, parse

# Small Python objects (index tuples, iterators) that come and go beside the arrays, measured: up to 20 KB.
OBJECTS = 64 << 10

needs_memray = pytest.mark.skipif(
    importlib.util.find_spec("memray") is None,
    reason="memray is not installed (it has no build for this system)",
)


def taken(plans: Sequence[Plan], threads: int) -> Iterator[tuple[str, int, int]]:
    """Each plan in words, what it predicts for so many threads, and what it takes."""
    before = fc.get_num_threads()
    fc.set_num_threads(threads)
    try:
        predicted = [made.workspace for made in plans]
    finally:
        fc.set_num_threads(before)
    requests = [
        Request(str(made.spec), made.op.value, made.backend, made.algorithm, None, threads) for made in plans
    ]
    for made, expected, peak in zip(plans, predicted, peaks(requests), strict=True):
        assert peak is not None
        yield (
            f"{made.algorithm} {made.op} of {made.spec}: predicted {expected}, measured {peak}",
            expected,
            peak,
        )


@needs_memray
@pytest.mark.parametrize("threads", [1, 2])
def test_prediction_and_measurement_agree_within_a_tenth(threads: int) -> None:
    """For every im2col row of the default report, forward and backward, for unpools and long lines.

    Left out is the gradient by columns of 31 x 31, 7 s a call. Two threads, with the quicker half of the plans, take no
    more than predicted, and less where others keep the machine so busy that they never meet at their largest.
    """
    spec = parse("max n4 c64x128x128 k2x2 indices f32")
    plans = [plan(spec, op, "im2col") for op in (Op.UNPOOL, Op.UNPOOL_INPUT_GRAD)]
    lines = ("n1 c16x20000 k16x9 s1 p4 f32", "n1 c16x20000 k16x9 s1 p4 f64", "n1 c2x99999 k3x301 s1 f32")
    plans += [plan(parse(text), Op.CONV, "im2col", "fft") for text in lines]
    for case in with_gradients(default()):
        found = (made for made in testing.plans(case.spec, case.op, "im2col") if isinstance(made, Plan))
        plans += [
            made for made in found if not (made.algorithm == "col2im" and made.spec.kernel_size == (31, 31))
        ]
    least = 0.9
    if threads == 2:
        least, plans = 0, [made for made in plans if made.run.seconds < 0.03]
    wrong = [text for text, expected, peak in taken(plans, threads) if not least <= peak / expected <= 1.1]
    assert not wrong, "\n".join(wrong)


# Every kind of scratch numba's plans have: padded rows, a transform's tiles, phases of a stride, copies of other types.
COMPILED = [
    "n1 c64x224x224 k64x3x3 s1 p1 f32",
    "n1 c64x112x112 k64x5x5 s1 p2 f32",
    "n1 c64x112x112 k128x3x3 s2 p1 f32",
    "n4 c64x56x56 k64x3x3 s1 p1 f16",
    "n2 c32x56x56 k64x3x3 s1 p1 s8",
    "n2 c32x56x56 k32x3x3 s1 p1 f64",
    "n1 c64x56x56 k64x3x3 s1 p1 reflect f32",
    "n1 c64x56x56 k64x3x3 s1 p1 g64 f32",
    "max n8 c64x56x56 k3x3 s2 p1 indices f32",
    "max n8 c64x56x56 k3x3 s2 p1 f16",
    "max n8 c64x56x56 o7x7 bf16",
]
# And what its gradients of pools, and columns, have.
COMPILED_BACK = [
    ("max n8 c64x56x56 k3x3 s2 p1 indices f32", Op.POOL_INPUT_GRAD),
    ("max n8 c64x56x56 k3x3 s2 p1 f32", Op.POOL_INPUT_GRAD),
    ("max n8 c64x56x56 k3x3 s2 p1 indices f16", Op.POOL_INPUT_GRAD),
    ("avg n8 c64x56x56 k3x3 s2 p1 f32", Op.POOL_INPUT_GRAD),
    ("avg n8 c64x56x56 k3x3 s2 p1 f16", Op.POOL_INPUT_GRAD),
    ("lp3 n8 c64x56x56 k3x3 s2 p0 f32", Op.POOL_INPUT_GRAD),
    ("max n8 c64x56x56 k2x2 indices f32", Op.UNPOOL),
    ("max n8 c64x56x56 k2x2 indices f32", Op.UNPOOL_INPUT_GRAD),
    ("n2 c16x56x56 k4x3x3 s1 p1 f32", Op.UNFOLD),
    ("n2 c16x56x56 k4x3x3 s1 p1 f32", Op.FOLD),
    ("n2 c16x56x56 k4x3x3 s1 p1 f16", Op.FOLD),
    ("n1 c1x200x200 k1x15x15 s1 p7 bf16", Op.FOLD),
]


@needs_memray
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_plans_take_what_they_predict(threads: int) -> None:
    """Within a tenth, and the counters and index tuples of a call, 1 KB at most."""
    plans = []
    forward = [(spec, spec.ops[0]) for spec in map(parse, COMPILED)]
    for spec, op in [*forward, *((parse(text), op) for text, op in COMPILED_BACK)]:
        found = (made for made in testing.plans(spec, op, "numba") if isinstance(made, Plan))
        plans += [made for made in found if made.algorithm != "fft"]  # im2col's, and measured there
    rows = list(taken(plans, threads))
    wrong = [text for text, expected, peak in rows if abs(peak - expected) > 0.1 * expected + 1024]
    assert not wrong, "\n".join(wrong)
    assert max(expected for _, expected, _ in rows) > 1 << 22


@needs_memray
def test_vgg16_conv1_2_runs_under_16_megabytes() -> None:
    """The textbook needs 115.6 MB of columns; the plan keeps to its limit and gives the same numbers."""
    problem, limit = "n1 c64x224x224 k64x3x3 s1 p1 f32", 16 << 20
    made = plan(parse(problem), Op.CONV, "im2col", "auto", "default", limit)
    (peak,) = peaks([Request(problem, "conv", "im2col", "auto", limit)])
    assert peak is not None
    assert peak <= limit
    assert made.workspace <= limit
    operands = testing.operands(made.spec, Op.CONV, "integers")
    textbook = plan(made.spec, Op.CONV, "im2col", "im2col", "highest")
    np.testing.assert_array_equal(made(*operands), textbook(*operands))
    x, w = testing.operands(made.spec, Op.CONV, "normal")
    expected = testing.reference(made.spec, Op.CONV, (x, w), backend="im2col")
    _, detail = testing.compare(made(x, w), expected, testing.tolerance(made, (x, w)))
    assert not detail


def array_peak(made: Plan, operands: tuple[Any, ...]) -> int:
    """Most bytes of NumPy arrays alive at once while `made` runs, its results apart."""
    made(*operands)
    outs = tuple(testing.poisoned(shape) for shape in made.spec.shapes(made.op)[len(operands) :])
    peaks = []
    for _ in range(2):  # the smaller counts: other threads of the process, compilers among them, only add
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            made(*operands, out=outs if len(outs) == 2 else outs[0])
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()
    return min(peaks)


PROBLEMS = [
    "n2 c8x14x13 k6x3x3 s1 p1 f32",
    "n4 c3x15x13 k4x5x5 s2 p2 f32",
    "n3 c8x13x11 k8x3x3 s1 p1 g8 f32",
    "n2 c4x14x14 k4x3x3 s1 p2 reflect f32",
    "n2 c4x14x14 k4x3x3 s1 p1 f16",
    "n1 c4x200 k4x9 s1 p4 f32",
    "n1 c3x7x8x6 k4x3x3x3 s1 p1 f32",
    "n1 c2x12x12 k2x9x9 s1 p4 f32",
    "n2 c4x14x14 k4x3x3 s1 p1 s8",
    "max n2 c8x40x40 k3x3 s2 p1 f32",
    "max n2 c8x40x40 k3x3 s2 p1 indices f32",
    "avg n2 c8x40x40 k3x3 s2 p1 f16",
    "lp3 n2 c8x40x40 k3x3 s2 p0 f32",
    "avg n2 c8x40x40 o7x7 f32",
    "max n2 c8x40x40 o7x7 indices f32",
    "max n3 c40x40x40 k2x2 indices f64",
]


def least_limit(spec: Spec, op: Op, algorithm: str) -> int:
    """The smallest limit the refusal of an impossible one names; 0 if nothing was refused."""
    try:
        plan(spec, op, "im2col", algorithm, "default", 0)
    except Unsupported as refusal:
        return refusal.workspace or 0
    return 0


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_plan_takes_more_than_its_limit(problem: str) -> None:
    spec = parse(problem)
    for op in spec.ops:
        operands = testing.operands(spec, op)
        for free in testing.plans(spec, op, "im2col"):
            if isinstance(free, Unsupported):
                continue
            least = least_limit(spec, op, free.algorithm)
            for limit in (least, 2 * least + 1, free.workspace // 3 + least, free.workspace + least):
                made = plan(spec, op, "im2col", free.algorithm, "default", limit)
                assert made.workspace <= limit
                assert array_peak(made, operands) <= limit + OBJECTS, f"{made.algorithm} {op} under {limit}"


def test_copies_of_odd_operands_count_under_the_limit() -> None:
    """Another type or byte order is copied before a kernel can read it; the limit holds all the same."""
    x = np.ones((2, 8, 20, 20), ">f4")
    w = np.ones((8, 8, 3, 3), "f4")
    with pytest.raises(
        Unsupported, match=r"workspace_limit: got 1000, expected at least \d+ bytes, 25600 of them"
    ) as caught:
        fc.conv2d(x, w, backend="im2col", workspace_limit=1000)
    least = caught.value.workspace
    assert least is not None
    result = np.empty((2, 8, 18, 18), "f4")
    fc.conv2d(x, w, backend="im2col", workspace_limit=least, out=result)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fc.conv2d(x, w, backend="im2col", workspace_limit=least, out=result)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= least + OBJECTS
    assert (result == 72).all()


@pytest.mark.parametrize("problem", ["max n4 c8x40x40 k2x2 s2 p0 f32", "avg n4 c8x40x40 k3x3 s2 p1 f32"])
def test_pools_read_channels_last_in_place(problem: str) -> None:
    """No whole-array copy where batch and channels are not one axis in memory."""
    spec = parse(problem)
    (x,) = testing.operands(spec, Op.POOL)
    made = plan(spec, Op.POOL, "im2col", "taps")
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    np.testing.assert_array_equal(made(last), made(x))
    assert array_peak(made, (last,)) <= made.workspace + OBJECTS < x.nbytes
