"""Every backend, algorithm and op agrees with the definition on every problem of the shared list."""

from __future__ import annotations

import pytest

from fastconv.backends import Unsupported, algorithms, backends, owner
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import parse
from fastconv.testing import assert_agrees

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]


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
