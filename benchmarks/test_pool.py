"""Every backend and algorithm on every pool of a workload, beside the rivals."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.baselines import BASELINES
from benchmarks.selection import specs
from fastconv import testing
from fastconv.backends import Unsupported, algorithms, backends, owner
from fastconv.plan import plan
from fastconv.spec import Op, PoolSpec, Spec

NAMES = [
    n for n, state in backends().items() if state == "available" and owner(n) == "numpy" and n != "naive"
]
WAYS = [(name, algorithm) for name in NAMES for algorithm in algorithms(name, Op.POOL)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [spec for spec in specs(metafunc.config) if isinstance(spec, PoolSpec)]
    metafunc.parametrize("spec", chosen, ids=str)


@pytest.mark.parametrize("way", WAYS, ids="/".join)
def test_fastconv(timed: Any, spec: Spec, way: tuple[str, str]) -> None:
    try:
        made = plan(spec, Op.POOL, *way)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    (x,) = testing.operands(spec, Op.POOL)
    timed(spec, Op.POOL, "/".join(way), lambda: made(x), (x,), made)


@pytest.mark.parametrize("rival", BASELINES)
def test_rival(timed: Any, spec: Spec, rival: str) -> None:
    try:
        run, place = BASELINES[rival](spec)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    (x,) = testing.operands(spec, Op.POOL)
    placed = place(x)
    timed(spec, Op.POOL, rival, lambda: run(placed), (x,), None)
