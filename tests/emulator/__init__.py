"""The CuPy engine without a GPU: its CUDA sources compiled by g++ over ``shim.h``, its programs run on NumPy arrays.

``backend()`` makes a backend of it, with the CuPy engine's own planners, that everything in ``fastconv.testing`` takes.
It says nothing about speed, bank conflicts, or how CuPy hands over a kernel's argument.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from fastconv import disk
from fastconv.backends import Planner, Run, cupy
from fastconv.backends.cupy import graph, packing, product
from fastconv.backends.cupy.launch import WORKSPACE, Fill, Graph, Kernel, Launch, Operand, Program, view
from fastconv.backends.cupy.product import WarpgroupTile
from fastconv.backends.cupy.run import OnDevice
from fastconv.plan import plan as planner
from fastconv.testing import numpy_dtype

__all__ = ["Build", "at_any_cost", "backend", "build", "missing", "run"]

HERE = Path(__file__).parent
KERNELS = Path(cupy.__file__).parent / "kernels"

# Optimised enough to run, little enough to compile in half a second.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-w")


class Build(NamedTuple):
    """How kernels are built: where their sources are, and more flags for g++; and whether as for compute capability 9.0."""

    folder: Path = KERNELS
    flags: tuple[str, ...] = ()
    hopper: bool = False


AS_THEY_ARE = Build()


@cache
def missing() -> str | None:
    """Why kernels cannot be emulated here, or None."""
    return None if shutil.which("g++") else "g++ is not installed, which compiles the kernels for the CPU"


def folder() -> Path:
    """Where compiled kernels are kept between runs of the tests."""
    return disk.root() / "fastconv-emulator"


@cache
def build(kernel: Kernel, how: Build = AS_THEY_ARE) -> Path:
    """The kernel as a shared library."""
    defines = [f"-D{name}={value}" for name, value in kernel.defines]
    source = f'-DSOURCE="{how.folder / kernel.source}"'
    command = [*defines, source, f"-DENTRY={kernel.name}", f"-I{how.folder}", str(HERE / "entry.cpp")]
    texts = [
        (how.folder / kernel.source).read_text(),
        *(h.read_text() for h in sorted(how.folder.glob("*.cuh"))),
    ]
    return compiled([*FLAGS, *how.flags, "-shared", *command, str(machine())], ".so", texts)


@cache
def machine() -> Path:
    """The scheduler, which all kernels share."""
    return compiled([*FLAGS, "-c", str(HERE / "machine.cpp")], ".o", ())


def compiled(arguments: Sequence[str], suffix: str, texts: Iterable[str]) -> Path:
    """What g++ makes of these arguments, unless it is there from another day."""
    digest = hashlib.sha256(repr(arguments).encode())
    for text in (*texts, *(path.read_text() for path in sorted(HERE.glob("*.[hc]*")))):
        digest.update(text.encode())
    path = folder() / f"{digest.hexdigest()[:32]}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        passing = path.with_suffix(f".{os.getpid()}.{os.urandom(4).hex()}.tmp")
        made = subprocess.run(
            ["g++", *arguments, "-o", str(passing)], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, f"{arguments}:\n{made.stderr}"
        passing.replace(path)
    return path


def build_all(kernels: Iterable[Kernel]) -> None:
    """Compile what is not yet compiled, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, kernels))


@cache
def entry(kernel: Kernel, how: Build = AS_THEY_ARE) -> Callable[..., None]:
    """The kernel, to be called with its struct, grid, block, shared bytes and a seed."""
    function = ctypes.CDLL(str(build(kernel, how))).emulate
    function.argtypes = [ctypes.c_void_p, *(ctypes.c_uint,) * 3, ctypes.c_ulonglong]
    function.restype = None
    return function


def run(program: Program, arrays: tuple[Any, ...], seed: int = 0, how: Build = AS_THEY_ARE) -> None:
    """Every step of a program on NumPy arrays; scratch begins as NaN."""
    scratch = np.full(program.workspace, 0xFF, np.uint8)
    places = [0 if array is None else array.ctypes.data for array in arrays]
    places.append(scratch.ctypes.data)
    for step in program.steps:
        if isinstance(step, Launch):
            params = step.params.copy()
            for field, array, offset in step.addresses:
                params[field] = (
                    places[array] + offset if array == WORKSPACE or arrays[array] is not None else 0
                )
            entry(step.kernel, how)(params.ctypes.data, step.grid, step.block, step.shared, seed)
        elif isinstance(step, Fill):
            ctypes.memset(places[step.array] + step.offset, step.byte, step.nbytes)
        elif isinstance(step, Graph):
            made = graph.built(step)
            own = np.empty(made.workspace, np.uint8)
            graph.execute(step, made, places, own.ctypes.data if made.workspace else 0)
        else:
            left, right, out = (
                _matrix(operand, arrays, scratch) for operand in (step.left, step.right, step.out)
            )
            np.matmul(left, right, out=out)


def _matrix(operand: Operand, arrays: tuple[Any, ...], scratch: Any) -> Any:
    memory = scratch if operand.array == WORKSPACE else arrays[operand.array]
    dtype = numpy_dtype(operand.dtype)
    strides = tuple(stride * dtype.itemsize for stride in operand.strides)
    span = dtype.itemsize + sum((n - 1) * step for n, step in zip(operand.shape, strides, strict=True))
    buffer = (ctypes.c_char * span).from_address(memory.ctypes.data + operand.offset)
    return np.ndarray(operand.shape, dtype, memoryview(buffer), strides=strides)


@contextmanager
def at_any_cost(*tiles: WarpgroupTile) -> Iterator[None]:
    """Images are turned and warpgroups multiply (these tiles, by default the smallest) wherever they may.

    Of small problems the estimates say otherwise.
    """
    chosen = tuple(tile._replace(speed=1e18) for tile in tiles or product.warpgroup_tiles()[-1:])
    with ExitStack() as changed:
        changed.enter_context(patch.object(packing, "GATHERED", math.inf))
        for name in ("implicit_gemm_mma", "gradients"):  # a function of the package has the name of one
            module = sys.modules[f"fastconv.backends.cupy.{name}"]
            changed.enter_context(patch.object(module, "warpgroup_tiles", lambda: chosen))
        planner.cache_clear()
        yield
    planner.cache_clear()


class Emulated:
    """The ``call`` of a run, on NumPy arrays instead of CuPy's."""

    def __init__(self, given: OnDevice, how: Build) -> None:
        self.build = given.hopper if how.hopper else given.build
        self.how = how
        self.seed = 0

    def __call__(self, *arrays: Any) -> None:
        self.seed += 1
        views = (None if a is None else view(a.strides, a.itemsize, a.ctypes.data % 16 == 0) for a in arrays)
        run(self.build(*views), arrays, self.seed, self.how)


def emulated(planner: Planner, how: Build) -> Planner:
    """The planner of the CuPy engine whose plans run here."""

    @wraps(planner)
    def plan(spec: Any, precision: str, workspace_limit: int | None) -> Run:
        made = planner(spec, precision, workspace_limit)
        assert isinstance(made.call, OnDevice)
        return replace(made, call=Emulated(made.call, how))

    return plan


def backend(how: Build = AS_THEY_ARE) -> Any:
    """What stands in for a backend's module."""
    return SimpleNamespace(
        PLANNERS={
            op: tuple(emulated(planner, how) for planner in planners)
            for op, planners in cupy.PLANNERS.items()
        },
        empty=lambda shape, dtype: np.empty(shape, numpy_dtype(dtype)),
    )
