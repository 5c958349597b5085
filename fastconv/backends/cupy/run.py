"""Running a CUDA plan on CuPy arrays: current device, current stream, current allocator.

Nothing here waits for the device. A layout's first call compiles and loads its kernels; every later one only fills
pointers into structs and launches, so it can be captured in a CUDA graph (the scratch then belongs to the graph's pool,
as any CuPy array does).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from fastconv.backends.cupy import compile as compiler
from fastconv.backends.cupy import graph
from fastconv.backends.cupy.launch import (
    WORKSPACE,
    Build,
    Fill,
    Graph,
    Kernel,
    Launch,
    Operand,
    Program,
    view,
)

Array = Any

# Bytes of dynamic shared memory a kernel gets without asking for more (CUDA's rule on every device).
MOST_SHARED = 48 * 1024

# Kernels that are loaded, by device and what was compiled: a few kilobytes each, and their variants are finite.
_loaded: dict[tuple[int, Kernel], Any] = {}


class OnDevice:
    """The ``call`` of a planner's run: finds the program for the arrays' layout and runs it.

    Attributes
    ----------
    build : callable
        The program for a layout. The emulation calls it too, and needs no GPU for it.
    """

    def __init__(self, build: Build) -> None:
        self.build = build

    def __call__(self, *arrays: Array) -> None:
        """Run on CuPy arrays: operands, a bias or None, results."""
        check_device(arrays)
        run(self.build(*(None if a is None else view(a, a.data.ptr) for a in arrays)), arrays)


def check_device(arrays: tuple[Array, ...]) -> None:
    """Refuse arrays of another device than the current one, where kernels run and scratch lies.

    Raises
    ------
    ValueError
    """
    import cupy

    current = cupy.cuda.runtime.getDevice()
    for array in arrays:
        if array is not None and array.device.id != current:
            raise ValueError(
                f"device: got an array of shape {array.shape} on device {array.device.id}, expected all on the current "
                f"one, {current}; compute inside `with cupy.cuda.Device({array.device.id}):`"
            )


def run(program: Program, arrays: tuple[Array, ...]) -> None:
    """Launch every step on the current stream."""
    import cupy

    scratch = cupy.cuda.alloc(program.workspace) if program.workspace else None
    places = [0 if array is None else array.data.ptr for array in arrays]
    places.append(scratch.ptr if scratch is not None else 0)  # numbered -1, WORKSPACE
    for step in program.steps:
        if isinstance(step, Launch):
            params = step.params.copy()
            for field, array, offset in step.addresses:
                params[field] = places[array] + offset
            function(step.kernel, step.shared)((step.grid,), (step.block,), (params,), shared_mem=step.shared)
        elif isinstance(step, Fill):
            cupy.cuda.runtime.memsetAsync(
                places[step.array] + step.offset, step.byte, step.nbytes, cupy.cuda.get_current_stream().ptr
            )
        elif isinstance(step, Graph):
            graph.run(step, places)
        else:
            left, right, out = (
                _matrix(operand, arrays, scratch) for operand in (step.left, step.right, step.out)
            )
            cupy.matmul(left, right, out=out)


def function(kernel: Kernel, shared: int) -> Any:
    """The loaded kernel on the current device, compiled the first time it is met."""
    import cupy

    device = cupy.cuda.Device()
    key = (device.id, kernel)
    found = _loaded.get(key)
    if found is None:
        code = compiler.cubin(kernel, compiler.architecture(device.compute_capability))
        found = _loaded[key] = load(code, kernel.name, shared)
    return found


def load(cubin: bytes, entry: str, shared: int) -> Any:
    """A kernel of this machine code; CuPy reads code that is compiled already from a file alone."""
    import cupy

    handle, name = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        found = cupy.RawModule(path=name).get_function(entry)
        found.compile()  # now, while the file is there; left to itself CuPy reads it at the first launch
        if shared > MOST_SHARED:
            found.max_dynamic_shared_size_bytes = shared
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()
    return found


def _matrix(operand: Operand, arrays: tuple[Array, ...], scratch: Any) -> Array:
    """The array an operand of a product names."""
    import cupy

    memory = scratch if operand.array == WORKSPACE else arrays[operand.array].data
    itemsize = cupy.dtype(operand.dtype).itemsize
    strides = tuple(stride * itemsize for stride in operand.strides)
    return cupy.ndarray(operand.shape, operand.dtype, memptr=memory + operand.offset, strides=strides)
