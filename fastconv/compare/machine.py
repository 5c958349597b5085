"""The machine a comparison ran on: what it is, and how fast it can possibly be."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from fastconv.threads import available_cpus, get_num_threads

PACKAGES = ("fastconv", "numpy", "scipy", "ml_dtypes", "numba", "cupy", "torch", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader needs to judge the numbers.

    Attributes
    ----------
    cpu, system, python : str
    cpus, threads : int
        CPUs the process may use, and threads the run was allowed.
    blas : str
        Library NumPy multiplies with.
    packages : dict
        Versions of what is installed.
    peak : float
        float32 operations per second of the best of several 1024 x 1024 matrix products.
    bandwidth : float
        Bytes read plus written per second of the best of several 128 MB array copies.
    """

    cpu: str
    system: str
    python: str
    cpus: int
    threads: int
    blas: str
    packages: dict[str, str]
    peak: float
    bandwidth: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def cpu_name() -> str:
    """The processor's own name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Version of every package here that matters to a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def blas_name() -> str:
    """The BLAS NumPy was built with, and the kernels it chose."""
    names = [
        f"{row['internal_api']} {row.get('version') or ''} {row.get('architecture') or ''}".strip()
        for row in threadpool_info()
        if row["user_api"] == "blas"
    ]
    return ", ".join(dict.fromkeys(names)) or "unknown"


def _best(work: Any, rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measured_peak(size: int = 1024) -> float:
    """float32 operations per second in a matrix product, with the threads a run may use."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    out = np.empty_like(a)
    with threadpool_limits(limits=get_num_threads(), user_api="blas"):
        return 2 * size**3 / _best(lambda: np.matmul(a, a, out=out))


def measured_bandwidth(nbytes: int = 128 << 20) -> float:
    """Bytes per second, read plus written, when NumPy copies an array larger than any cache."""
    source = np.ones(nbytes // 8)
    target = np.empty_like(source)
    return 2 * nbytes / _best(lambda: np.copyto(target, source))


def describe() -> Machine:
    """Measure and describe this machine; about half a second."""
    return Machine(
        cpu=cpu_name(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpus=available_cpus(),
        threads=get_num_threads(),
        blas=blas_name(),
        packages=versions(),
        peak=measured_peak(),
        bandwidth=measured_bandwidth(),
    )
