"""Planes of operands for kernels that move or add them: where they lie, or some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastconv.backends import Unsupported
from fastconv.backends.numba import cost
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, scratch
from fastconv.spec import DTYPES

# Planes that are cast, or brought in order, at a time stay in a core's cache.
PIECE_BYTES = 512 << 10

# A task takes about this long, so that starting it (0.3 us) does not show.
TASK_SECONDS = 10e-6

# What fits the shared cache is read and written at this rate by one core.
CACHED_BYTES = 4e10


class Part(NamedTuple):
    """One operand, or the result, of a kernel that takes planes: elements of a plane, their type, and the kernel's."""

    elements: int
    dtype: str
    wide: str

    @property
    def cast(self) -> bool:
        """Whether the kernel knows no such elements; integers of one size are added alike with any sign."""
        own, wide = DTYPES[self.dtype], DTYPES[self.wide]
        return self.dtype != self.wide and ("f" in (own.kind, wide.kind) or own.itemsize != wide.itemsize)

    @property
    def nbytes(self) -> int:
        """Of one plane, in the kernel's type."""
        return self.elements * DTYPES[self.wide].itemsize


# Addresses of operands and result, and how many planes lie there.
Compute = Callable[[Sequence[int], int], None]


class Planes(NamedTuple):
    """How planes are taken."""

    planes: int
    channels: int
    parts: tuple[Part, ...]
    piece: int  # planes at a time, where they are not read where they lie

    @property
    def shared(self) -> int:
        """Bytes of scratch for operands in C order."""
        each = sum(part.nbytes for part in self.parts if part.cast)
        return self.piece * each + ALIGNMENT if each else 0

    @property
    def note(self) -> str:
        """How many planes at a time, where they are cast."""
        wide = next((part.wide for part in self.parts if part.cast), None)
        return "" if wide is None else f"{self.piece} planes at a time in {wide}"

    def call(self, compute: Compute) -> Callable[..., None]:
        """The function of operands and result that computes all planes."""
        count, cast = self.planes, [part.cast for part in self.parts]
        as_they_are = not any(cast)

        def run(*arrays: Array) -> None:
            if not count:
                return
            in_order = [array.flags.c_contiguous for array in arrays]
            if as_they_are and all(in_order):
                compute([*map(address, arrays)], count)
            else:
                self._piecewise(compute, arrays, [a and not b for a, b in zip(in_order, cast, strict=True)])

        return run

    def _piecewise(self, compute: Compute, arrays: Sequence[Array], ready: Sequence[bool]) -> None:
        sizes = [
            0 if good else self.piece * part.nbytes for good, part in zip(ready, self.parts, strict=True)
        ]
        held, _ = scratch(sum(sizes))
        copies: list[Array] = []
        begin = 0
        for array, part, nbytes in zip(arrays, self.parts, sizes, strict=True):
            dtype = part.wide if part.cast else array.dtype
            shape = (self.piece, *array.shape[2:])
            copies.append(held[begin : begin + nbytes].view(dtype).reshape(shape) if nbytes else None)
            begin += nbytes
        *operands, result = zip(arrays, copies, self.parts, strict=True)
        for p in range(0, self.planes, self.piece):
            count = min(self.piece, self.planes - p)
            for array, copy, _ in operands:
                for i in range(count if copy is not None else 0):
                    np.copyto(copy[i], array[divmod(p + i, self.channels)], casting="unsafe")
            at = [
                address(array) + p * part.nbytes if copy is None else address(copy)
                for array, copy, part in (*operands, result)
            ]
            compute(at, count)
            array, copy, _ = result
            if copy is not None:
                to = array.reshape(self.planes, *array.shape[2:])[p : p + count]
                np.copyto(to, copy[:count], casting="unsafe")


def planes_of(batch: int, channels: int, limit: int | None, *parts: Part) -> Planes:
    """Pieces of planes that stay in a core's cache, and under the limit.

    Raises
    ------
    Unsupported
        If one plane alone needs more.
    """
    count = batch * channels
    each = sum(part.nbytes for part in parts)
    piece = max(min(PIECE_BYTES // max(each, 1), count), 1)
    cast = sum(part.nbytes for part in parts if part.cast)
    if limit is not None and cast:
        if cast + ALIGNMENT > limit:
            need = cast + ALIGNMENT
            raise Unsupported(f"needs {need} bytes of scratch for one plane", workspace=need)
        piece = min(piece, (limit - ALIGNMENT) // cast)
    return Planes(count, channels, parts, piece)


def moved(nbytes: int, count: int) -> float:
    """Seconds to read and write so many bytes for each of `count` planes, for one of them."""
    return nbytes / (CACHED_BYTES if nbytes * count < cost.SHARED_CACHE else cost.BYTES)


def task(seconds: float, count: int) -> int:
    """How many of `count` planes are a task, if one takes so long."""
    return min(max(int(TASK_SECONDS / seconds), 1), max(count, 1))
