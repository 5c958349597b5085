"""What each algorithm takes on this machine, for ``algorithm="measure"``: timed once, then remembered.

Plans are made without arrays, so what is timed works on operands of its own and never meets a caller's. The threads a
call may use are no part of the question: the first answer holds for any number of them, or their number would change
which algorithm runs, and with it the bits of the result.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import disk
from fastconv.spec import Shape

# Answers that are kept, in a process and on disk (100 bytes each).
REMEMBERED = 1024

# A turn is calls worth a millisecond. Rounds of turns end after half a second, but a median needs three.
TURN = 1e-3
SECONDS = 0.5
LEAST, MOST = 3, 15

# What takes this many times the fastest in its first turn gets no other.
HOPELESS = 3

# Values operands are filled with over and over: a prime number of them, so that no two rows are alike.
VALUES = 16381

Call = Callable[[], Any]

_known: dict[Path, dict[str, float]] = {}
_measuring = threading.Lock()


def _after_fork() -> None:
    """Whoever held the lock is not in the child."""
    global _measuring
    _measuring = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def folder() -> Path:
    """Where answers are kept, one file for each."""
    return disk.root() / "fastconv-measured"


def seconds(
    question: object, shapes: Sequence[Shape], candidates: Mapping[str, Callable[[Sequence[Any]], Call]]
) -> dict[str, float]:
    """Median seconds of a call of each candidate: as remembered, else measured now.

    Parameters
    ----------
    question : object
        Its ``repr`` says all that the candidates follow from.
    shapes : sequence of Shape
        Of the operands.
    candidates : Mapping
        Algorithms' names; each makes a call of such operands.
    """
    key = hashlib.sha256(f"{question!r} {_stamp()}".encode()).hexdigest()
    path = folder() / f"{key[:32]}.json"
    with _measuring:  # one at a time, or each would measure the other
        found = _known.get(path) or json.loads(disk.read(path) or "{}")
        if found.keys() != candidates.keys():
            operands = [_filled(shape) for shape in shapes]
            found = _in_turns({name: candidate(operands) for name, candidate in candidates.items()})
            disk.write(path, json.dumps(found).encode())
            disk.keep_newest(folder(), "*", REMEMBERED)
        _known[path] = found
        while len(_known) > REMEMBERED:
            _known.pop(next(iter(_known)))
    return found


@cache
def _stamp() -> str:
    """What times are true of: the backends' sources, what they compute with, and this processor."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.joinpath("backends").rglob("*")):
        if source.suffix in (".py", ".cu", ".cuh"):
            digest.update(source.read_bytes())
    for package in ("numpy", "scipy", "numba"):
        digest.update(version(package).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()


def _processor() -> str:
    """Its name and what it can do: those of virtual machines share a name."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(
        re.findall(r"^(?:vendor_id|cpu family|model|stepping|flags|CPU|Features).*", first, re.M)
    )


def _filled(shape: Shape) -> Any:
    """Numbers like those people have, and small enough for every type; as indices, the first of each plane."""
    if shape.dtype == "bfloat16":
        importlib.import_module("ml_dtypes")
    if shape.name == "indices":
        return np.zeros(shape.shape, shape.dtype)
    values = np.random.default_rng(0).standard_normal(VALUES)
    return np.resize(np.abs(values).astype(shape.dtype), shape.shape)


def _in_turns(calls: Mapping[str, Call]) -> dict[str, float]:
    for call in calls.values():  # compiles kernels and wakes threads
        call()
    turns = {name: [_turn(call)] for name, call in calls.items()}
    limit = HOPELESS * min(first for (first,) in turns.values())
    contenders = [name for name, (first,) in turns.items() if first <= limit]
    begin = time.perf_counter()
    for done in range(MOST):
        if done >= LEAST and time.perf_counter() - begin > SECONDS:
            break
        for name in contenders:
            turns[name].append(_turn(calls[name]))
    return {name: float(np.median(some)) for name, some in turns.items()}


def _turn(call: Call) -> float:
    """Seconds of one call: the mean of as many as take a millisecond."""
    begin = time.perf_counter()
    count, spent = 0, 0.0
    while spent < TURN:
        call()
        count += 1
        spent = time.perf_counter() - begin
    return spent / count
