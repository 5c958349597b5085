"""fastconv's CPU engine by itself: does it choose the fastest algorithm, and how long until a first result.

::

    python -m benchmarks.engine           # into engine.json, about 3 minutes; `benchmarks.rivals --page` shows it
    python -m benchmarks.engine --fit     # constants of the cost model that would fit the file's times best

The threads are one: they are no part of the choice.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console

from benchmarks import baselines
from benchmarks.results import BATCHES, Choice, Engine, read_engine
from benchmarks.rivals import ENGINE, ROOT, in_turns, machine, progress, quartiles
from benchmarks.selection import NETWORKS, SMOKE, kinds, layers
from fastconv import testing
from fastconv.backends.numba import cost
from fastconv.plan import Plan, plan
from fastconv.spec import ConvSpec, Spec, parse
from fastconv.threads import set_num_threads

# What is estimated at this many times the least is not timed: FFTs of small kernels would take most of the run.
HOPELESS = 8

# Constants of the cost model that are facts, not fitted.
FACTS = ("FMAS", "VECTORS")

# What a constant's change by a factor of e costs in the fit, in units of one algorithm's estimate that is wrong by as
# much: enough to hold a constant where no layer depends on it.
INERTIA = 0.5


# ---------------------------------------------------------------------------- choices


def candidates(spec: Spec, prepared: bool) -> dict[str, Plan]:
    """Plans of all algorithms that ``"auto"`` chooses from, but for the hopeless.

    ``pointwise`` is ``implicit_gemm``'s kernel under another name: between the two there is no choice.
    """
    op = spec.ops[0]
    arguments = ("default", None, prepared)
    estimates = plan.__wrapped__(spec, op, "numba", "auto", *arguments).estimates
    most = HOPELESS * min(estimates.values())
    return {
        name: plan.__wrapped__(spec, op, "numba", name, *arguments)
        for name, seconds in estimates.items()
        if seconds <= most and not (name == "implicit_gemm" and "pointwise" in estimates)
    }


def ways(spec: Spec) -> dict[str, bool]:
    """The ways in which a layer is called, and whether its weights are packed ahead."""
    return {"prepared": True, "unprepared": False} if isinstance(spec, ConvSpec) else {"pool": False}


def measure_choices(specs: Iterable[Spec], seconds: float) -> Iterator[dict[str, Any]]:
    """One record for each layer and way that leaves a choice."""
    for spec in specs:
        plans = {
            (way, name): made
            for way, prepared in ways(spec).items()
            for name, made in candidates(spec, prepared).items()
        }
        x, weight, _ = baselines.operands(spec)
        given = (x,) if weight is None else (x, weight)
        calls: dict[str, Callable[[], Any]] = {}
        answer, allowed = None, 0.0
        for (way, name), made in plans.items():
            call = partial(made, *given)
            if way == "prepared":
                call = partial(made.run_packed, x, made.pack(weight))
            result = call()
            values = result[0] if isinstance(result, tuple) else result
            tolerance = testing.tolerance(made, given)
            if answer is None:
                answer, allowed = values, tolerance
            _, detail = testing.compare(values, answer.astype(float), allowed + tolerance)
            if detail:
                raise AssertionError(f"{name} of '{spec}' is wrong: {detail}")
            calls[f"{way} {name}"] = call
        times = in_turns(calls, seconds, 1)
        for way in ways(spec):
            own = {name: made for (whose, name), made in plans.items() if whose == way}
            if len(own) > 1:
                yield {
                    "problem": str(spec),
                    "way": way,
                    "estimates": {name: float(f"{made.run.seconds:.4g}") for name, made in own.items()},
                    "seconds": {name: quartiles(times[f"{way} {name}"]) for name in own},
                }


# ---------------------------------------------------------------------------- fitting


@contextmanager
def constants(values: Mapping[str, float]) -> Iterator[None]:
    """The cost model with other constants."""
    before = {name: getattr(cost, name) for name in values}
    try:
        vars(cost).update(values)
        yield
    finally:
        vars(cost).update(before)


def fitted() -> dict[str, float]:
    """The cost model's constants that are to be fitted, as they are."""
    return {
        name: float(value)
        for name, value in vars(cost).items()
        if name.isupper() and isinstance(value, int | float) and name not in FACTS
    }


def estimates(choices: Iterable[Choice]) -> list[dict[str, float]]:
    """What the cost model says now of the algorithms that were measured; some may decline."""
    found = []
    for choice in choices:
        spec = choice.spec
        now = plan.__wrapped__(spec, spec.ops[0], "numba", "auto", "default", None, choice.way == "prepared")
        found.append({name: now.estimates[name] for name in choice.seconds if name in now.estimates})
    return found


