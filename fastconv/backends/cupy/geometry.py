"""The structs of ``kernels/*.cu*`` as NumPy types, and how a spec fills them.

Lower ranks have leading axes of one element: a kernel knows three axes, d, h and w. Distances are counted in elements
here and in the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Unsupported
from fastconv.spec import PADDING_MODES, Sizes

AXES = 3
DIGITS = 4

# Positions, rows and columns are 32-bit in the kernels, which keeps their index arithmetic out of the way of loads.
COUNT = 2**31 - 1

DIVISOR = np.dtype([("divisor", "u4"), ("magic", "u4"), ("shift", "u4")])
DIGIT = np.dtype(
    [("radix", DIVISOR), ("bit", "u4"), ("step", "i4", AXES), ("gathered", "i8"), ("other", "i8")], align=True
)


BOX = np.dtype([("axis", DIVISOR, AXES), ("channels", DIVISOR)], align=True)

# Threads of a block that makes one element a thread.
ELEMENT_THREADS = 256


class Digit(NamedTuple):
    """One digit of an index, see ``geometry.cuh``."""

    radix: int
    step: tuple[int, int, int] = (0, 0, 0)
    gathered: int = 0
    other: int = 0
    bit: int = 0

    def row(self) -> tuple[Any, ...]:
        """As an element of ``DIGIT``."""
        return divisor(self.radix), self.bit, self.step, self.gathered, self.other


def divisor(number: int) -> tuple[int, int, int]:
    """What ``divide`` multiplies and shifts by: exact for every numerator under 2**31.

    With ``2**l >= number`` and ``magic = ceil(2**(31 + l) / number)``, ``magic * number`` passes ``2**(31 + l)`` by
    less than ``2**l``, so ``n * magic / 2**(31 + l)`` passes ``n / number`` by less than ``1 / number``.
    """
    if number == 1:
        return 1, 0, 0
    shift = (number - 1).bit_length()
    return number, -(-(1 << (31 + shift)) // number), shift - 1


def lifted(values: Sequence[int], filler: int) -> tuple[int, ...]:
    """Batch, channels and three axes from an array's shape or strides of lower rank."""
    head, axes = tuple(values[:2]), tuple(values[2:])
    return (*head, *(filler,) * (AXES - len(axes)), *axes)


def padding(mode: str) -> int:
    """The mode's number in ``gather.cuh``."""
    return PADDING_MODES.index(mode)


# The number there of zeros that are found by bits.
MASKED = len(PADDING_MODES)


class Axis(NamedTuple):
    """How a gathered array is read along one axis: position ``start + column * step + row * tap``."""

    size: int
    columns: int
    step: int
    taps: int
    tap: int
    start: int


def fill(dtype: np.dtype[Any], **values: Any) -> np.ndarray[Any, Any]:
    """A struct by value: an array of no axes, read-only."""
    struct = np.zeros((), dtype)
    for name, value in values.items():
        struct[name] = value
    struct.flags.writeable = False
    return struct


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of an array of this shape in C order, lifted."""
    return lifted([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], 0)


def box(shape: Sequence[int]) -> tuple[Any, ...]:
    """An element of ``BOX``: how the numbers of an array's elements fall apart."""
    _, channels, *axes = lifted(shape, 1)
    return [divisor(size) for size in axes], divisor(channels)


def portions(batch: int, images: int) -> Iterator[tuple[int, int]]:
    """(first, count) of every portion of at most so many images."""
    for begin in range(0, batch, max(images, 1)):
        yield begin, min(images, batch - begin)


def images_at_once(batch: int, per_image: int, scratch: int, limit: int | None) -> int:
    """How many images one launch takes: their elements are counted in 31 bits, and `limit` holds their scratch.

    Raises
    ------
    Unsupported
        If it is less than one.
    """
    check_counts(**{"elements of an image": per_image})
    images = min(batch, COUNT // max(per_image, 1))
    if limit is not None and scratch:
        if batch and scratch > limit:
            raise Unsupported(f"needs {scratch} bytes of scratch for one image", workspace=scratch)
        images = min(images, limit // scratch)
    return images


def check_counts(**counts: int) -> None:
    """Decline what 32 bits cannot count."""
    for name, count in counts.items():
        if count > COUNT:
            raise Unsupported(f"{name} are {count}, needs at most 2**31 - 1")


def tiles(count: int, size: int) -> int:
    """How many tiles of `size` cover `count`."""
    return -(-count // size)


def volume(sizes: Sizes) -> int:
    """Positions of a box."""
    return math.prod(sizes)
