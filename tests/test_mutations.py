"""The checks can fail: kernels broken in one place each are caught by the comparison with the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastconv.plan import Plan, plan
from fastconv.spec import ConvSpec, Op, PoolSpec, Spec, parse
from fastconv.testing import check_plan

CONV = "n2 c4x7x8 k4x3x3 s2x1 p1x2 d1 f32"


def computed_as(made: Plan, spec: Spec) -> Plan:
    """`made`, but its kernel works on another spec of the same shapes."""
    other = plan(spec, made.op, made.backend, made.algorithm)
    assert [s.shape for s in spec.shapes(made.op)] == [s.shape for s in made.spec.shapes(made.op)]
    return replace(made, run=replace(made.run, call=other.run.call))


def with_operands(made: Plan, change: Callable[..., tuple[Any, ...]]) -> Plan:
    """`made`, but its kernel sees changed operands."""
    return replace(made, run=replace(made.run, call=lambda *arrays: made.run.call(*change(*arrays))))


def after(made: Plan, change: Callable[[Any], None]) -> Plan:
    """`made`, but its result is changed afterwards."""

    def call(*arrays: Any) -> None:
        made.run.call(*arrays)
        change(arrays[-1])

    return replace(made, run=replace(made.run, call=call))


def conv(problem: str, op: Op = Op.CONV, **fields: Any) -> Plan:
    made = plan(parse(problem), op, "im2col", "auto", "highest")
    return computed_as(made, replace(made.spec, **fields)) if fields else made


def pool(problem: str, op: Op = Op.POOL, **fields: Any) -> Plan:
    made = plan(parse(problem), op, "im2col", "taps")
    return computed_as(made, replace(made.spec, **fields)) if fields else made


def one_ulp(y: Any) -> None:
    at = np.unravel_index(np.argmax(np.abs(y)), y.shape)
    y[at] = np.nextafter(y[at], np.inf, dtype=y.dtype)


def last_tie(x: Any, y: Any, indices: Any) -> tuple[Any, ...]:
    return x[..., ::-1], y, indices


def swapped_stride() -> Plan:
    """Rows and columns change places, and the result is turned back."""
    made = plan(parse("n1 c2x8x8 k3x2x2 s1x2 p0 f32"), Op.CONV, "im2col", "im2col")
    other = plan(parse("n1 c2x8x8 k3x2x2 s2x1 p0 f32"), Op.CONV, "im2col", "im2col")

    def call(x: Any, w: Any, bias: Any, y: Any) -> None:
        wrong = np.empty((1, 3, 4, 7), y.dtype)
        other.run.call(x, w, bias, wrong)
        y[...] = wrong.swapaxes(2, 3)

    return replace(made, run=replace(made.run, call=call))


SAME = "n2 c4x7x7 k4x3x3 s1 p1 f32"
MUTATIONS: dict[str, Callable[[], Plan]] = {
    "a tap off by one": lambda: with_operands(conv(SAME), lambda x, w, b, y: (x, np.roll(w, 1, -1), b, y)),
    "a swapped stride": swapped_stride,
    "a padding off by one": lambda: conv("n2 c4x7x7 k4x3x3 s1 p0:2x1 f32", padding=((1, 1), (1, 1))),
    "a dilation forgotten": lambda: conv(
        "n2 c4x7x7 k4x3x3 s1 p2 d2 f32", dilation=(1, 1), padding=((1, 1), (1, 1))
    ),
    "a flipped kernel": lambda: with_operands(conv(SAME), lambda x, w, b, y: (x, w[..., ::-1], b, y)),
    "a transposed kernel": lambda: with_operands(
        conv(SAME), lambda x, w, b, y: (x, w.reshape(4, 4, 3, 3).swapaxes(2, 3).reshape(w.shape), b, y)
    ),
    "groups mixed up": lambda: with_operands(
        conv("n2 c4x7x7 k4x3x3 s1 p1 g2 f32"), lambda x, w, b, y: (x[:, ::-1], w, b, y)
    ),
    "another padding mode": lambda: conv("n1 c2x5x6 k3x3x3 s1 p2 reflect f32", padding_mode="symmetric"),
    "a bias left out": lambda: with_operands(conv(SAME), lambda x, w, b, y: (x, w, None, y)),
    "images swapped": lambda: with_operands(conv(SAME), lambda x, w, b, y: (x[::-1], w, b, y)),
    "one ulp": lambda: after(conv(SAME), one_ulp),
    "an element left unwritten": lambda: after(conv(SAME), lambda y: y.__setitem__((0, 0, 0, 0), np.nan)),
    "input gradient by the unturned kernel": lambda: with_operands(
        conv(SAME, Op.CONV_INPUT_GRAD), lambda dy, w, b, dx: (dy, w[..., ::-1], b, dx)
    ),
    "weight gradient of shifted rows": lambda: with_operands(
        conv(SAME, Op.CONV_WEIGHT_GRAD), lambda x, dy, dw: (np.roll(x, 1, 2), dy, dw)
    ),
    "a wrong divisor": lambda: pool("avg n1 c2x7x8 k3x3 s2 p1 f32", count_include_pad=False),
    "a divisor override ignored": lambda: pool("avg n1 c2x7x8 k3x2 s2 p1 divisor5 f32", divisor_override=0),
    "ceil mode's divisor": lambda: pool("avg n1 c1x4x4 k3x3 s2 p1 ceil f32", divisor_override=9),
    "ties take the last": lambda: with_operands(pool("max n1 c2x6x6 k2x2 s2 p0 indices f32"), last_tie),
    "padding as zero in max": lambda: with_operands(
        pool("max n4 c8x6x6 k1x2 s1x2 p0 indices f32"), lambda x, y, i: (np.maximum(x, 0), y, i)
    ),
    "max gradient spread": lambda: after(
        pool("max n1 c2x6x6 k2x2 s2 p0 f32", Op.POOL_INPUT_GRAD), lambda dx: dx.__imul__(0.5)
    ),
    "another norm": lambda: pool("lp3 n1 c2x7x8 k3x3 s2 p0 f32", norm_type=2.0),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_is_caught(name: str) -> None:
    assert not check_plan(MUTATIONS[name](), "integers").ok


@pytest.mark.parametrize(
    "problem", [CONV, SAME, "avg n1 c2x7x8 k3x3 s2 p1 f32", "max n1 c2x6x6 k2x2 s2 p0 indices f32"]
)
def test_the_unbroken_pass(problem: str) -> None:
    spec = parse(problem)
    assert isinstance(spec, ConvSpec | PoolSpec)
    for op in spec.ops:
        assert check_plan(plan(spec, op, "im2col"), "integers").ok
