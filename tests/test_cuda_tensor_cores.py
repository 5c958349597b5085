"""``implicit_gemm_mma`` in its three types, run on the CPU: ragged shapes, layouts, groups, parts of k, refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastconv.backends import _BACKENDS, TF32_ERROR, Unsupported, _Row
from fastconv.plan import Plan, plan
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees, compare, operands, poisoned, reference, tolerance
from tests import emulator

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CuPy engine's planners for NumPy arrays."""
    monkeypatch.setitem(sys.modules, "emulated_cupy", emulator.backend())
    monkeypatch.setitem(_BACKENDS, "emulated", _Row("emulated_cupy", "numpy"))
    plan.cache_clear()
    yield
    plan.cache_clear()


def made(problem: str, limit: int | None = None, op: Op = Op.CONV) -> Plan:
    return plan(parse(problem), op, "emulated", "implicit_gemm_mma", "tf32", workspace_limit=limit)


def channels_last(x: Any) -> Any:
    return np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)


def off(x: Any) -> Any:
    """Channels last, but no vector of 16 bytes begins where the array does."""
    base = np.empty(x.size + 1, x.dtype)
    base[1:] = np.moveaxis(x, 1, -1).ravel()
    return np.moveaxis(base[1:].reshape(*x.shape[:1], *x.shape[2:], x.shape[1]), -1, 1)


# Out channels, positions and k are no multiples of a tile anywhere.
RAGGED = (
    "n1 c5x7x6 k9x3x3 s1 p1",  # nothing in vectors
    "n2 c32x5x4 k70x3x2 s2x1 p1 g2",  # whole vectors, packed weights, two tiles of m in each group
    "n3 c24x5x5 k17x1x1 s1 p0",  # whole vectors, weights as they lie
    "n1 c8x6x7 k3x3x3 s1 p2 d2 reflect",
    "n1 c8x9 k5x4 s3 p1",
    "n1 c4x3x4x5 k3x2x2x2 s1 p1 circular",
)


GRADIENTS = (
    *RAGGED,
    "n2 c20x4x8 k10x1x1 s1 p0",  # a weight gradient of whole vectors alone
    "n1 c5x9x8 k9x3x3 s1 p1",  # grad_output in whole vectors, the input gathered
    "n1 c5x6x7 k8x2x3 s1 p1 d2",  # the input gradient's weight in whole vectors of taps, grad_output gathered
    "n2 c7x9x11 k24x3x3 s2 p1",  # phases, with channels last whole vectors of them
    "n1 c70x5x6 k16x3x2 s3x1 p1 d2x1 g2",
)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(
    ("problem", "op"),
    [
        *((problem, Op.CONV) for problem in RAGGED),
        *((problem, op) for problem in GRADIENTS for op in (Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD)),
    ],
)
def test_agrees_with_the_definition(problem: str, op: Op, dtype: str) -> None:
    """Images, grad_output among them, in any order of axes."""
    given = made(f"{problem} {dtype}", op=op)
    assert given.run.error == (TF32_ERROR if dtype == "f32" else 0)
    shapes = given.spec.shapes(op)
    for order in (np.asarray, channels_last, off):
        for kind in ("integers", "normal"):
            arrays = operands(given.spec, op, kind)
            result = poisoned(shapes[-1])
            moved = [
                array if shape.name == "weight" else order(array)
                for array, shape in zip(arrays, shapes, strict=False)
            ]
            given(*moved, out=result)
            # Small whole numbers are exact in tf32 too.
            allowed = 0.0 if kind == "integers" else tolerance(given, arrays)
            error, detail = compare(result, reference(given.spec, op, arrays), allowed)
            assert not detail, f"{order.__name__}, {kind}: off by {error}, {detail}"


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize(
    ("problem", "op"),
    [("n1 c160x2x3 k3x3x3 s1 p1", Op.CONV), ("n3 c3x19x24 k5x3x3 s1 p1", Op.CONV_WEIGHT_GRAD)],
)
def test_k_is_cut_into_parts(problem: str, op: Op, dtype: str) -> None:
    """Long k and few tiles: parts are added in a fixed order, the bias once."""
    given = made(f"{problem} {dtype}", op=op)
    assert "parts" in given.run.note
    assert_agrees(given)
    x, other = operands(given.spec, op)
    assert given(channels_last(x), other).tobytes() == given(channels_last(x), other).tobytes()


@pytest.mark.parametrize(
    ("problem", "op"),
    [("n1 c16x5x5 k9x3x3 s1 p1 f16", Op.CONV), ("n1 c9x5x5 k16x3x3 s1 p1 f16", Op.CONV_INPUT_GRAD)],
)
def test_without_room_for_it_the_weight_is_read_as_it_lies(problem: str, op: Op) -> None:
    assert made(problem, op=op).workspace == 9 * 16 * 9 * 2
    given = made(problem, limit=100, op=op)
    assert given.workspace == 0
    x, w = operands(given.spec, op, "integers")
    assert compare(given(channels_last(x), w), reference(given.spec, op, (x, w)), 0.0) == (0.0, "")


def test_tf32_is_as_far_off_as_its_rounding() -> None:
    """Not the float32 that was given: the error is above float32's, and below the bound."""
    given = made("n1 c16x8x8 k8x3x3 s1 p1 f32")
    x, w = operands(given.spec, Op.CONV)
    exact = reference(given.spec, Op.CONV, (x, w))
    error = np.abs(given(x, w) - exact).max() / np.abs(exact).max()
    assert 2.0**-20 < error < TF32_ERROR


@pytest.mark.parametrize(
    ("dtype", "precision", "words"),
    [
        ("f32", "default", "float32 on tensor cores is tf32, which precision='default' does not allow"),
        ("f32", "highest", "which precision='highest' does not allow"),
        ("f64", "tf32", "float64 is no type of tensor cores here"),
    ],
)
def test_declines_in_words(dtype: str, precision: str, words: str) -> None:
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        with pytest.raises(Unsupported, match=words):
            plan(parse(f"n1 c8x5x5 k8x3x3 s1 p1 {dtype}"), op, "emulated", "implicit_gemm_mma", precision)


def test_auto_takes_tensor_cores_where_they_are_allowed() -> None:
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        for dtype, precision, algorithm in (
            ("f16", "default", "implicit_gemm_mma"),
            ("bf16", "default", "implicit_gemm_mma"),
            ("f32", "tf32", "implicit_gemm_mma"),
            ("f32", "default", "implicit_gemm"),
        ):
            spec = parse(f"n8 c64x28x28 k64x3x3 s1 p1 {dtype}")
            assert plan(spec, op, "emulated", "auto", precision).algorithm == algorithm
