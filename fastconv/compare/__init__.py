"""The main job: check every backend against the others, time it, measure its memory, and tell people.

Data flows one way: ``workloads`` (what) -> ``measure`` and ``memory`` (rows of numbers) -> ``report`` (words,
tables and charts). ``machine`` says how fast the machine can be at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastconv.backends import backends
from fastconv.compare import measure
from fastconv.compare.machine import Machine, describe
from fastconv.compare.measure import Progress, Row
from fastconv.compare.memory import tracker
from fastconv.compare.workloads import NETWORKS, Case, default, named, pictures, problems, with_gradients
from fastconv.testing import Agreement
from fastconv.threads import set_num_threads

__all__ = [
    "NETWORKS",
    "Case",
    "Comparison",
    "Row",
    "Slower",
    "compare",
    "default",
    "named",
    "pictures",
    "problems",
    "read",
    "slower",
]

FORMAT = 1


@dataclass(slots=True)
class Comparison:
    """One finished (or interrupted) run.

    Attributes
    ----------
    machine : Machine
    workload : str
    rows : list of Row
    checked, disagreements : int, list of str
        Comparisons with the definition, and the commands that repeat those that failed.
    tracker : str
        How memory was measured.
    absent : dict of str to str
        Backends that could not take part, each with the reason.
    seconds : float
    interrupted : bool
        Stopped by Ctrl-C: what had been measured by then is here.
    """

    machine: Machine
    workload: str
    rows: list[Row] = field(default_factory=list)
    checked: int = 0
    disagreements: list[str] = field(default_factory=list)
    tracker: str = ""
    absent: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether every backend agreed everywhere."""
        return not self.disagreements and all(row.agrees for row in self.rows)

    def as_json(self) -> str:
        """The run as JSON text, readable by :func:`read`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)


def read(path: Path) -> Comparison:
    """A run from the JSON file an earlier one wrote.

    Raises
    ------
    ValueError
        If the file cannot be read or is not such a run; the message says why.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("it was written by another version of fastconv")
        data["machine"] = Machine(**data["machine"])
        data["rows"] = [Row(**row) for row in data["rows"]]
        return Comparison(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"against: got {str(path)!r}, expected a JSON file of `fastconv compare` ({error})"
        ) from None


def compare(
    cases: Sequence[Case] | Callable[[], Sequence[Case]],
    *,
    workload: str = "",
    only: Sequence[str] | None = None,
    repeat: int = 7,
    threads: int | None = None,
    gradients: bool = False,
    report: Callable[[float, float, str], None] = lambda done, total, text: None,
) -> Comparison:
    """Check, time and measure `cases`.

    Parameters
    ----------
    cases : sequence of Case, or a function that makes one
    workload : str
        What to call them in the report.
    only : sequence of str, optional
        Backends to compare; all available ones by default.
    repeat : int
        Timed calls of each candidate, at most.
    threads : int, optional
        Sets the number of threads for this process.
    gradients : bool
        Also compare the gradients of every case.
    report : callable
        Called as ``report(done, total, text)`` in estimated seconds.

    Returns
    -------
    Comparison
        After Ctrl-C with what had been measured so far.
    """
    begin = time.perf_counter()
    if threads is not None:
        set_num_threads(threads)
    report(0.0, 1.0, "measuring this machine")
    absent = {name: state for name, state in backends().items() if state != "available"}
    run = Comparison(describe(), workload, tracker=tracker(), absent={} if only else absent)
    progress = Progress(report)
    try:
        made = list(cases() if callable(cases) else cases)
        made = with_gradients(made) if gradients else made
        progress.total = measure.estimate(made, only)
        agreements: list[Agreement] = measure.cross_check(made, only, progress)
        run.checked = len(agreements)
        run.disagreements = [f"{a.repeat}  # {a.detail}" for a in agreements if not a.ok]
        for case in made:
            run.rows += measure.time_case(case, only, repeat, progress)
        for number, row in enumerate(measure.with_memory(list(run.rows), threads, progress)):
            run.rows[number] = row
    except KeyboardInterrupt:
        run.interrupted = True
    run.seconds = time.perf_counter() - begin
    return run


@dataclass(frozen=True, slots=True)
class Slower:
    """A row that takes longer than it did in an earlier run."""

    row: Row
    before: Row

    @property
    def ratio(self) -> float:
        """Seconds now over seconds then."""
        return self.row.seconds / self.before.seconds


def slower(now: Comparison, before: Comparison, by: float) -> list[Slower]:
    """Rows of `now` whose lower quartile is more than `by` (0.1 is 10 %) above the earlier median."""
    earlier = {row.key: row for row in before.rows}
    pairs = [Slower(row, earlier[row.key]) for row in now.rows if row.key in earlier]
    return [pair for pair in pairs if pair.row.low > (1 + by) * pair.before.seconds]
