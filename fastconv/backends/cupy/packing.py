"""Operands copied ahead of a product on tensor cores, so that neighbours in its sum are neighbours in memory.

Weights in the order they are summed, and 16-bit images in C order with their channels last. Both copies lie in scratch.
"""

from __future__ import annotations

import math

import numpy as np

from fastconv.backends.cupy.geometry import (
    AXES,
    COUNT,
    DIGIT,
    DIGITS,
    DIVISOR,
    ELEMENT_THREADS,
    Axis,
    check_counts,
    divisor,
    fill,
    lifted,
    tiles,
    volume,
)
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, View
from fastconv.backends.cupy.pooling import BANDWIDTH
from fastconv.backends.cupy.product import VECTOR_BYTES, Choice, Placed, Shape, pixels_of, vector_of
from fastconv.spec import DTYPES, ConvSpec, Sizes

PACKED_WEIGHT = np.dtype(
    [
        *((name, "u8") for name in ("weight", "result")),
        *((name, "i8") for name in ("group", "row", "outer", "inner")),
        *((name, "i4") for name in ("count", "vector")),
        *((name, DIVISOR) for name in ("rows", "outers", "inners")),
    ],
    align=True,
)

TURNED_IMAGES = np.dtype(
    [
        *((name, "u8") for name in ("images", "result")),
        ("channel", "i8"),
        *((name, "i4") for name in ("channels", "columns", "vector")),
        ("tiles", DIVISOR),
        ("column", DIGIT, DIGITS),
    ],
    align=True,
)

# Channels and positions of the square that a block turns.
TURNED = 64

# What going along k takes where images are gathered number by number, for one of whole vectors, and seconds of one more
# launch in a row, on an H200.
GATHERED = 2.7
LAUNCH = 3e-6


def packed_bytes(spec: ConvSpec, limit: int | None) -> int:
    """Bytes of the packed weight; 0 where the limit holds none."""
    nbytes = volume(spec.weight_shape) * DTYPES[spec.dtype].itemsize
    return nbytes if limit is None or nbytes <= limit else 0


def packed_weight(
    spec: ConvSpec, offset: int, *, of_gradient: bool = False, channels_last: bool = True
) -> Launch:
    """The launch that writes the weight, what is summed last, to `offset` bytes of the workspace.

    Channels are inner to taps with `channels_last`, and outer without.
    """
    out_channels, in_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    elements, taps = volume(spec.weight_shape), volume(spec.kernel_size)
    check_counts(**{"elements of the weight": elements})
    # How many of them there are, and elements of the weight from one to the next.
    row, channel, tap = (out_channels, in_channels * taps), (in_channels, taps), (taps, 1)
    if of_gradient:
        row, channel = channel, row
    outer, inner = (tap, channel) if channels_last else (channel, tap)
    whole = numbers_of_vector(spec.dtype)
    vector = 1 if inner[0] % whole else whole
    return Launch(
        kernel=Kernel("pack_weight.cu", "pack_weight", (("IN", spec.dtype),)),
        grid=tiles(elements, ELEMENT_THREADS * vector),
        block=ELEMENT_THREADS,
        params=fill(
            PACKED_WEIGHT,
            group=out_channels * in_channels * taps,
            row=row[1],
            outer=outer[1],
            inner=inner[1],
            count=elements,
            vector=vector,
            rows=divisor(row[0]),
            outers=divisor(outer[0]),
            inners=divisor(inner[0]),
        ),
        addresses=(Address("weight", 1), Address("result", WORKSPACE, offset)),
    )


def numbers_of_vector(dtype: str) -> int:
    """How many numbers of this type one copy brings."""
    return VECTOR_BYTES // DTYPES[dtype].itemsize


def in_vectors(x: View, dtype: str) -> bool:
    """Whether every position's channels begin at a multiple of a vector."""
    vector, steps = numbers_of_vector(dtype), (x.strides[0], *x.strides[2:])
    return x.aligned and all(step % vector == 0 for step in steps)


def turned_bytes(shape: Sizes, dtype: str, gain: float, limit: int | None) -> int:
    """Bytes of 16-bit images of this shape in another order; 0 where the limit holds none, or where the copy does not pay.

    Parameters
    ----------
    gain : float
        Seconds a product that reads whole vectors takes less than one that gathers number by number.
    """
    itemsize = DTYPES[dtype].itemsize
    nbytes = volume(shape) * itemsize
    counted = volume(shape) // max(shape[1], 1) <= COUNT
    pays = itemsize == 2 and counted and turning(nbytes) < gain
    return nbytes if pays and (limit is None or nbytes <= limit) else 0


def turning(nbytes: int) -> float:
    """Seconds it takes to turn so many bytes."""
    return LAUNCH + 2 * nbytes / BANDWIDTH


def gathering(dtype: str, shape: Shape, choice: Choice) -> float:
    """Seconds of a product of these tiles whose images are gathered; the rates of 32 bits are of such."""
    return choice.seconds + (GATHERED - 1) * choice.along(shape) * (DTYPES[dtype].itemsize == 2)


def told(turned: int) -> str:
    """What is said of it in a plan's note."""
    return ", of images in C order a copy with channels last" if turned else ""


def left_of(limit: int | None, nbytes: int) -> int | None:
    """What a limit leaves beside so many bytes."""
    return None if limit is None else limit - nbytes


def turned_images(shape: Sizes, dtype: str, images: View, offset: int) -> tuple[Launch, View]:
    """The launch that writes operand 0, images of this shape, to `offset` bytes of the workspace, and how they lie there."""
    batch, channels, *sizes = lifted(shape, 1)
    xs, columns = lifted(images.strides, 0), batch * math.prod(sizes)
    axes = [Axis(1, size, 0, 1, 0, 0) for size in sizes]
    digits = pixels_of(axes, batch, (0,) * (1 + AXES), (xs[0], *xs[2:]), linear=True)
    across = tiles(channels, TURNED)
    launch = Launch(
        kernel=Kernel("channels_last.cu", "channels_last", ()),
        grid=across * tiles(columns, TURNED),
        block=ELEMENT_THREADS,
        params=fill(
            TURNED_IMAGES,
            channel=xs[1],
            channels=channels,
            columns=columns,
            vector=vector_of(digits, Placed(0, 0, row=xs[1], aligned=images.aligned), dtype),
            tiles=divisor(across),
            column=[digit.row() for digit in digits],
        ),
        addresses=(Address("images", 0), Address("result", WORKSPACE, offset)),
    )
    inner = [channels * volume(shape[axis + 1 :]) for axis in range(2, len(shape))]
    return launch, View((channels * math.prod(sizes), 1, *inner), True)
