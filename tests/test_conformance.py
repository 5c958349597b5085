"""Every backend, algorithm and op agrees with the definition on every problem of the shared list."""

from __future__ import annotations

import pytest

from fastconv.backends import Unsupported, algorithms, backends, owner
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]

# Ops that a backend is still to learn; everything else it must take.
NOT_YET = {
    "numba": {
        Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.UNFOLD, Op.FOLD,
        Op.POOL_INPUT_GRAD, Op.UNPOOL, Op.UNPOOL_INPUT_GRAD,
    },
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_knows_every_op_or_is_listed(backend: str) -> None:
    assert {op for op in Op if not algorithms(backend, op)} == NOT_YET.get(backend, set())


@pytest.mark.parametrize("problem", PROBLEMS["edges"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_definition(backend: str, problem: str) -> None:
    spec = parse(problem)
    for op in spec.ops:
        if op in NOT_YET.get(backend, ()):
            continue
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
