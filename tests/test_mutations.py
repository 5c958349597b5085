"""The checks can fail: kernels broken in one place each are caught by the comparison with the definition.

Each mutation breaks a real plan of every backend: its kernel computes another spec of the same shapes, sees changed
operands, or has its result changed. The same check passes on the plan it was made from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastconv.backends import backends, owner
from fastconv.plan import Plan, plan
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees, check_plan

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]

Change = Callable[[Plan], Plan]


def on_spec(**fields: Any) -> Change:
    """The kernel works on another spec of the same shapes."""

    def change(made: Plan) -> Plan:
        spec = replace(made.spec, **fields)
        assert spec != made.spec
        assert [s.shape for s in spec.shapes(made.op)] == [s.shape for s in made.spec.shapes(made.op)]
        return replace(made, run=plan(spec, made.op, made.backend, "auto", "highest").run)

    return change


def on_operands(change: Callable[..., tuple[Any, ...]]) -> Change:
    """The kernel sees other operands; results stand last among its arguments."""
    return lambda made: replace(
        made, run=replace(made.run, call=lambda *arrays: made.run.call(*change(*arrays)))
    )


def on_weight(change: Callable[[Any], Any]) -> Change:
    """The kernel packs another weight."""
    return lambda made: replace(
        made, run=replace(made.run, pack=lambda w: made.pack(np.ascontiguousarray(change(w))))
    )


def on_result(change: Callable[[Any], None], which: int = -1) -> Change:
    """The kernel's result is changed afterwards."""

    def broken(made: Plan) -> Plan:
        def call(*arrays: Any) -> None:
            made.run.call(*arrays)
            change(arrays[which])

        return replace(made, run=replace(made.run, call=call))

    return broken


def set_to(at: Any, value: Any) -> Callable[[Any], None]:
    return lambda y: y.__setitem__(at, value)


def one_ulp(y: Any) -> None:
    """The largest element moves to its neighbour."""
    at = np.unravel_index(np.argmax(np.abs(y)), y.shape)
    y[at] = np.nextafter(y[at], np.inf, dtype=y.dtype)


def shortened(bits: int) -> Callable[[Any], Any]:
    """float32 numbers with so many bits of mantissa."""
    return lambda a: (a.view("u4") & np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)).view("f4")


def smaller(change: Callable[[Any], Any], **fields: Any) -> Change:
    """The kernel computes another spec, whose result has another shape, and `change` makes it fit."""

    def broken(made: Plan) -> Plan:
        other = plan(replace(made.spec, **fields), made.op, made.backend, "auto", "highest")

        def call(*arrays: Any) -> None:
            wrong = np.empty(other.spec.shapes(other.op)[-1].shape, arrays[-1].dtype)
            other.run.call(*arrays[:-1], wrong)
            part = change(wrong)
            arrays[-1][tuple(map(slice, part.shape))] = part

        return replace(made, run=replace(made.run, call=call, pack=other.run.pack))

    return broken


def writes_to_its_input(made: Plan) -> Plan:
    def call(*arrays: Any) -> None:
        made.run.call(*arrays)
        arrays[0].flat[0] += 1

    return replace(made, run=replace(made.run, call=call))


def flat_of_everything(indices: Any) -> None:
    """ONNX's indices, which count through batch and channels."""
    planes = indices.reshape(-1, indices[0, 0].size)
    planes += 42 * np.arange(len(planes))[:, None]


def turned(w: Any) -> Any:
    return w[..., ::-1, ::-1]


def with_last_ties(x: Any, y: Any, indices: Any) -> tuple[Any, ...]:
    """A kernel that meets the elements from the back, and counts them from there."""
    return x[..., ::-1, ::-1], y, indices


def last_ties(made: Plan) -> Plan:
    height, width = made.spec.in_size
    flipped = on_operands(with_last_ties)(made)

    def call(x: Any, y: Any, indices: Any) -> None:
        flipped.run.call(x, y, indices)
        y[...] = y[..., ::-1, ::-1].copy()
        indices[...] = height * width - 1 - indices[..., ::-1, ::-1].copy()

    return replace(made, run=replace(made.run, call=call))


def scaled(factor: float) -> Change:
    return on_result(lambda y: y.__imul__(np.float32(factor)))


