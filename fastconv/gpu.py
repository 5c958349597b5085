"""What the CuPy engine needs and whether it is there, found without importing CuPy: listing backends stays cheap.

Five things: CuPy, an NVIDIA driver, a device it can see, one that is young enough, and NVRTC, the compiler of kernels.
The first that is missing is named.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

__all__ = ["COMPUTE_CAPABILITY", "cudnn", "missing", "nvrtc"]

# The oldest devices the kernels are compiled for: Ampere.
COMPUTE_CAPABILITY = (8, 0)

INSTALL = "pip install 'fastconv[cuda13]' (or 'fastconv[cuda12]' for a driver older than 580)"

INSTALL_CUDNN = INSTALL.replace("[cuda", "[cudnn")

# cuda.h: results of cuInit, and the numbers of two attributes.
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76


@cache
def missing() -> str | None:
    """Why no kernel can run here and what to do about it, or None where one can. Never raises; asked once.

    It initialises the driver, as CuPy's first array does: a process that forks workers for a GPU does so before.
    """
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed; {INSTALL}"
    try:
        driver = _driver()
    except OSError:
        return "there is no NVIDIA driver (libcuda cannot be loaded); install one, or use a NumPy backend"
    result = driver.cuInit(0)
    if result == _NO_DEVICE:
        return "the NVIDIA driver finds no device (nvidia-smi lists them; CUDA_VISIBLE_DEVICES can hide them)"
    if result:
        return f"the NVIDIA driver does not start (cuInit says {result}); does nvidia-smi work?"
    best = max(_capabilities(driver), default=None)
    if best is None:
        return "the NVIDIA driver finds no device (nvidia-smi lists them; CUDA_VISIBLE_DEVICES can hide them)"
    if best < COMPUTE_CAPABILITY:
        return "the device has compute capability {}.{}, needs {}.{} (Ampere) or later".format(
            *best, *COMPUTE_CAPABILITY
        )
    if nvrtc() is None:
        return f"NVRTC, which compiles the kernels, is not found; {INSTALL}"
    return None


def cudnn() -> str | None:
    """Why the algorithm ``cudnn`` cannot be asked for and what to do about it, or None where it can."""
    if importlib.util.find_spec("cudnn") is None:
        return f"cuDNN's Python package is not installed; {INSTALL_CUDNN}"
    return missing()


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _capabilities(driver: ctypes.CDLL) -> list[tuple[int, int]]:
    """Compute capability of each device."""
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), number) == 0:
            driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
            found.append((major.value, minor.value))
    return found


@cache
def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler: from NVIDIA's own wheels, else a CUDA toolkit's, the newest first."""
    names = ("nvrtc64_1[23]0_0.dll",) if sys.platform == "win32" else ("libnvrtc.so.13", "libnvrtc.so.12")
    for path in [*_in_wheels(names), *_in_toolkit(names), *names]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def _in_wheels(names: tuple[str, ...]) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return [path for name in names for root in roots for path in sorted(root.glob(f"*/*/{name}"))]


def _in_toolkit(names: tuple[str, ...]) -> list[Path]:
    root = os.environ.get("CUDA_PATH")
    return [path for name in names for path in sorted(Path(root).glob(f"*/{name}"))] if root else []
