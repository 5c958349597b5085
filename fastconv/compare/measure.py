"""Measurements: every backend and algorithm on every case, checked first, then timed side by side.

Candidates of one case are timed in turns, so that a noisy moment of the machine falls on all of them; the
median and the quartiles of each are kept. Plain Python loops would take minutes on a photograph, so they are
timed on a smaller problem of the same kind and their time is scaled by the number of operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fastconv import testing
from fastconv.backends import Unsupported, backends, fetch, put, wait
from fastconv.compare.memory import Request, peaks
from fastconv.compare.workloads import Case, in_float64, is_float, shrunk
from fastconv.plan import Plan, plan
from fastconv.spec import ConvSpec, Op

# Plain loops take about 0.5 us an operation: a sub-problem of this many is timed in 0.15 s.
LOOP_OPERATIONS = 300_000

# Small enough for the definition to check every algorithm of a case in a moment.
CHECK_OPERATIONS = 40_000

# A candidate that has been running this long is not asked again, once it has answered twice.
BUDGET_SECONDS = 0.8


@dataclass(frozen=True, slots=True)
class Row:
    """One backend and algorithm on one case.

    Attributes
    ----------
    case, problem, op : str
    backend, algorithm : str
    note : str
        Why the algorithm runs as it does.
    chosen : bool
        Whether ``algorithm="auto"`` would take it.
    seconds, low, high : float
        Median, lower and upper quartile of one call.
    first_call : float
        Seconds of planning and the first call, compilation included.
    rounds : int
    flops : int
    columns : int
        Bytes of the textbook column matrix of the whole problem; 0 for a pool.
    traffic : int
        Bytes of operands and result.
    timed : str
        The smaller problem that was timed in its place; empty if it was timed itself.
    error : float or None
        Largest difference to float64, relative to the largest result; None for integers.
    agrees : bool
        Whether every element was within the derived tolerance.
    peak, predicted : int or None
        Bytes of scratch: measured, and what the plan says.
    transfer : float or None
        Seconds to copy operands to the device and results back, which no other time holds; None on the host.
    """

    case: str
    problem: str
    op: str
    backend: str
    algorithm: str
    note: str
    chosen: bool
    seconds: float
    low: float
    high: float
    first_call: float
    rounds: int
    flops: int
    columns: int
    traffic: int
    timed: str = ""
    error: float | None = None
    agrees: bool = True
    peak: int | None = None
    predicted: int | None = None
    transfer: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two rows of different runs comparable."""
        return self.problem, self.op, self.backend, self.algorithm

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.flops / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Progress:
    """How far a run is: reported after every step, in estimated seconds."""

    report: Callable[[float, float, str], None] = field(default=lambda done, total, text: None)
    done: float = 0.0
    total: float = 0.0

    def step(self, seconds: float, text: str) -> None:
        """Say that `seconds` worth of the estimate are done, and what comes next."""
        self.done += seconds
        self.report(self.done, self.total, text)


def candidates(case: Case, only: Sequence[str] | None = None) -> list[Plan]:
    """One plan for each backend and algorithm that takes the case."""
    names = [name for name, state in backends().items() if state == "available"]
    made = []
    for name in names:
        if only is None or name in only:
            made += [p for p in testing.plans(case.spec, case.op, name) if isinstance(p, Plan)]
    return made


def cross_check(
    cases: Sequence[Case], only: Sequence[str] | None, progress: Progress
) -> list[testing.Agreement]:
    """Every algorithm against the definition, on a small version of every case."""
    found = []
    for case in cases:
        small = shrunk(case, CHECK_OPERATIONS)
        for made in candidates(small, only):
            found += [testing.check_plan(made, kind) for kind in ("integers", "normal")]
        progress.step(CHECK_SECONDS, f"checking {case.name}")
    return found


# Estimates for the progress bar, seconds: checking one case, one candidate's timing, one memory measurement.
CHECK_SECONDS, TIME_SECONDS, MEMORY_SECONDS = 0.3, 0.7, 0.3


def estimate(cases: Sequence[Case], only: Sequence[str] | None) -> float:
    """Seconds the whole run is expected to take."""
    count = sum(len(candidates(case, only)) for case in cases)
    return len(cases) * CHECK_SECONDS + count * (TIME_SECONDS + MEMORY_SECONDS)


