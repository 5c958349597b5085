"""Importing fastconv is cheap and loads nothing that a backend does not need."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

from fastconv.backends import backends

HEAVY = ("numba", "cupy", "scipy", "matplotlib", "torch", "ml_dtypes", "sklearn", "rich", "typer", "plotly")


def run(code: str) -> str:
    # With byte code, as every installed package has it.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = run(f"import sys, fastconv; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("name", [name for name, state in backends().items() if state == "available"])
def test_each_backend_loads_alone(name: str) -> None:
    others = [other for other in backends() if other != name]
    code = (
        f"import sys; from fastconv.backends import get; get({name!r}); "
        f"print([o for o in {others!r} if any(m.startswith('fastconv.backends.' + o) for m in sys.modules)])"
    )
    assert run(code).strip() == "[]"


def test_import_takes_at_most_half_of_numpys_time_more() -> None:
    code = (
        "import time; a = time.perf_counter(); import numpy; b = time.perf_counter(); import fastconv; "
        "c = time.perf_counter(); print((c - a) / (b - a))"
    )
    run(code)
    ratios: list[float] = []
    for _ in range(5):  # a noisy moment is no failure: more runs until the median settles
        ratios += [float(run(code)) for _ in range(7)]
        if statistics.median(ratios) <= 1.5:
            return
    raise AssertionError(
        f"importing fastconv takes {statistics.median(ratios):.2f}x importing numpy, at most 1.5x expected"
    )
