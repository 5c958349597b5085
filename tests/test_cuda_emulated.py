"""The CuPy engine's planners and kernels agree with the definition, run on the CPU (see tests/emulator)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastconv.arguments import IN_C_ORDER
from fastconv.backends import _BACKENDS, Unsupported, _Row, algorithms
from fastconv.plan import Plan, plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Op, Shape, parse
from fastconv.testing import assert_agrees, compare, operands, reference, tolerance
from tests import emulator
from tests.emulator import cudnn

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend "emulated" for NumPy arrays: the CuPy engine's planners, and the emulation instead of CuPy."""
    monkeypatch.setitem(sys.modules, "emulated_cupy", emulator.backend())
    monkeypatch.setitem(_BACKENDS, "emulated", _Row("emulated_cupy", "numpy"))
    plan.cache_clear()
    with cudnn.installed():
        yield
    plan.cache_clear()


@pytest.mark.parametrize("problem", PROBLEMS["edges"])
def test_agrees_with_the_definition(problem: str) -> None:
    spec = parse(problem)
    for op in spec.ops:
        for algorithm in algorithms("emulated", op):
            try:
                made = plan(spec, op, "emulated", algorithm)
            except Unsupported:
                continue
            for kind in ("integers", "normal"):
                assert_agrees(made, kind)


def test_every_op_has_an_algorithm() -> None:
    assert all(algorithms("emulated", op) for op in Op)


def taken(problem: str, op: Op, limit: int | None = None) -> Iterator[Plan]:
    """A plan for each algorithm that takes the problem."""
    agreed = 0
    for algorithm in algorithms("emulated", op):
        with contextlib.suppress(Unsupported):
            yield plan(parse(problem), op, "emulated", algorithm, workspace_limit=limit)
            agreed += 1
    assert agreed, f"nothing takes {op} of {problem}"


@pytest.mark.parametrize("order", ["channels last", "reversed", "every second", "off by one"])
@pytest.mark.parametrize(
    "problem",
    [
        "n2 c5x6x7 k4x3x2 s2x1 p1 f32",
        "n1 c4x5x6 k4x3x3 s1 p2 d2 g2 reflect f16",
        "n1 c4x7x6 k8x3x3 s1 p1 g4 f32",
        "n1 c3x5x4x3 k2x2x2x2 s1 p1 f32",
        "max n1 c3x7x6 k3x3 s2 p1 indices f32",
        "max n1 c3x7x6 k3x3 s2 p1 indices f16",
        "n1 c4x7x6 k8x3x3 s1 p1 g4 f16",
        "n2 c2x6x8 k2x3x3 s1 p1 g2 f32",
        "n1 c2x9x16 k2x3x3 s2 p1 g2 bf16",
        "n2 c2x9x12 k2x5x7 s1 p3 g2 f64",
        "avg n2 c3x7x6 k2x3 s1 p0 f32",
    ],
)
def test_images_lie_in_memory_as_they_like(problem: str, order: str) -> None:
    spec = parse(problem)
    for op in spec.ops:
        for made in taken(problem, op):
            operands_given = operands(spec, op)
            moved = [
                lay(array, order) if shape.name not in IN_C_ORDER or moves(shape, order) else array
                for array, shape in zip(operands_given, spec.shapes(op), strict=False)
            ]
            result, expected = made(*moved), reference(spec, op, operands_given)
            if not isinstance(result, tuple):
                result, expected = (result,), (expected,)
            for one, other in zip(result, expected, strict=True):
                error, detail = compare(one, other, tolerance(made, operands_given))
                assert not detail, f"{op} by {made.algorithm} is off by {error}: {detail}"


@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD])
def test_a_result_begins_where_it_likes(op: Op) -> None:
    """Written number by number where it begins no line of 16 bytes."""
    spec = parse("n2 c2x6x8 k2x3x3 s1 p1 g2 f32")
    given, shape = operands(spec, op), spec.shapes(op)[-1].shape
    for made in taken(str(spec), op):
        result = lay(np.full(shape, np.nan, "f4"), "off by one")
        made.run.call(*given, None, result)
        _, detail = compare(result, reference(spec, op, given), tolerance(made, given))
        assert not detail, f"{op} by {made.algorithm}: {detail}"


@pytest.mark.parametrize("order", ["C", "channels last"])
@pytest.mark.parametrize(
    "problem",
    [
        "max n2 c35x19x7 k3x3 s2 p1 ceil indices f32",  # strips of 8 and tiles of 32 channels, neither whole
        "max n1 c33x9x37 k2x2 s2 p1 indices f64",
        "max n1 c32x18x5 k5x4 s3 p2x1 f16",
        "max n1 c3x14x5 k1x2 s3x2 p0 indices f32",  # elements that no window holds
        "max n1 c2x7x5 k3x3 s4 p1 indices f32",
        "avg n1 c34x17x6 k3x3 s1 p1 f32",
        "avg n1 c33x11x6 k3x2 s2x1 p1 ceil exclude_pad bf16",
        "avg n1 c2x12x12 o4x3 f32",  # bins as windows
        "avg n2 c33x7x7 o1x1 f16",  # whole planes, by eight threads or one
        "avg n1 c3x18x19 o1x1 divisor7 f32",
        "avg n1 c2x3x40 k1x33 s2 p0x3 f32",
        "avg n1 c1x50000 o46000 f32",  # borders found in 64 bits
        "max n2 c33x7x6 o1x1 indices f32",
        "lp3 n1 c2x4x5x6 k4x5x6 f32",
        "lp2 n1 c33x9x6 k3x3 s2 p1 ceil f32",
    ],
)
def test_pools_end_where_strips_tiles_and_groups_do_not(problem: str, order: str) -> None:
    spec = parse(problem)
    for op in (Op.POOL, Op.POOL_INPUT_GRAD):
        for made in taken(problem, op):
            given = operands(spec, op)
            moved = [
                lay(array, order)
                if order != "C" and (shape.name == "input" or moves(shape, order))
                else array
                for array, shape in zip(given, spec.shapes(op), strict=False)
            ]
            result, expected = made(*moved), reference(spec, op, given)
            pairs = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
            for one, other in pairs:
                error, detail = compare(one, other, tolerance(made, given))
                assert not detail, f"{op} by {made.algorithm} is off by {error}: {detail}"