@dataclass(slots=True)
class _Runner:
    """One candidate while it is being timed."""

    plan: Plan
    operands: tuple[Any, ...]
    timed: Case
    placed: tuple[Any, ...] = ()
    first_call: float = 0.0
    transfer: float | None = None
    result: Any = None
    times: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Plan anew and call once: what a first call in a session costs. Operands have been carried there before."""
        backend = self.plan.backend
        begin = time.perf_counter()
        self.placed = tuple(put(backend, array) for array in self.operands)
        wait(backend)
        there = time.perf_counter()
        plan.__wrapped__(self.timed.spec, self.plan.op, backend, self.plan.algorithm)
        made = self.plan(*self.placed)
        wait(backend)
        done = time.perf_counter()
        self.result = tuple(fetch(backend, array) for array in (made if isinstance(made, tuple) else (made,)))
        self.first_call = done - there
        if self.placed and self.placed[0] is not self.operands[0]:
            self.transfer = there - begin + time.perf_counter() - done

    def time(self, repeat: int) -> bool:
        """Time one call; False once there are enough."""
        if len(self.times) >= repeat or (len(self.times) >= 2 and sum(self.times) > BUDGET_SECONDS):
            return False
        begin = time.perf_counter()
        self.plan(*self.placed)
        wait(self.plan.backend)
        self.times.append(time.perf_counter() - begin)
        return True


def _runner(case: Case, made: Plan) -> _Runner:
    if made.backend != "naive":
        return _Runner(made, case.operands(), case)
    small = shrunk(case, LOOP_OPERATIONS)
    return _Runner(plan(small.spec, small.op, made.backend, made.algorithm), small.operands(), small)


def time_case(case: Case, only: Sequence[str] | None, repeat: int, progress: Progress) -> Iterator[Row]:
    """Time every candidate of a case, in turns, and compare its answer with float64."""
    runners = [(made, _runner(case, made)) for made in candidates(case, only)]
    for _, runner in runners:
        runner.start()
    more = [True]
    while any(more):  # everybody once, then everybody again
        more = [runner.time(repeat) for _, runner in runners]
    wide = in_float64(case)
    answer = plan(wide.spec, wide.op, "im2col", "auto", "highest")(*wide.operands())
    for made, runner in runners:
        yield _row(case, made, runner, answer)
        progress.step(TIME_SECONDS, f"timed {case.name} on {made.backend}/{made.algorithm}")


def _chosen(case: Case, backend: str) -> str:
    try:
        return plan(case.spec, case.op, backend).algorithm
    except Unsupported:
        return ""


def _row(case: Case, made: Plan, runner: _Runner, answer: Any) -> Row:
    spec, op = case.spec, case.op
    scale = spec.flops(op) / max(runner.timed.spec.flops(op), 1)
    low, median, high = (float(q) * scale for q in np.quantile(runner.times, (0.25, 0.5, 0.75)))
    whole = runner.timed.spec == spec
    if not whole:
        wide = in_float64(runner.timed)
        answer = plan(wide.spec, op, "im2col", "auto", "highest")(*wide.operands())
    result = runner.result[0]
    expected = answer[0] if isinstance(answer, tuple) else answer
    allowed = testing.tolerance(runner.plan, runner.operands)
    _, detail = testing.compare(result, expected, allowed)
    error = None
    if is_float(spec):
        gap = np.max(np.abs(result.astype("float64") - expected), initial=0.0)
        error = float(gap / max(float(np.max(np.abs(expected), initial=0.0)), 1e-300))
    return Row(
        case=case.name,
        problem=str(spec),
        op=op.value,
        backend=made.backend,
        algorithm=made.algorithm,
        note=made.run.note,
        chosen=made.algorithm == _chosen(case, made.backend),
        seconds=median,
        low=low,
        high=high,
        first_call=runner.first_call,
        rounds=len(runner.times),
        flops=spec.flops(op),
        columns=spec.columns_nbytes if isinstance(spec, ConvSpec) and op is not Op.FOLD else 0,
        traffic=spec.nbytes(op),
        timed="" if whole else str(runner.timed.spec),
        error=error,
        agrees=not detail,
        predicted=runner.plan.workspace,
        transfer=runner.transfer,
    )


def with_memory(rows: Sequence[Row], threads: int | None, progress: Progress) -> Iterator[Row]:
    """The rows with their peak memory, measured in a clean process on the problem that was timed."""
    requests = [
        Request(row.timed or row.problem, row.op, row.backend, row.algorithm, threads=threads) for row in rows
    ]
    for row, peak in zip(rows, peaks(requests), strict=True):
        yield replace(row, peak=peak)
        progress.step(MEMORY_SECONDS, f"memory of {row.case} on {row.backend}/{row.algorithm}")
