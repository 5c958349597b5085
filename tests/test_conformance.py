"""Every backend, algorithm and op agrees with the definition on every problem of the shared list."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv.backends import Unsupported, algorithms, backends, owner
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees, operands, tolerance

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_knows_every_op(backend: str) -> None:
    assert not {op for op in Op if not algorithms(backend, op)}


@pytest.mark.parametrize("problem", PROBLEMS["edges"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_definition(backend: str, problem: str) -> None:
    spec = parse(problem)
    for op in spec.ops:
        agreed = 0
        for algorithm in algorithms(backend, op):
            try:
                made = plan(spec, op, backend, algorithm)
            except Unsupported:
                continue
            for kind in ("integers", "normal"):
                assert_agrees(made, kind)
                agreed += 1
        assert agreed, f"no algorithm of {backend} takes {op} of {problem}"


@pytest.mark.parametrize("change", [np.positive, np.abs], ids=["any sign", "one sign"])
@pytest.mark.parametrize("terms", [1, 7, 100, 3000, 100_000])
def test_sums_in_the_worst_order_are_within_the_tolerance(terms: int, change: Any) -> None:
    """One term after the other, as no backend sums; long sums get far less than the certain bound."""
    spec = parse(f"n20 c1x{terms} k20x{terms} s1 p0 f32")
    x, w = map(change, operands(spec, Op.CONV))
    products = x * w.swapaxes(0, 1)
    exact = x[:, 0].astype("float64") @ w[:, 0].T.astype("float64")
    error = float(np.abs(np.add.accumulate(products, axis=-1)[..., -1] - exact).max())
    allowed = tolerance(plan(spec, Op.CONV, "im2col", "auto", "highest"), (x, w))
    certain = terms * 2.0**-24 * float(np.abs(products).sum(axis=-1, dtype="float64").max())
    assert error <= allowed
    assert terms < 100_000 or allowed < 0.25 * certain
