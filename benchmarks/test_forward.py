"""Every backend and algorithm on every convolution and pool of a workload, beside the rivals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from benchmarks.baselines import BASELINES, operands
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


def results(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def test_fastconv(timed: Any, made: Plan) -> None:
    name, (x, weight, bias) = f"{made.backend}/{made.algorithm}", operands(made.spec)
    call = partial(made, x)
    if made.op is Op.CONV:
        call = partial(made.run_packed, x, made.pack(weight), bias=bias)
    timed(made.spec, name, call, results, (x, weight, bias), made)


@pytest.mark.parametrize("rival", BASELINES)
def test_rival(timed: Any, spec: Spec, rival: str) -> None:
    x, weight, bias = operands(spec)
    try:
        made = BASELINES[rival](spec, weight, bias)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    timed(spec, rival, partial(made.run, made.place(x)), made.read, (x, weight, bias), None)
