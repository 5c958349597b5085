"""What a CUDA plan is: plain Python values that an executor turns into launches. CuPy is not needed to make one.

A :class:`Program` is made from a spec and the layout of the arrays it will meet, and holds all but their addresses. Two
executors run it: ``run.py`` on CuPy arrays, and the emulation in ``tests/emulator`` on NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.spec import Op, Sizes

__all__ = [
    "WORKSPACE",
    "Address",
    "Build",
    "Fill",
    "Graph",
    "Kernel",
    "Launch",
    "Operand",
    "Product",
    "Program",
    "View",
    "view",
]

# The number of the array that is no operand: the program's own scratch.
WORKSPACE = -1

# Programs one plan keeps: one for each layout of its operands it has met.
KEPT_LAYOUTS = 64


class View(NamedTuple):
    """How one array lies in memory: strides in elements, and whether its first begins a line of 16 bytes."""

    strides: tuple[int, ...]
    aligned: bool

    @property
    def channels_last(self) -> bool:
        """Whether neighbours in memory are channels, not positions."""
        return self.strides[1] == 1 != self.strides[-1]


def view(strides: Sequence[int], itemsize: int, aligned: bool) -> View:
    """The layout of an array whose strides are given in bytes."""
    return View(tuple(stride // itemsize for stride in strides), aligned)


class Kernel(NamedTuple):
    """What is compiled: a file in ``kernels/``, the name of its entry, and what is compiled in."""

    source: str
    name: str
    defines: tuple[tuple[str, str | int], ...]

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(f'{key}={value}' for key, value in self.defines)}>"


class Address(NamedTuple):
    """A pointer an executor fills in: ``params[field] = address of arrays[array] + offset`` (bytes)."""

    field: str
    array: int
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel launch.

    Attributes
    ----------
    kernel : Kernel
    grid, block : int
        Blocks and threads in a block; all kernels count in one dimension.
    shared : int
        Bytes of dynamic shared memory.
    params : np.ndarray
        The kernel's one argument: an array of no axes and a structured type, pointers still zero.
    addresses : tuple of Address
        The pointers. An operand that is None leaves its pointer zero.
    """

    kernel: Kernel
    grid: int
    block: int
    params: np.ndarray[Any, Any]
    addresses: tuple[Address, ...]
    shared: int = 0


class Operand(NamedTuple):
    """An array of a :class:`Product` or :class:`Graph`: where it begins (bytes), its shape, its strides in elements."""

    array: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One matrix product of the array library: ``out = left @ right``, for all leading axes."""

    left: Operand
    right: Operand
    out: Operand


class Fill(NamedTuple):
    """Bytes of one value, on the stream of the launches around it."""

    array: int
    offset: int
    nbytes: int
    byte: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One convolution of cuDNN, or one of its gradients, as its graphs describe it.

    Attributes
    ----------
    op : Op
    operands : tuple of Operand
        Two, in the call's order. Shapes have two spatial axes or three, strides are positive, and every array begins
        at a multiple of 16 bytes.
    bias : Operand or None
        Of a forward convolution: it is added before the result is rounded.
    result : Operand
    stride, dilation, before, after : tuple of int
        Of the forward convolution; what it pads is zero.
    tensor_cores : bool
        Whether they may be used; in float32 they round operands to tf32.
    limit : int or None
        Bytes of scratch cuDNN may ask for, which it gets beside the program's own.
    """

    op: Op
    operands: tuple[Operand, Operand]
    bias: Operand | None
    result: Operand
    stride: Sizes
    dilation: Sizes
    before: Sizes
    after: Sizes
    tensor_cores: bool
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Steps that run one after the other on one stream, and the scratch they share."""

    steps: tuple[Launch | Product | Fill | Graph, ...]
    workspace: int = 0

    @property
    def launches(self) -> tuple[Launch, ...]:
        """The steps that launch kernels."""
        return tuple(step for step in self.steps if isinstance(step, Launch))


# From the layouts of a call's arrays, in the call's order, to its program; the layout of None is None.
Build = Callable[..., Program]


def kept(build: Build) -> Build:
    """`build`, remembering the programs of the last layouts."""
    return lru_cache(maxsize=KEPT_LAYOUTS)(build)
