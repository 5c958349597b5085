"""Whether a GPU can be used: every cause has its own words, nothing is imported for it, and nothing raises."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import gpu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A machine where everything is there, until a test takes something away."""
    state = SimpleNamespace(cupy=True, driver=True, starts=0, devices=[(9, 0)], nvrtc=True)
    find = importlib.util.find_spec

    def spec(name: str, package: str | None = None) -> Any:
        if name == "cupy":
            return state.cupy or None
        return find(name, package)

    def of(pointer: Any) -> Any:
        return pointer._obj

    def count(pointer: Any) -> int:
        of(pointer).value = len(state.devices)
        return 0

    def device(pointer: Any, number: int) -> int:
        of(pointer).value = number
        return 0

    def attribute(pointer: Any, which: int, number: Any) -> int:
        of(pointer).value = state.devices[number.value][which - 75]
        return 0

    def driver() -> Any:
        if not state.driver:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return SimpleNamespace(
            cuInit=lambda flags: state.starts,
            cuDeviceGetCount=count,
            cuDeviceGet=device,
            cuDeviceGetAttribute=attribute,
        )

    monkeypatch.setattr(importlib.util, "find_spec", spec)
    monkeypatch.setattr(gpu, "_driver", driver)
    monkeypatch.setattr(gpu, "nvrtc", lambda: ctypes.CDLL(None) if state.nvrtc else None)
    gpu.missing.cache_clear()
    yield state
    gpu.missing.cache_clear()


def test_all_is_there(machine: Any) -> None:
    assert gpu.missing() is None
    assert fc.backends()["cupy"] == "available"


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ({"cupy": False}, "CuPy is not installed; pip install 'fastconv[cuda13]'"),
        ({"driver": False}, "no NVIDIA driver"),
        ({"starts": 100}, "finds no device"),
        ({"devices": []}, "finds no device"),
        ({"starts": 999}, "cuInit says 999"),
        ({"devices": [(7, 5)]}, "compute capability 7.5, needs 8.0"),
        ({"nvrtc": False}, "NVRTC, which compiles the kernels, is not found; pip install"),
    ],
    ids=["cupy", "driver", "device", "empty", "broken", "old", "nvrtc"],
)
def test_the_cause_is_named(machine: Any, taken: dict[str, Any], words: str) -> None:
    vars(machine).update(taken)
    assert words in str(gpu.missing())
    assert words in fc.backends()["cupy"]
    x = np.ones((1, 1, 3, 3), "f4")
    with pytest.raises(fc.BackendUnavailable) as refused:
        fc.conv2d(x, x, backend="cupy")
    assert words in str(refused.value)
    assert str(refused.value).startswith("backend: 'cupy' is not available: ")


def test_an_old_device_beside_a_young_one_is_no_hindrance(machine: Any) -> None:
    machine.devices = [(6, 1), (8, 6)]
    assert gpu.missing() is None


def test_it_is_asked_once(machine: Any) -> None:
    assert gpu.missing() is None
    machine.cupy = False
    assert gpu.missing() is None


def test_auto_goes_by_the_arrays_not_by_the_device(machine: Any) -> None:
    x = np.ones((1, 1, 3, 3), "f4")
    assert fc.explain(lambda: fc.conv2d(x, x)).backend == "numba"


def test_nvrtc_is_found_or_none() -> None:
    """Whatever this machine has: a library with NVRTC's functions, or the answer None."""
    found = gpu.nvrtc()
    assert found is None or hasattr(found, "nvrtcCompileProgram")
