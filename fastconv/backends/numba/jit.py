"""Compiling kernels, and keeping the machine code on disk.

A kernel is a factory: given an element type it returns ``work(worker, arguments)``, plain Numba code that takes
tasks one after the other until none is left (``next_task``). It is compiled as a C function without arrays in
its signature, so one compiled variant serves every layout, rank and size, and ``threads`` starts any of them
on any number of threads through one compiled loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from fastconv import disk

# IEEE arithmetic as written: no reassociation, so that a result does not depend on the compiler's mood.
# Division by zero is a float, not an exception, and indices count from zero only: kernels know their ranges.
OPTIONS: dict[str, Any] = {"nopython": True, "error_model": "numpy", "boundscheck": False}

# How many versions of the package keep their machine code on disk (about 2 MB each).
KEPT_VERSIONS = 3


# The types kernels compute in; everything else is cast.
REAL = ("float32", "float64")
COMPUTED = (*REAL, "int32", "int64")

KERNELS: list[Kernel] = []


class Kernel:
    """A kernel for every element type: compiled on first use, found on disk by later processes."""

    def __init__(
        self, make: Callable[[Any], Callable[[int, int], None]], dtypes: tuple[str, ...] = COMPUTED
    ) -> None:
        self.dtypes = dtypes
        KERNELS.append(self)
        self.__doc__ = make.__doc__
        self.__name__ = make.__name__
        self.make = make
        self._compiled: dict[str, Any] = {}
        self._addresses: dict[str, int] = {}

    def compile(self, dtype: str) -> Any:
        """The compiled C function ``void(int64 worker, int64 arguments)`` for elements of `dtype`."""
        with compiling:
            if dtype not in self._compiled:
                work = self.make(getattr(types, dtype))
                function: Any = CFunc(work, ((types.int64, types.int64), types.void), {}, dict(OPTIONS))
                function._cache = DiskCache(f"{self.__name__}_{dtype}")
                function.compile()
                self._compiled[dtype] = function
            return self._compiled[dtype]

    def address(self, dtype: str) -> int:
        """Where the compiled function for elements of `dtype` lies."""
        # Asked in every call: of the compiled function itself it takes three times as long.
        if (at := self._addresses.get(dtype)) is None:
            at = self._addresses[dtype] = int(self.compile(dtype).address)
        return at


# Numba's compiler holds one lock for everybody already; this one also guards our table.
compiling = threading.RLock()


def _after_fork() -> None:
    """The lock may have been held by a thread that a child does not have."""
    global compiling
    compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def source_stamp() -> str:
    """A digest of this backend's sources.

    Numba keys its own cache by the file of the outermost function alone: an intrinsic edited elsewhere would
    leave stale machine code behind.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where machine code of these sources is kept."""
    return disk.root() / f"fastconv-{source_stamp()}"


class DiskCache:
    """Machine code of one kernel on disk, one file for each target it was compiled for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _path(self, signature: Any, magic: Any) -> Path:
        key = hashlib.sha256(repr((signature, magic, sys.version_info[:2])).encode()).hexdigest()[:16]
        return cache_folder() / f"{self.name}-{key}.bin"

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled result, or None."""
        # All that machine code needs of Numba. Numba's own cache has it load every function it knows: 0.2 s.
        rtsys.initialize(target)
        data = disk.read(self._path(signature, target.codegen().magic_tuple()))
        if data is not None:
            with contextlib.suppress(Exception):  # foreign code: whatever it raises, there is a compiler
                return CompileResult._rebuild(target, *pickle.loads(data))
        _announce()
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compiled result, and forget all but the newest few versions of the package."""
        path = self._path(signature, result.codegen.magic_tuple())
        disk.write(path, dumps(result._reduce()))
        disk.keep_newest(path.parent.parent, f"fastconv-{'[0-9a-f]' * 16}", KEPT_VERSIONS)


_announced = False


def _announce() -> None:
    """Say once in a process why a first call takes seconds."""
    global _announced
    if not _announced:
        _announced = True
        sys.stderr.write(
            "fastconv: compiling CPU kernels for this machine, once (`fastconv warm` does it ahead)\n"
        )


def compiled(signature: Any, **options: Any) -> Callable[[Any], Any]:
    """numba.njit with our options and our cache."""

    def decorate(function: Any) -> Any:
        dispatcher = numba.njit(nogil=True, **OPTIONS_NJIT, **options)(function)
        dispatcher._cache = DiskCache(function.__name__)
        with compiling:
            dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


OPTIONS_NJIT = {name: value for name, value in OPTIONS.items() if name != "nopython"}
