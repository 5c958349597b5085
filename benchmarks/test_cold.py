"""What comes before a warm call: planning, a first call, packing the weights."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.selection import specs
from fastconv import testing
from fastconv.backends import backends, owner
from fastconv.plan import plan
from fastconv.spec import ConvSpec, Op, Spec

NAMES = [
    n for n, state in backends().items() if state == "available" and owner(n) == "numpy" and n != "naive"
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [spec for spec in specs(metafunc.config) if isinstance(spec, ConvSpec)]
    metafunc.parametrize("spec", chosen, ids=str)


@pytest.mark.parametrize("backend", NAMES)
def test_planning(benchmark: Any, spec: Spec, backend: str) -> None:
    benchmark.group = f"planning {spec}"
    benchmark(plan.__wrapped__, spec, Op.CONV, backend)


@pytest.mark.parametrize("backend", NAMES)
def test_plan_pack_and_call(benchmark: Any, spec: Spec, backend: str) -> None:
    x, w = testing.operands(spec, Op.CONV)
    benchmark.group = f"cold {spec}"
    benchmark.pedantic(lambda: plan.__wrapped__(spec, Op.CONV, backend)(x, w), rounds=3)
