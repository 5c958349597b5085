"""What of CuPy the engine uses, on the host: enough to run ``fastconv/backends/cupy/run.py`` and the functions above it.

Arrays live in NumPy's memory and are "launched" on the emulation. It shows that the executor hands over the right
pointers, structs, grids and files; what CuPy itself does with them is left to a machine with a GPU.
"""

from __future__ import annotations

import ctypes
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv.testing import numpy_dtype
from tests import emulator


class Memory:
    """A pointer, and what keeps its memory."""

    device_id = 0

    def __init__(self, ptr: int, keeps: Any) -> None:
        self.ptr, self.keeps = ptr, keeps

    def __add__(self, offset: int) -> Memory:
        return Memory(self.ptr + offset, self.keeps)


class ndarray:  # noqa: N801 - CuPy's name
    """An array that NumPy cannot read."""

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: Memory | None = None,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        if isinstance(shape, np.ndarray):
            self.host = shape
        elif memptr is None:
            self.host = np.empty(shape, dtype)
            self.host.reshape(-1).view(np.uint8)[:] = 0xFF
        else:
            assert strides is not None
            dtype = numpy_dtype(str(dtype))
            span = dtype.itemsize + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
            buffer = (ctypes.c_char * span).from_address(memptr.ptr)
            self.host = np.ndarray(shape, dtype, memoryview(buffer), strides=strides)
        # Found as fast as in CuPy, where they are fields in C, so that the engine's own time can be measured.
        self.shape, self.strides, self.dtype = self.host.shape, self.host.strides, self.host.dtype
        self.itemsize, self.data = self.host.itemsize, Memory(self.host.ctypes.data, self.host)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_function__(self, function: Any, kinds: Any, args: Any, keywords: Any) -> Any:
        assert function is np.may_share_memory  # which CuPy answers from addresses alone
        return function(*(array.host for array in args), **keywords)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.host, name)
        return (lambda *a, **k: up(value(*a, **k))) if callable(value) else up(value)

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(self.host[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[key] = value.host if isinstance(value, ndarray) else value

    def __int__(self) -> int:
        return int(self.host)


ndarray.__module__ = "cupy"


def up(value: Any) -> Any:
    """What NumPy gives back, kept on the device."""
    return ndarray(value) if isinstance(value, np.ndarray) else value


class RawModule:
    """A kernel that a file names."""

    def __init__(self, *, path: str) -> None:
        self.path = path

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self.path, name)


# Bytes of shared memory a kernel gets that asks for no more: what it declares, and what a launch gives.
UNASKED = 48 * 1024


class RawKernel:
    """Loaded lazily, as CuPy's are."""

    max_dynamic_shared_size_bytes = 0
    declared = 1024

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.run: Any = None

    def compile(self) -> None:
        kernel = pickle.loads(Path(self.path).read_bytes())
        assert kernel.name == self.name
        self.run = emulator.entry(kernel)

    @property
    def kernel(self) -> SimpleNamespace:
        """What the driver calls it by."""
        if self.run is None:
            self.compile()
        handle = id(self)
        _handles[handle] = self
        return SimpleNamespace(ptr=handle)


# Kernels by what the driver calls them by; they live as long.
_handles: dict[int, RawKernel] = {}


class _Context(threading.local):
    """Whether this thread has entered one."""

    entered = False


_context = _Context()


def _enter() -> tuple[int, int]:
    _context.entered = True
    return 0, 0


def launch(function: int, *given: int) -> None:
    """A launch by the driver: grid, block, shared memory, stream, addresses of arguments (here of one), extra."""
    blocks, grid_y, grid_z, threads, block_y, block_z, shared, stream, params, extra = given
    assert all(type(value) is int for value in (function, *given))
    assert (grid_y, grid_z, block_y, block_z, stream, extra) == (1, 1, 1, 1, 0, 0)
    assert 0 < blocks < 2**31
    assert 0 < threads <= 1024
    kernel = _handles[function]
    if not _context.entered:
        raise ValueError("CUDA_ERROR_INVALID_CONTEXT: this thread has none")
    if shared > kernel.max_dynamic_shared_size_bytes and shared + kernel.declared > UNASKED:
        raise ValueError(f"CUDA_ERROR_INVALID_VALUE: {shared} bytes of shared memory were not asked for")
    kernel.run(ctypes.c_void_p.from_address(params).value, blocks, threads, shared, 0)


class Module:
    """Stands in ``sys.modules`` for CuPy; counts what the pool would be asked for."""

    __spec__ = SimpleNamespace(_initializing=False)  # without it an import statement takes five times as long

    def __init__(self) -> None:
        self.ndarray, self.RawModule = ndarray, RawModule
        self.allocated: list[int] = []
        self.cuda = SimpleNamespace(
            alloc=self._alloc,
            Device=lambda: SimpleNamespace(id=0, compute_capability="90"),
            get_current_stream=lambda: SimpleNamespace(ptr=0, synchronize=lambda: None),
            driver=SimpleNamespace(launchKernel=launch),
            runtime=SimpleNamespace(
                memGetInfo=_enter,
                memsetAsync=lambda at, byte, count, stream: ctypes.memset(at, byte, count),
                getDevice=lambda: 0,
                getDeviceProperties=lambda number: {"name": b"a stand-in"},
            ),
        )

    def _alloc(self, nbytes: int) -> Memory:
        self.allocated.append(nbytes)
        scratch = np.full(nbytes, 0xFF, np.uint8)
        return Memory(scratch.ctypes.data, scratch)

    @staticmethod
    def asarray(array: Any) -> ndarray:
        return ndarray(array.copy(order="K"))

    @staticmethod
    def asnumpy(array: ndarray) -> Any:
        return array.host.copy(order="K")

    @staticmethod
    def dtype(name: str) -> np.dtype[Any]:
        return numpy_dtype(name)

    def matmul(self, left: ndarray, right: ndarray, out: ndarray) -> None:
        """Of more than two axes, as CuPy 14's takes memory for it: copies, and pointers where matrices are shared."""
        shared = left.shape[:-2] != right.shape[:-2]
        copied = [array for array in (left, right) if not array.host.flags.c_contiguous]
        taken = sum(array.host.nbytes for array in copied)
        self.allocated.append(taken + shared * 3 * 8 * (out.shape[0] + int(np.prod(out.shape[:-2]))))
        np.matmul(left.host, right.host, out=out.host)
