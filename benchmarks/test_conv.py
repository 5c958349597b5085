"""Every backend and algorithm on every convolution of a workload, beside the rivals."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.baselines import BASELINES
from benchmarks.selection import specs
from fastconv import testing
from fastconv.backends import Unsupported, algorithms, backends, owner
from fastconv.plan import plan
from fastconv.spec import ConvSpec, Op, Spec

# Plain loops would take minutes; `fastconv compare` times them on smaller problems.
NAMES = [
    n for n, state in backends().items() if state == "available" and owner(n) == "numpy" and n != "naive"
]
WAYS = [(name, algorithm) for name in NAMES for algorithm in algorithms(name, Op.CONV)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [spec for spec in specs(metafunc.config) if isinstance(spec, ConvSpec)]
    metafunc.parametrize("spec", chosen, ids=str)


@pytest.mark.parametrize("way", WAYS, ids="/".join)
def test_fastconv(timed: Any, spec: Spec, way: tuple[str, str]) -> None:
    try:
        made = plan(spec, Op.CONV, *way)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    if made.run.seconds > 2:
        pytest.skip(f"estimated at {made.run.seconds:.0f} s a call")
    x, w = testing.operands(spec, Op.CONV)
    packed = made.pack(w)
    timed(spec, Op.CONV, "/".join(way), lambda: made.run_packed(x, packed), (x, w), made)


@pytest.mark.parametrize("rival", BASELINES)
def test_rival(timed: Any, spec: Spec, rival: str) -> None:
    try:
        run, place = BASELINES[rival](spec)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    x, w = testing.operands(spec, Op.CONV)
    arguments = place(x), place(w)
    timed(spec, Op.CONV, rival, lambda: run(*arguments), (x, w), None)