def summed_in_bfloat16(made: Plan) -> Plan:
    """Four channels at a time, by sums cut to bfloat16's bits."""

    def call(x: Any, w: Any, bias: Any, y: Any) -> None:
        y[...], part = 0, np.empty_like(y)
        for channels in np.arange(x.shape[1]).reshape(-1, 4):
            some = np.zeros_like(x)
            some[:, channels] = x[:, channels]
            made.run.call(some, w, bias if channels[0] == 0 else None, part)
            y[...] = shortened(7)(y + part)

    return replace(made, run=replace(made.run, call=call))


def slightly_larger(w: Any) -> Any:
    """One of its taps, by 2**-12."""
    w = w.copy()
    w[..., 0, 0] *= np.float32(1 + 2.0**-12)
    return w


class Mutation(NamedTuple):
    """One way to be wrong."""

    name: str
    problem: str
    op: Op
    change: Change
    kind: str = "integers"


CONV = "n2 c4x7x7 k4x3x3 s1 p1 f32"
LONG = "n1 c256x5x5 k2x3x3 s1 p1 f32"
MAX = "max n2 c2x6x7 k2x2 s2x1 p0 indices f32"
AVG = "avg n1 c2x7x8 k3x3 s2 p1 f32"

MUTATIONS = [
    # forward
    Mutation("a tap off by one", CONV, Op.CONV, on_weight(lambda w: np.roll(w, 1, -1))),
    Mutation("a swapped stride", "n1 c2x8x8 k3x2x2 s1x2 p0 f32", Op.CONV, smaller(lambda y: y.swapaxes(2, 3), stride=(2, 1))),
    Mutation("a padding off by one", "n2 c4x7x7 k4x3x3 s1 p0:2x1 f32", Op.CONV, on_spec(padding=((1, 1), (1, 1)))),
    Mutation("a padding forgotten", CONV, Op.CONV, smaller(lambda y: y, padding=((0, 0), (0, 0)))),
    Mutation("a dilation forgotten", "n2 c4x7x7 k4x3x3 s1 p2 d2 f32", Op.CONV, on_spec(dilation=(1, 1), padding=((1, 1), (1, 1)))),
    Mutation("a flipped kernel", CONV, Op.CONV, on_weight(turned)),
    Mutation("a transposed kernel", CONV, Op.CONV, on_weight(lambda w: w.swapaxes(2, 3))),
    Mutation("channels in and out mixed up", CONV, Op.CONV, on_weight(lambda w: w.swapaxes(0, 1))),
    Mutation("groups in another order", "n2 c4x7x7 k4x3x3 s1 p1 g2 f32", Op.CONV, on_weight(lambda w: w[::-1])),
    Mutation("groups forgotten", "n1 c4x5x5 k4x1x1 s1 p0 g4 f32", Op.CONV, on_operands(lambda x, w, b, y: (x.sum(1, keepdims=True) + 0 * x, w, b, y))),
    Mutation("another padding mode", "n1 c2x5x6 k3x3x3 s1 p2 reflect f32", Op.CONV, on_spec(padding_mode="symmetric")),
    Mutation("zeros for edges", "n1 c2x5x6 k3x3x3 s1 p2 replicate f32", Op.CONV, on_spec(padding_mode="zeros")),
    Mutation("one channel fewer", CONV, Op.CONV, on_operands(lambda x, w, b, y: (x * (np.arange(4) < 3).reshape(1, 4, 1, 1).astype("f4"), w, b, y))),
    Mutation("a bias left out", CONV, Op.CONV, on_operands(lambda x, w, b, y: (x, w, None, y))),
    Mutation("a bias twice", CONV, Op.CONV, on_operands(lambda x, w, b, y: (x, w, 2 * b, y))),
    Mutation("a neighbour's bias", CONV, Op.CONV, on_operands(lambda x, w, b, y: (x, w, np.roll(b, 1), y))),
    Mutation("images swapped", CONV, Op.CONV, on_operands(lambda x, w, b, y: (x[::-1].copy(), w, b, y))),
    Mutation("one ulp", CONV, Op.CONV, on_result(one_ulp)),
    Mutation("an element left unwritten", CONV, Op.CONV, on_result(set_to((0, 0, 0, 0), np.nan))),
    Mutation("a last row left unwritten", CONV, Op.CONV, on_result(set_to((..., -1, slice(None)), np.nan))),
    Mutation("an operand written to", CONV, Op.CONV, writes_to_its_input),
    Mutation("one of an integer's bits", "n1 c3x6x7 k4x3x3 s1 p1 s8", Op.CONV, on_result(lambda y: y.__ixor__(1))),
    Mutation("operands of ten bits", CONV, Op.CONV, on_operands(lambda x, w, b, y: (shortened(10)(x), w, b, y)), "normal"),
    Mutation("weights of ten bits", CONV, Op.CONV, on_weight(shortened(10)), "normal"),
    Mutation("a result of half precision", CONV, Op.CONV, on_result(lambda y: y.__setitem__(..., y.astype("f2"))), "normal"),
    Mutation("a result scaled by 1.00012", CONV, Op.CONV, scaled(1.00012), "normal"),
    Mutation("a result scaled by 1.00003", CONV, Op.CONV, scaled(1.00003), "normal"),
    Mutation("a tap 2**-12 too large", CONV, Op.CONV, on_weight(slightly_larger), "normal"),
    Mutation("long sums in bfloat16", LONG, Op.CONV, summed_in_bfloat16, "normal"),
    Mutation("a tap off by one in one dimension", "n1 c3x17 k4x5 s2 p2 f32", Op.CONV, on_weight(lambda w: np.roll(w, 1, -1))),
    Mutation("planes for rows in three dimensions", "n1 c2x4x4x4 k3x3x3x3 s1 p1 f32", Op.CONV, on_weight(lambda w: w.swapaxes(2, 3))),
    # gradients
    Mutation("input gradient by the turned kernel", CONV, Op.CONV_INPUT_GRAD, on_weight(turned)),
    Mutation("input gradient of shifted rows", CONV, Op.CONV_INPUT_GRAD, on_operands(lambda dy, w, b, dx: (np.roll(dy, 1, 2), w, b, dx))),
    Mutation("input gradient that leaves the padding out", "n1 c2x5x6 k3x3x3 s1 p2 replicate f32", Op.CONV_INPUT_GRAD, on_spec(padding_mode="zeros")),
    Mutation("input gradient, padding off by one", "n2 c4x7x7 k4x3x3 s1 p0:2x1 f32", Op.CONV_INPUT_GRAD, on_spec(padding=((1, 1), (1, 1)))),
    Mutation("input gradient scaled by 1.00003", CONV, Op.CONV_INPUT_GRAD, scaled(1.00003), "normal"),
    Mutation("input gradient one ulp off", CONV, Op.CONV_INPUT_GRAD, on_result(one_ulp)),
    Mutation("weight gradient of shifted rows", CONV, Op.CONV_WEIGHT_GRAD, on_operands(lambda x, dy, dw: (np.roll(x, 1, 2), dy, dw))),
    Mutation("weight gradient, images swapped", CONV, Op.CONV_WEIGHT_GRAD, on_operands(lambda x, dy, dw: (x[::-1].copy(), dy, dw))),
    Mutation("weight gradient of the first image", CONV, Op.CONV_WEIGHT_GRAD, on_operands(lambda x, dy, dw: (x * np.array([1, 0], "f4").reshape(2, 1, 1, 1), dy, dw))),
    Mutation("weight gradient turned", CONV, Op.CONV_WEIGHT_GRAD, on_result(lambda dw: dw.__setitem__(..., turned(dw).copy()))),
    Mutation("weight gradient scaled by 1.00012", CONV, Op.CONV_WEIGHT_GRAD, scaled(1.00012), "normal"),
    Mutation("weight gradient one ulp off", CONV, Op.CONV_WEIGHT_GRAD, on_result(one_ulp)),
    # columns
    Mutation("taps before channels", CONV, Op.UNFOLD, on_result(lambda c: c.__setitem__(..., c.reshape(2, 4, 9, -1).swapaxes(1, 2).reshape(c.shape)))),
    Mutation("columns of a padding off by one", "n2 c4x7x7 k4x3x3 s1 p0:2x1 f32", Op.UNFOLD, on_spec(padding=((1, 1), (1, 1)))),
    Mutation("columns written over, not summed", "n1 c1x4x4 k1x2x2 s1 p0 f32", Op.FOLD, on_operands(lambda c, x: (c * (np.arange(9) % 2).astype("f4"), x))),
    Mutation("an image one ulp off", CONV, Op.FOLD, on_result(one_ulp)),
    # pools
    Mutation("padding in a divisor", AVG, Op.POOL, on_spec(count_include_pad=False)),
    Mutation("a divisor override ignored", "avg n1 c2x7x8 k3x2 s2 p1 divisor5 f32", Op.POOL, on_spec(divisor_override=0)),
    Mutation("ceil mode's divisor", "avg n1 c1x4x4 k3x3 s2 p1 ceil f32", Op.POOL, on_spec(divisor_override=9)),
    Mutation("ceil mode off", "avg n1 c1x4x4 k3x3 s2 p1 ceil f32", Op.POOL, smaller(lambda y: y, ceil_mode=False)),
    Mutation("a pool's padding off by one", "avg n1 c2x7x8 k3x3 s2 p0:1x1 f32", Op.POOL, on_spec(padding=((1, 0), (1, 1)))),
    Mutation("an average scaled by 1.000004", AVG, Op.POOL, scaled(1.000004), "normal"),
    Mutation("adaptive bins of one size", "avg n1 c2x7x5 o3x2 f32", Op.POOL, on_spec(output_size=(), kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1))),
    Mutation("ties take the last", MAX, Op.POOL, last_ties),
    Mutation("an index off by one", MAX, Op.POOL, on_result(lambda i: i.__iadd__(1))),
    Mutation("indices through all planes", MAX, Op.POOL, on_result(flat_of_everything)),
    Mutation("zero beneath every maximum", "max n4 c8x6x6 k1x2 s1x2 p0 indices f32", Op.POOL, on_operands(lambda x, y, i: (np.maximum(x, 0), y, i))),
    Mutation("a window one element short", "max n2 c2x6x7 k1x2 s1 p0 f32", Op.POOL, on_operands(lambda x, y: (np.where(np.arange(7) < 6, x, -np.inf).astype("f4"), y))),
    Mutation("another norm", "lp3 n1 c2x7x8 k3x3 s2 p0 f32", Op.POOL, on_spec(norm_type=2.0)),
    Mutation("a norm without its absolute value", "lp3 n1 c2x7x8 k2x2 s2 p0 f32", Op.POOL, on_operands(lambda x, y: (np.maximum(x, 0), y))),
    # their gradients
    Mutation("a maximum's gradient halved", MAX, Op.POOL_INPUT_GRAD, on_result(lambda dx: dx.__imul__(0.5))),
    Mutation("a maximum's gradient one place on", MAX, Op.POOL_INPUT_GRAD, on_result(lambda dx: dx.__setitem__(..., np.roll(dx, 1, -1)))),
    Mutation("gradient to the last of ties", "max n2 c2x6x7 k2x2 s2x1 p0 f32", Op.POOL_INPUT_GRAD, on_operands(lambda dy, x, dx: (dy, x + np.arange(7, dtype="f4") / 64, dx))),
    Mutation("an average's gradient by another divisor", AVG, Op.POOL_INPUT_GRAD, on_spec(count_include_pad=False)),
    Mutation("an average's gradient scaled by 1.000004", AVG, Op.POOL_INPUT_GRAD, scaled(1.000004), "normal"),
    Mutation("a norm's gradient without its sign", "lp3 n1 c2x7x8 k3x3 s2 p0 f32", Op.POOL_INPUT_GRAD, on_operands(lambda dy, x, dx: (dy, np.abs(x), dx))),
    # unpooling
    Mutation("an unpool's places one on", MAX, Op.UNPOOL, on_operands(lambda y, i, x: (y, (i + 1) % 42, x))),
    Mutation("an unpool that does not clear", MAX, Op.UNPOOL, on_result(lambda x: x.__setitem__(x == 0, np.nan))),
    Mutation("an unpool's gradient from the next place", MAX, Op.UNPOOL_INPUT_GRAD, on_operands(lambda dx, i, dy: (dx, (i + 1) % 42, dy))),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_caught(mutation: Mutation, backend: str) -> None:
    made = plan(parse(mutation.problem), mutation.op, backend, "auto", "highest")
    assert_agrees(made, mutation.kind)
    agreement = check_plan(mutation.change(made), mutation.kind)
    assert not agreement.ok
    assert agreement.detail


def test_every_op_is_broken_somewhere() -> None:
    assert {mutation.op for mutation in MUTATIONS} == set(Op)
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
