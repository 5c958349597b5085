"""The engine's gradients: inside their operands, bit-equal for any number of threads, right where it is awkward."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import testing
from fastconv.backends import Unsupported, algorithms
from fastconv.plan import plan
from fastconv.spec import Op, parse

OPS = (Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD)

# Every edge of vectors, tiles, phases and crops.
EDGES = [
    *(f"n2 c{c}x{h}x{w} k{o}x3x3 s1 p1" for c, h, w, o in ((1, 1, 1, 1), (3, 2, 7, 9), (17, 7, 7, 8), (5, 9, 33, 24))),
    *(f"n1 c{c}x{h}x{w} k{o}x3x3 s2 p1" for c, h, w, o in ((3, 3, 3, 4), (18, 7, 15, 7), (2, 8, 16, 17), (9, 9, 47, 3))),
    *(f"n3 c{c}x1x{w} k{o}x1x1 s1 p0" for c, w, o in ((5, 17, 9), (16, 49, 16), (33, 15, 7))),
    "n2 c7x9x8 k5x1x1 s2 p0", "n1 c3x23x25 k8x11x11 s4 p2", "n1 c2x7x9 k3x2x2 s3 p0", "n2 c4x8x9 k4x3x3 s2 p1 g4",
    "n2 c4x5x9 k8x3x3 s1 p1 g4", "n3 c3x6x37 k3x3x5 s2 p2 d1x2 g3", "n2 c2x4x5x19 k4x2x3x4 s1x2x1 p1 g2", "n2 c6x6x7 k4x3x3 s2 p2 d3 g2", "n1 c2x6x6 k3x2x2 s1 p4", "n1 c2x5x6 k3x2x2 s2 p3:0",
    "n1 c3x9 k4x5 s2 p2", "n1 c2x40 k3x3 s1 p1", "n1 c3x5x6x7 k4x3x2x3 s2x1x3 p1", "n2 c3x4x4 k2x4x4 s1 p0", "n1 c1x1x3x1 k1x1x2x1 s1x2x2 p0",
    "n1 c2x4x5 k3x3x3 s2 p1 reflect", "n2 c1x3x3 k1x2x2 s1 p2 replicate", "n1 c2x2 k3x5 s2 p0:19 d5",
]  # fmt: skip


def plans(problem: str, op: Op) -> list[Any]:
    made = []
    for algorithm in algorithms("numba", op):
        try:
            made.append(plan(parse(problem), op, "numba", algorithm))
        except Unsupported:
            continue
    assert made, f"no algorithm takes {op} of {problem}"
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["ends", "begins"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "s32", "s64"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_kernels_stay_inside_their_operands(op: Op, dtype: str, at_end: bool) -> None:
    from tests.guard import Guarded

    for problem in EDGES:
        for made in plans(f"{problem} {dtype}", op):
            memory = Guarded(at_end)
            given = testing.operands(made.spec, op, "integers")
            expected = testing.reference(made.spec, op, given)
            result = memory.copy(testing.poisoned(made.spec.shapes(op)[-1]))
            made(*map(memory.copy, given), out=result)
            _, detail = testing.compare(result, expected, testing.tolerance(made, given))
            assert not detail, (made.algorithm, str(made.spec), detail)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_threads_do_not_change_a_bit(op: Op) -> None:
    problems = ("n3 c32x28x28 k40x3x3 s1 p1 f32", "n5 c64x14x14 k64x1x1 s1 p0 f32", "n3 c16x30x30 k24x3x3 s2 p1 f32",
                "n2 c32x30x30 k32x3x3 s1 p1 g32 f32", "n9 c3x32x32 k6x5x5 s1 p0 f32", "n7 c64x7x7 k64x1x1 s2 p0 f64")  # fmt: skip
    before = fc.get_num_threads()
    try:
        for problem in problems:
            for made in plans(problem, op):
                given = testing.operands(made.spec, op)
                answers = set()
                for threads in (1, 2, 3, 7):
                    fc.set_num_threads(threads)
                    answers.add(made(*given).tobytes())
                assert len(answers) == 1, (problem, made.algorithm)
    finally:
        fc.set_num_threads(before)


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize(
    "problem",
    [
        "n5 c32x30x30 k32x3x3 s1 p1 f32", "n5 c16x41x40 k24x3x3 s2 p1 f32", "n3 c8x9x11 k8x3x3 s1 p1 reflect f32",
        "n4 c8x20x20 k8x3x3 s1 p1 g8 f32", "n4 c8x20x20 k8x3x3 s2 p1 f16", "n2 c3x10x10 k4x3x3 s1 p5 f32",
    ],
)  # fmt: skip
def test_a_limit_is_kept_and_named(problem: str, op: Op) -> None:
    for free in plans(problem, op):
        given = testing.operands(free.spec, op, "integers")
        least = 0
        if free.workspace:
            with pytest.raises(Unsupported) as refused:
                plan(free.spec, op, "numba", free.algorithm, "default", 0)
            least = refused.value.workspace or 0
        tight = plan(free.spec, op, "numba", free.algorithm, "default", least)
        assert tight.workspace <= least
        error = testing.tolerance(tight, given) + testing.tolerance(free, given)
        _, detail = testing.compare(tight(*given), free(*given), error)
        assert not detail, (free.algorithm, detail)


@pytest.mark.parametrize("problem", EDGES)
def test_prepared_weights_give_the_same_gradient(problem: str) -> None:
    """A transposed convolution with its weights turned, or transformed, ahead."""
    for algorithm in algorithms("numba", Op.CONV_INPUT_GRAD):
        try:
            made = plan(parse(f"{problem} f32"), Op.CONV_INPUT_GRAD, "numba", algorithm, prepared=True)
        except Unsupported:
            continue
        testing.assert_agrees(made, "integers")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-45])
def test_special_values_reach_the_elements_they_meet(value: float, stride: int) -> None:
    """By every algorithm that may be chosen; zeros of the padding, or of no phase, meet nothing."""
    spec = parse(f"n1 c4x9x9 k4x3x3 s{stride} p1 f32")
    dy, w = testing.operands(spec, Op.CONV_INPUT_GRAD, "integers")
    dy[...] = 0
    dy[0, 1, 1, 2] = value
    w[...] = 1
    for made in plans(str(spec), Op.CONV_INPUT_GRAD):
        if made.run.finite_only or (made.run.error and np.isfinite(value)):
            continue  # a transform rounds what is as small as this
        dx = made(dy, w)
        inside = np.zeros((9, 9), bool)
        row, column = stride - 1, 2 * stride - 1
        inside[max(row, 0) : row + 3, column : column + 3] = True
        np.testing.assert_array_equal(dx[0, :, inside], np.float32(value))
        assert not dx[0, :, ~inside].any(), made.algorithm


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-45])
def test_special_values_reach_the_weights_they_meet(value: float) -> None:
    for problem in (
        "n2 c4x9x9 k4x3x3 s1 p1 f32",
        "n3 c40x5x5 k9x3x3 s2 p1 f32",
        "n1 c2x4x9 k2x3x3 s1 p0 f32",
    ):
        for made in plans(problem, Op.CONV_WEIGHT_GRAD):
            x, dy = testing.operands(made.spec, Op.CONV_WEIGHT_GRAD, "integers")
            x[...], dy[...] = 1, 0
            dy[0, 1, 1, 1] = value
            dw = made(x, dy)
            np.testing.assert_array_equal(dw[1], np.float32(value))
            assert not np.delete(dw, 1, axis=0).any()
