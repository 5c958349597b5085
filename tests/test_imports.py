"""Importing fastconv is cheap and loads nothing that a backend does not need."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

from fastconv.backends import backends

HEAVY = (
    "numba",
    "cupy",
    "cudnn",
    "scipy",
    "matplotlib",
    "torch",
    "ml_dtypes",
    "sklearn",
    "rich",
    "typer",
    "plotly",
)


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


def test_networks_load_nothing_heavy_either() -> None:
    """No progress bar before something is fitted, no scikit-learn before the digits, no numba before an image."""
    unwanted = (*HEAVY, "safetensors")
    code = f"import sys; from fastconv import nn; nn.lenet5(); print([m for m in {unwanted!r} if m in sys.modules])"
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


@pytest.mark.parametrize("name", [name for name, state in backends().items() if state == "available"])
def test_each_backend_loads_only_what_it_needs(name: str) -> None:
    """Loading a backend and computing float32 on it brings in no other engine, no plots, no framework."""
    own = {"numba": ("numba", "scipy")}.get(name, (name,))  # Numba looks for SciPy's BLAS
    unwanted = [module for module in HEAVY if module not in own]
    code = (
        "import sys, numpy as np, fastconv as fc; x = np.ones((1, 1, 4, 4), 'f4'); "
        f"fc.conv2d(x, x[:, :, :2, :2], backend={name!r}); fc.max_pool2d(x, 2, backend={name!r}); "
        f"print([m for m in {unwanted!r} if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    "module",
    ["fastconv", "fastconv.grad", "fastconv.nn", "fastconv.spec", "fastconv.plan", "fastconv.backends"],
)
def test_each_module_imports_first(module: str) -> None:
    """No import depends on another having come before it, and none touches a backend."""
    code = f"import sys, {module}; print([m for m in sys.modules if m.startswith('fastconv.backends.')])"
    assert run(code).strip() == "[]"


def test_listing_backends_and_preparing_loads_none() -> None:
    code = (
        "import sys, numpy as np, fastconv as fc; fc.backends(); fc.set_backend('im2col'); "
        "fc.prepare_conv1d(np.ones((1, 1, 3))); "
        f"print([m for m in sys.modules if m.startswith('fastconv.backends.') or m in {HEAVY!r}])"
    )
    assert run(code).strip() == "[]"


def test_every_public_name_is_there() -> None:
    """DESIGN's public surface, whole: each name for each rank, forward and gradient."""
    import fastconv as fc

    pools = ["max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool", "max_unpool"]
    for rank in (1, 2, 3):
        for name in ("conv", "conv_transpose", *pools, "prepare_conv", "prepare_conv_transpose"):
            function = getattr(fc, f"{name}{rank}d")
            assert function.__name__ == f"{name}{rank}d"
            assert function.__name__ in fc.__all__
            assert not any(word in function.__doc__ for word in ("{n}", "{size}", "{out}", "{kernel}"))
        for name in pools:
            assert callable(getattr(fc.grad, f"{name}{rank}d"))
        for name in ("conv", "conv_transpose"):
            for operand in ("input", "weight"):
                assert callable(getattr(fc.grad, f"{name}{rank}d_{operand}"))
    others = [
        "unfold",
        "fold",
        "explain",
        "backends",
        "set_backend",
        "get_backend",
        "use_backend",
        "set_num_threads",
        "get_num_threads",
    ]
    assert set(others) < set(fc.__all__)
    assert len(set(fc.__all__)) == len(fc.__all__)
    assert all(hasattr(fc, name) for name in fc.__all__)
