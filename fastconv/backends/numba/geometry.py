"""A convolution on three axes, and how shapes are cut and lie in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from fastconv.spec import ConvSpec, Sizes

Triple = tuple[int, int, int]


def lift(values: Sizes, fill: int) -> Triple:
    """One entry for each of three axes: a missing depth or height is `fill`."""
    d, h, w = (fill,) * (3 - len(values)) + tuple(values)
    return d, h, w


class Geometry(NamedTuple):
    """A convolution lifted to three axes."""

    size: Triple
    out: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    before: Triple
    after: Triple
    c: int
    o: int

    @property
    def taps(self) -> int:
        """Elements of a kernel's window."""
        return math.prod(self.kernel)

    @property
    def K(self) -> int:  # noqa: N802 - the field's letter
        """Products of a sum."""
        return self.c * self.taps

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position reads the input at the same position and nothing else."""
        return self.taps == 1 and self.stride == (1, 1, 1) and not any(self.before + self.after)

    @property
    def is_whole(self) -> bool:
        """Whether the window is as large as the image, so that there is one output position."""
        return self.kernel == self.size and self.out == (1, 1, 1) and not any(self.before + self.after)

    def phases(self, axis: int) -> list[int]:
        """Which of an axis's `stride` phases any tap reads."""
        return sorted({k * self.dilation[axis] % self.stride[axis] for k in range(self.kernel[axis])})

    def reach(self, axis: int) -> int:
        """How many positions of a phase a box reads beyond its own."""
        return (self.kernel[axis] - 1) * self.dilation[axis] // self.stride[axis]

    def slab(self, box: Triple) -> tuple[int, ...]:
        """Shape of what a box reads of one channel: the phases of each axis, then its positions.

        Phases lie outside, so that rows of one phase are neighbours and vectors can run on from one to the next.
        """
        return (
            *(len(self.phases(axis)) for axis in range(3)),
            *(box[axis] + self.reach(axis) for axis in range(3)),
        )


def geometry(spec: ConvSpec) -> Geometry:
    """`spec` on three axes."""
    return Geometry(
        size=lift(spec.in_size, 1),
        out=lift(spec.out_size, 1),
        kernel=lift(spec.kernel_size, 1),
        stride=lift(spec.stride, 1),
        dilation=lift(spec.dilation, 1),
        before=lift(tuple(before for before, _ in spec.padding), 0),
        after=lift(tuple(after for _, after in spec.padding), 0),
        c=spec.in_channels // spec.groups,
        o=spec.out_channels // spec.groups,
    )


def merged(g: Geometry) -> Geometry:
    """A window as large as the image is a product with all of it: channels and pixels become one axis."""
    one = (1, 1, 1)
    return Geometry(one, one, one, one, one, (0, 0, 0), (0, 0, 0), g.c * g.taps, g.o) if g.is_whole else g


def shares(length: int) -> Iterator[int]:
    """The different sides of even shares of `length`, largest first."""
    side = length
    while side:
        yield side
        parts = -(-length // side)
        side = min(-(-length // (parts + 1)), side - 1)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def near_page(nbytes: int) -> bool:
    """Whether steps of `nbytes` bytes fall on the same lines of the cache again and again."""
    return nbytes > 2048 and (nbytes + 256) % 4096 < 512
