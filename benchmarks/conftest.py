"""Which problems are timed, and what is recorded about each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.baselines import disagreement, reference, tolerance
from fastconv import testing
from fastconv.compare.memory import Request, peaks
from fastconv.plan import Plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Spec
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


def _peak(made: Plan) -> int | None:
    """Measured scratch, in a process of its own; a second or two each, so not in a smoke run."""
    (peak,) = peaks([Request(str(made.spec), made.op.value, made.backend, made.algorithm)])
    return peak


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Check a result once, then time warm calls, and record what the numbers mean.

    `read` makes one array of each result out of what `call` returns.
    """

    def run(
        spec: Spec, name: str, call: Callable[[], Any], read: Callable[[Any], tuple[Any, ...]],
        operands: tuple[Any, ...], made: Plan | None,
    ) -> None:  # fmt: skip
        x, weight, bias = operands
        given = (x,) if weight is None else (x, weight)
        allowed = testing.tolerance(made, given, bias) if made else tolerance(spec, *operands)
        error, detail = disagreement(read(call()), reference(spec, *operands), allowed, max(spec.batch, 1))
        assert not detail, detail
        op = spec.ops[0]
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
