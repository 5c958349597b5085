"""The CuPy engine's planners and kernels agree with the definition, run on the CPU (see tests/emulator)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastconv.backends import _BACKENDS, Unsupported, _Row, algorithms
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees, compare, operands, reference, tolerance
from tests import emulator

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend "emulated" for NumPy arrays: the CuPy engine's planners, and the emulation instead of CuPy."""
    monkeypatch.setitem(sys.modules, "emulated_cupy", emulator.backend())
    monkeypatch.setitem(_BACKENDS, "emulated", _Row("emulated_cupy", "numpy"))
    plan.cache_clear()
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


@pytest.mark.parametrize("order", ["channels last", "reversed", "every second"])
def test_images_lie_in_memory_as_they_like(order: str) -> None:
    made = plan(parse("n2 c5x6x7 k4x3x2 s2x1 p1 f32"), Op.CONV, "emulated", "implicit_gemm")
    x, w = operands(made.spec, Op.CONV)
    x = lay(x, order)
    error, detail = compare(made(x, w), reference(made.spec, Op.CONV, (x, w)), tolerance(made, (x, w)))
    assert not detail, f"off by {error}: {detail}"


def lay(array: Any, order: str) -> Any:
    """The same values in another layout."""
    if order == "channels last":
        return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)
    if order == "reversed":
        return array[..., ::-1].copy()[..., ::-1]
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]
