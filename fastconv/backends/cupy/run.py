"""Running a CUDA plan on CuPy arrays: current device, current stream, current allocator.

Nothing here waits for the device. A layout's first call compiles and loads its kernels; every later one only fills
pointers into structs and launches, so it can be captured in a CUDA graph (the scratch then belongs to the graph's pool,
as any CuPy array does); but for products of the array library, which CuPy refuses to call during a capture.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastconv.backends.cupy import compile as compiler
from fastconv.backends.cupy import graph
from fastconv.backends.cupy.launch import (
    KEPT_LAYOUTS,
    WORKSPACE,
    Build,
    Fill,
    Graph,
    Kernel,
    Launch,
    Operand,
    Product,
    Program,
    view,
)

Array = Any

# Kernels that are loaded, by device and what was compiled: a few kilobytes each, and their variants are finite.
_loaded: dict[tuple[int, Kernel], Any] = {}

# A step that is ready: it takes the call's arrays, their addresses (the scratch's last) and the scratch.
Step = Callable[[tuple[Array, ...], list[int], Any], None]


class OnDevice:
    """The ``call`` of a planner's run: finds the program for the arrays' layout and runs it.

    What a device and a layout decide is found once, its kernels included; a later call reads each array's address,
    fills them in and launches.

    Attributes
    ----------
    build : callable
        The program for a layout. The emulation calls it too, and needs no GPU for it.
    hopper : callable
        The same on compute capability 9.0, whose instructions no other has.
    """

    def __init__(self, build: Build, hopper: Build | None = None) -> None:
        self.build = build
        self.hopper = hopper or build
        self._ready: dict[tuple[Any, ...], tuple[int, tuple[Step, ...]]] = {}

    def __call__(self, *arrays: Array) -> None:
        """Run on CuPy arrays: operands, a bias or None, results.

        Raises
        ------
        ValueError
            If one lies on another device than the current one, where kernels run and scratch lies.
        """
        import cupy

        current = cupy.cuda.runtime.getDevice()
        if current not in _thread.entered:
            cupy.cuda.runtime.memGetInfo()
            _thread.entered.add(current)
        places: list[int] = []
        layouts: list[Any] = [current]
        for array in arrays:
            if array is None:
                places.append(0)
                layouts.append(None)
                continue
            data = array.data
            if data.device_id != current:
                raise ValueError(
                    f"device: got an array of shape {array.shape} on device {data.device_id}, expected all on the "
                    f"current one, {current}; compute inside `with cupy.cuda.Device({data.device_id}):`"
                )
            place = data.ptr
            places.append(place)
            layouts += array.strides, place % 16 == 0
        key = tuple(layouts)
        workspace, steps = self._ready.get(key) or self._make_ready(key, arrays, places)
        scratch = cupy.cuda.alloc(workspace) if workspace else None
        places.append(scratch.ptr if scratch is not None else 0)  # numbered -1, WORKSPACE
        for step in steps:
            step(arrays, places, scratch)

    def _make_ready(
        self, key: tuple[Any, ...], arrays: tuple[Array, ...], places: list[int]
    ) -> tuple[int, tuple[Step, ...]]:
        """The bytes of scratch and the steps for arrays laid out as these are, on the current device."""
        import cupy

        build = self.hopper if cupy.cuda.Device().compute_capability == "90" else self.build
        program: Program = build(
            *(
                None if array is None else view(array.strides, array.itemsize, place % 16 == 0)
                for array, place in zip(arrays, places, strict=True)
            )
        )
        if len(self._ready) >= KEPT_LAYOUTS:
            self._ready.clear()  # what takes time, programs and kernels, is kept elsewhere
        made = self._ready[key] = program.workspace, tuple(map(_ready, program.steps))
        return made


class _Thread(threading.local):
    """The devices whose context is this thread's already: the runtime sees to it, a launch by the driver does not."""

    def __init__(self) -> None:
        self.entered: set[int] = set()


_thread = _Thread()


def _ready(step: Launch | Product | Fill | Graph) -> Step:
    """A program's step as a function of addresses, its kernel loaded."""
    match step:
        case Launch():
            return _launching(step)
        case Fill():
            return _filling(step)
        case Graph():
            return lambda arrays, places, scratch: graph.run(step, places)
        case Product():
            return _multiplying(step)


class _Argument:
    """A kernel's one argument, a struct by value, as the driver wants it: the address of a list of addresses."""

    __slots__ = ("pointers", "where", "words")

    def __init__(self, template: bytes) -> None:
        self.words = (ctypes.c_uint64 * (len(template) // 8)).from_buffer_copy(template)
        self.pointers = ctypes.c_void_p(ctypes.addressof(self.words))
        self.where = ctypes.addressof(self.pointers)


def _launching(step: Launch) -> Step:
    """By the driver, past CuPy's own launch: that asks NumPy to describe the struct, field by field, which takes 40 us.

    An argument is one call's until the driver has copied it: other threads may launch meanwhile.
    """
    import cupy

    handle = function(step.kernel, step.shared).kernel.ptr  # loaded for good
    launch, stream = cupy.cuda.driver.launchKernel, cupy.cuda.get_current_stream
    grid, block, shared, template = step.grid, step.block, step.shared, step.params.tobytes()
    fields = step.params.dtype.fields
    assert fields is not None
    words = [(int(fields[field][1]) // 8, array, offset) for field, array, offset in step.addresses]
    free: list[_Argument] = []

    def run(arrays: tuple[Array, ...], places: list[int], scratch: Any) -> None:
        try:
            argument = free.pop()
        except IndexError:
            argument = _Argument(template)
        for word, array, offset in words:
            argument.words[word] = places[array] + offset
        launch(handle, grid, 1, 1, block, 1, 1, shared, stream().ptr, argument.where, 0)
        free.append(argument)

    return run


def _filling(step: Fill) -> Step:
    import cupy

    array, offset, nbytes, byte = step
    memset, stream = cupy.cuda.runtime.memsetAsync, cupy.cuda.get_current_stream

    def run(arrays: tuple[Array, ...], places: list[int], scratch: Any) -> None:
        memset(places[array] + offset, byte, nbytes, stream().ptr)

    return run


def _multiplying(step: Product) -> Step:
    import cupy

    def run(arrays: tuple[Array, ...], places: list[int], scratch: Any) -> None:
        left, right, out = (
            _matrix(operand, arrays, scratch) for operand in (step.left, step.right, step.out)
        )
        cupy.matmul(left, right, out=out)

    return run


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
        if shared:  # unasked a kernel gets 48 KiB, from which what it declares itself is taken
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