@pytest.mark.parametrize("order", ["C", "channels last"])
@pytest.mark.parametrize("window", ["k3x3 s2 p1 ceil", "k2x2 s1 p1", "k3x3 s1 p2 d2", "o5x3"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "s8"])
def test_a_maximum_that_is_least_or_no_number(window: str, dtype: str, order: str) -> None:
    """Planes of nothing but the least there is, and numbers that are none: the first of the largest, the last NaN."""
    spec = parse(f"max n1 c34x9x7 {window} indices {dtype}")
    (x,) = operands(spec, Op.POOL, "integers")
    rng = np.random.default_rng(0)
    least = np.iinfo(x.dtype).min if dtype == "s8" else -np.inf
    x[rng.random(x.shape) < 0.7] = least
    x[0, ::4] = least
    if dtype != "s8":
        x[0, 1::4][rng.random(x[0, 1::4].shape) < 0.2] = np.nan
    made = plan(spec, Op.POOL, "emulated")
    for one, other in zip(
        made(x if order == "C" else lay(x, order)), reference(spec, Op.POOL, (x,)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("problem", "op"),
    [
        ("n2 c1x23x24 k2x3x2 s1 p1 f32", Op.CONV_WEIGHT_GRAD),
        ("n2 c4x9x9 k4x3x3 s1 p1 g4 f32", Op.CONV_WEIGHT_GRAD),
        ("n1 c150x2x2 k3x3x3 s1 p1 f32", Op.CONV),
        ("n5 c2x5x6 k3x3x3 s1 p2 reflect f32", Op.CONV_INPUT_GRAD),
        ("max n5 c2x7x8 k3x3 s2 p1 f32", Op.POOL_INPUT_GRAD),
        ("max n5 c2x7x8 k3x3 s2 p1 indices f32", Op.UNPOOL),
    ],
)
def test_a_limit_is_kept(problem: str, op: Op) -> None:
    """Scratch never exceeds the limit, results stay right, and a refusal names what would do."""
    free = max(made.workspace for made in taken(problem, op))
    assert free > 0
    for limit in (free, free // 2, free // 4, 1):
        for algorithm in algorithms("emulated", op):
            try:
                made = plan(parse(problem), op, "emulated", algorithm, workspace_limit=limit)
            except Unsupported as refusal:
                needed = (
                    next(iter(refusal.reasons.values())) if refusal.workspace is None else refusal.workspace
                )
                if isinstance(needed, int):
                    assert needed > limit
                    again = plan(parse(problem), op, "emulated", algorithm, workspace_limit=needed)
                    assert again.workspace <= needed
                    assert_agrees(again)
                continue
            assert made.workspace <= limit
            assert_agrees(made)


@pytest.mark.parametrize("problem", ["n1 c3x9x9 k66x3x3 s1 p1 f32", "n1 c6x9x20 k12x3x3 s2 p1 g6 bf16"])
def test_bits_do_not_depend_on_the_order_warps_run_in(problem: str) -> None:
    """More tiles than one in every direction, and every run draws another order of blocks, warps and lanes."""
    spec = parse(problem)
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        for made in taken(problem, op):
            given = operands(spec, op)
            first, *others = (made(*given).tobytes() for _ in range(3))
            assert all(first == other for other in others), f"{op} by {made.algorithm}"


def test_sums_cut_into_parts_are_exact() -> None:
    """k in many parts, the last one shorter, with a bias that is added once."""
    made = plan(parse("n1 c150x2x3 k3x3x3 s1 p1 f32"), Op.CONV, "emulated", "implicit_gemm")
    assert "parts" in made.run.note
    assert_agrees(made)


@pytest.mark.parametrize(
    "problem",
    ["n1 c1x3 k1x1 s2000000000 p0 f32", "n1 c2x9 k1x2 s7 p1 f32", "n1 c1x5x7 k1x2x1 s3x4 d2x1 p0 f32"],
)
def test_positions_that_no_tap_meets_get_their_bias(problem: str) -> None:
    for made in taken(problem, Op.CONV_INPUT_GRAD):
        assert_agrees(made)


def test_the_last_value_sent_to_a_place_wins() -> None:
    made = plan(parse("max n1 c1x4x4 k2x2 s2 p0 indices f32"), Op.UNPOOL, "emulated")
    values = np.array([[[[1, 2], [3, 4]]]], "f4")
    indices = np.array([[[[5, 5], [0, 5]]]], "i8")
    np.testing.assert_array_equal(made(values, indices)[0, 0].ravel()[[0, 5]], [3, 4])


def moves(shape: Shape, order: str) -> bool:
    """Whether arrays of a device come to a kernel in this order; the interface copies them else."""
    return (shape.name, shape.dtype, order) == ("grad_output", "float16", "channels last")


def lay(array: Any, order: str) -> Any:
    """The same values in another layout."""
    if order == "channels last":
        return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
    if order == "reversed":
        return array[..., ::-1].copy()[..., ::-1]
    if order == "off by one":  # no vector of 16 bytes begins where the array does
        base = np.empty(array.size + 1, array.dtype)
        base[1:] = array.ravel()
        return base[1:].reshape(array.shape)
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 99, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]
