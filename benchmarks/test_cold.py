"""What comes before a warm call: planning, a first call, packing the weights; and, of the GPU's, all but its kernels."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from benchmarks.selection import specs
from fastconv import api, recall, testing
from fastconv.backends import _BACKENDS, _Row, backends, owner
from fastconv.backends.cupy import run as executor
from fastconv.plan import plan
from fastconv.spec import ConvSpec, Op, Spec
from tests.emulator.device import Module, ndarray

NAMES = [
    n for n, state in backends().items() if state == "available" and owner(n) == "numpy" and n != "naive"
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [spec for spec in specs(metafunc.config) if isinstance(spec, ConvSpec)]
    metafunc.parametrize("spec", chosen, ids=str)


@pytest.mark.parametrize("backend", NAMES)
def test_planning(benchmark: Any, spec: Spec, backend: str) -> None:
    benchmark.group = f"planning {spec}"
    benchmark(plan.__wrapped__, spec, Op.CONV, backend)


@pytest.mark.parametrize("backend", NAMES)
def test_plan_pack_and_call(benchmark: Any, spec: Spec, backend: str) -> None:
    x, w = testing.operands(spec, Op.CONV)
    benchmark.group = f"cold {spec}"
    benchmark.pedantic(lambda: plan.__wrapped__(spec, Op.CONV, backend)(x, w), rounds=3)


def test_host_side_of_a_warm_call_on_a_gpu(
    benchmark: Any, spec: ConvSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the public function to the launch, with a stand-in for CuPy; CuPy's own allocation and launch are left out."""
    module = Module()
    made: dict[Any, ndarray] = {}
    module.ndarray = lambda shape, dtype: made.setdefault(shape, ndarray(np.empty(shape, dtype)))  # type: ignore[assignment,misc]
    module.cuda.driver.launchKernel = lambda *launch: None
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(_BACKENDS, "cupy", _Row("fastconv.backends.cupy", "cupy"))
    loaded = SimpleNamespace(kernel=SimpleNamespace(ptr=1))
    monkeypatch.setattr(executor, "function", lambda kernel, shared: loaded)
    monkeypatch.setattr(api, "_memory", recall.Memory())
    plan.cache_clear()
    x, w = map(ndarray, testing.operands(spec, Op.CONV))
    if any(before != after for before, after in spec.padding):
        pytest.skip("a call that names its padding as pairs is checked each time")
    pads = tuple(before for before, _ in spec.padding)
    benchmark.group = f"call {spec}"
    benchmark(getattr(fc, f"conv{spec.rank}d"), x, w, None, spec.stride, pads, spec.dilation, spec.groups)
    plan.cache_clear()
