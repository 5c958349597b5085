"""Which problems are timed, and what is recorded about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastconv import testing
from fastconv.compare.memory import Request, peaks
from fastconv.plan import MAX_ERROR, Plan, plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Op, Spec
from fastconv.threads import get_num_threads


def pytest_addoption(parser: pytest.Parser) -> None:
    names = ", ".join(PROBLEMS)
    parser.addoption("--workload", default="lenet", choices=list(PROBLEMS), help=f"problems to time: {names}")
    parser.addoption("--batch", type=int, default=1, help="images at a time")
    parser.addoption("--smoke", action="store_true", help="a handful of small problems, few rounds")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--smoke"):
        config.option.benchmark_min_rounds = 2
        config.option.benchmark_max_time = 0.02


def answer(spec: Spec, op: Op, operands: tuple[Any, ...]) -> Any:
    """The float64 answer, by im2col, which the conformance test ties to the definition."""
    return testing.reference(spec, op, operands, backend="im2col")


def _peak(made: Plan) -> int | None:
    """Measured scratch, in a process of its own; a second or two each, so not in a smoke run."""
    (peak,) = peaks([Request(str(made.spec), made.op.value, made.backend, made.algorithm)])
    return peak


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Check a result once, then time warm calls, and record what the numbers mean."""

    def run(
        spec: Spec, op: Op, name: str, call: Callable[[], Any], operands: tuple[Any, ...], made: Plan | None
    ) -> None:
        expected, result = answer(spec, op, operands), call()
        allowed = testing.tolerance(made, operands) if made else _rival_tolerance(spec, op, operands)
        error, detail = testing.compare(np.asarray(result), np.asarray(expected), allowed)
        assert not detail, detail
        benchmark.group = f"{op} {spec}"
        benchmark.name = name
        benchmark.extra_info.update(
            problem=str(spec), op=op.value, way=name, flops=spec.flops(op), bytes=spec.nbytes(op),
            workspace=made.workspace if made else None, error=error, threads=get_num_threads(),
        )  # fmt: skip
        if made and not request.config.getoption("--smoke"):
            benchmark.extra_info["peak"] = _peak(made)
        benchmark(call)

    return run


def _rival_tolerance(spec: Spec, op: Op, operands: tuple[Any, ...]) -> float:
    """Rivals may use Winograd: what a transform under 6e-6 may add, on top of the plain sum's tolerance."""
    plain = plan(spec, op, "im2col", "auto", "highest")
    return testing.tolerance(replace(plain, run=replace(plain.run, error=MAX_ERROR)), operands)
