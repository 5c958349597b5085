"""Peak memory of a plan, measured in a clean process by a tracker that sees native allocations.

``peaks`` starts a new Python that runs :func:`main`, hands it one request after another, and reads one
number each: the most bytes that were allocated above operands and results while the plan ran. With memray
every malloc and mmap counts, NumPy's, SciPy's and BLAS's alike. Without it the process's high-water mark has
to do: then each request gets a process of its own, and pages touched by the warm-up hide what they can.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastconv.backends import owner, put
from fastconv.plan import plan
from fastconv.spec import Op, parse
from fastconv.testing import operands, poisoned
from fastconv.threads import set_num_threads

# Untracked calls first, fewer of slow ones: a thread's first product makes BLAS allocate 32 MB it keeps for ever.
WARM_UP, WARM_SECONDS = 4, 0.5

# Tracked calls, fewer of slow ones. The second largest counts: threads do not always reach their peaks at the
# same moment, so the largest are the truest; but now and then Python opens a 1 MB arena for its own objects.
ROUNDS, SLOW_ROUNDS, SLOW_SECONDS = 9, 3, 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """One plan to measure, in words a pipe can carry."""

    problem: str
    op: str
    backend: str
    algorithm: str
    workspace_limit: int | None = None
    threads: int | None = None


def tracker() -> str:
    """How peaks are measured here: the name goes into the report."""
    if importlib.util.find_spec("memray"):
        return "memray (every native allocation)"
    return "process high-water mark (memray is not installed)"


def peaks(requests: Sequence[Request]) -> Iterator[int | None]:
    """The measured peak of each request in turn; None where it could not be measured.

    Yields
    ------
    int or None
        Bytes above operands and results.
    """
    groups = [requests] if importlib.util.find_spec("memray") else [[request] for request in requests]
    for group in groups:
        process = subprocess.Popen(
            [sys.executable, "-c", "from fastconv.compare.memory import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for request in group:
                process.stdin.write(json.dumps(asdict(request)) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                yield json.loads(answer) if answer else None
        finally:
            process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()


def _prepared_call(request: Request) -> Callable[[], Any]:
    if request.threads is not None:
        set_num_threads(request.threads)
    spec, op = parse(request.problem), Op(request.op)
    made = plan(spec, op, request.backend, request.algorithm, "default", request.workspace_limit)
    given = tuple(put(request.backend, array) for array in operands(spec, op))
    shapes = spec.shapes(op)[len(given) :]
    outs = tuple(put(request.backend, poisoned(shape)) for shape in shapes)
    out = outs if len(outs) == 2 else outs[0]
    return lambda: made(*given, out=out)


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that were allocated at a time by `call`, which is called often."""
    return (_by_memray if importlib.util.find_spec("memray") else _by_high_water)(call)


def _by_pool(call: Callable[[], Any]) -> int:
    """The most bytes of the device's memory: what a pool of its own has grown to."""
    import cupy

    call()  # loads kernels
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        call()
    return int(pool.total_bytes())


def _by_memray(call: Callable[[], Any]) -> int:
    import memray

    start = time.perf_counter()
    for _ in range(WARM_UP):
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
        slow = end - begin > SLOW_SECONDS
        if end - start > WARM_SECONDS:
            break
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(SLOW_ROUNDS if slow else ROUNDS):
            path = Path(folder) / f"{number}.bin"
            with memray.Tracker(path):
                call()
            found.append(int(memray.FileReader(path).metadata.peak_memory))
    return sorted(found)[-2]


def _by_high_water(call: Callable[[], Any]) -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def main() -> None:
    """Answer requests from standard input until it closes."""
    for line in sys.stdin:
        request = Request(**json.loads(line))
        by = peak if owner(request.backend) == "numpy" else _by_pool
        answer = by(_prepared_call(request))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