class Fit(NamedTuple):
    """Constants before and after, and the geometric mean of what the choices lose with each."""

    before: dict[str, float]
    after: dict[str, float]
    regrets: tuple[float, float]


def fit(choices: list[Choice]) -> Fit:
    """Least squares of the logarithms of estimates over measured times, FFTs aside: their model is im2col's."""
    from scipy.optimize import least_squares

    before = fitted()
    names = list(before)

    def values(factors: Any) -> dict[str, float]:
        return {name: before[name] * factor for name, factor in zip(names, factors, strict=True)}

    def misses(factors: Any) -> Any:
        with constants(values(factors)):
            said = estimates(choices)
        errors = [
            math.log(row[name] / choice.seconds[name].median) if name in row else 0.0
            for choice, row in zip(choices, said, strict=True)
            for name in choice.seconds
            if name != "fft"
        ]
        return np.array([*errors, *INERTIA * np.log(factors)])

    def regret(constant: Mapping[str, float]) -> float:
        with constants(constant):
            said = estimates(choices)
        return statistics.geometric_mean(
            choice.regret(min(row, key=row.__getitem__)) for choice, row in zip(choices, said, strict=True)
        )

    # Estimates are minima over ways of cutting a problem, so they bend: differences over 2 % look past that.
    found = least_squares(
        misses, np.ones(len(names)), diff_step=0.02, bounds=(0.1, 10), loss="soft_l1", max_nfev=8
    )
    after = {name: float(f"{value:.3g}") for name, value in values(found.x).items()}
    return Fit(before, after, (regret(before), regret(after)))


# ---------------------------------------------------------------------------- starting


FIRST = """
import time
begin = time.perf_counter()
import numba
numba_ready = time.perf_counter()
import numpy as np
import fastconv as fc
x, w = np.ones((1, 64, 56, 56), "f4"), np.ones((64, 64, 3, 3), "f4")
fc.conv2d(x, w, padding=1, backend="numba")
first = time.perf_counter()
fc.conv2d(x[:, :3], w[:, :3], padding=1, backend="numba")
fc.max_pool2d(x, 2, backend="numba")
print(numba_ready - begin, first - numba_ready, time.perf_counter() - numba_ready)
"""


def measure_start(dtype: str = "float32", processes: int = 7) -> dict[str, float]:
    """Seconds to compile every kernel with nothing on disk, then those of first calls in new processes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}

        def run(*arguments: str) -> str:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return done.stdout

        begin = time.perf_counter()
        run("-m", "fastconv", "warm", "--dtype", dtype)
        compiled = time.perf_counter() - begin
        run("-c", FIRST)
        rows = [list(map(float, run("-c", FIRST).split())) for _ in range(processes)]
    imported, first, all_kinds = (statistics.median(column) for column in zip(*rows, strict=True))
    found = {"compile": compiled, "import numba": imported, "first call": first, "three kinds": all_kinds}
    return {name: float(f"{seconds:.3g}") for name, seconds in found.items()}


# ---------------------------------------------------------------------------- the command


def main(
    seconds: Annotated[float, typer.Option(help="For each layer, about.")] = 0.15,
    json_path: Annotated[Path, typer.Option("--json", help="Where results are kept.")] = ENGINE,
    fit_only: Annotated[
        bool, typer.Option("--fit", help="Measure nothing: fit the cost model to what the file holds.")
    ] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few small layers, kept nowhere.")] = False,
) -> None:
    """Measure how good the engine's choices are and how fast it starts, or fit its cost model."""
    console = Console(stderr=True)
    set_num_threads(1)
    if smoke:
        specs = [spec for text in SMOKE for spec in kinds(parse(text))]
        made = Engine(machine(), {}, list(measure_choices(specs, 0.01)))
        console.print(f"{len(made.choices)} choices, a regret of {made.mean_regret():.2f}x")
        return
    if not fit_only:
        specs = list(dict.fromkeys(s for size in BATCHES for name in NETWORKS for s in layers(name, size)))
        with progress() as bar:
            task = bar.add_task("starting", total=len(specs))
            start = measure_start()
            records: list[dict[str, Any]] = []
            for spec in specs:
                bar.update(task, description=str(spec))
                records += measure_choices([spec], seconds)
                bar.advance(task)
        json_path.write_text(Engine(machine(), start, records).as_json(), encoding="utf-8")
        console.print(f"wrote {json_path}", soft_wrap=True)
        return
    found = fit(read_engine(json_path).choices)
    for name, value in found.before.items():
        console.print(f"{name:16} {value:10.4g} -> {found.after[name]:10.4g}")
    console.print(
        "choices lose {:.2f} %, with these constants {:.2f} %".format(*(100 * (r - 1) for r in found.regrets))
    )


if __name__ == "__main__":
    typer.run(main)
