"""Every backend and algorithm on every convolution and pool of a workload, beside the rivals."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.baselines import BASELINES
from benchmarks.selection import specs
from fastconv import testing
from fastconv.backends import Unsupported, backends, owner
from fastconv.plan import Plan
from fastconv.spec import Op, Spec

# Plain loops would take minutes; `fastconv compare` times them on smaller problems.
NAMES = [
    n for n, state in backends().items() if state == "available" and owner(n) == "numpy" and n != "naive"
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = specs(metafunc.config)
    if "made" in metafunc.fixturenames:
        plans = [
            p for s in chosen for n in NAMES for p in testing.plans(s, s.ops[0], n) if isinstance(p, Plan)
        ]
        quick = [made for made in plans if made.run.seconds < 2]
        metafunc.parametrize("made", quick, ids=lambda made: f"{made.backend}/{made.algorithm} {made.spec}")
    else:
        metafunc.parametrize("spec", chosen, ids=str)


def test_fastconv(timed: Any, made: Plan) -> None:
    name, operands = f"{made.backend}/{made.algorithm}", testing.operands(made.spec, made.op)
    if made.op is Op.CONV:
        x, w = operands
        packed = made.pack(w)
        timed(made.spec, made.op, name, lambda: made.run_packed(x, packed), operands, made)
    else:
        timed(made.spec, made.op, name, lambda: made(*operands), operands, made)


@pytest.mark.parametrize("rival", BASELINES)
def test_rival(timed: Any, spec: Spec, rival: str) -> None:
    try:
        run, place = BASELINES[rival](spec)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    op = spec.ops[0]
    operands = testing.operands(spec, op)
    placed = tuple(map(place, operands))
    timed(spec, op, rival, lambda: run(*placed), operands, None)
