"""Operands of every dtype for kernels of four: addresses, scratch, and images cast a few at a time."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from struct import Struct
from typing import Any, TypeVar

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.spec import DTYPES, ConvSpec

Array = Any
P = TypeVar("P", bound=Callable[..., Run])

# Images of another type are cast in pieces of about this size, which stay in the shared cache.
CAST_BYTES = 4 << 20

# Scratch begins at a cache line.
ALIGNMENT = 64


def _by_interface(array: Array | None) -> int:
    return 0 if array is None else array.__array_interface__["data"][0]


def _by_struct(array: Array | None) -> int:
    """The third word of ``PyArrayObject``, whose layout is part of NumPy's ABI: 0.1 us, the interface takes 0.8."""
    return 0 if array is None else _word(id(array) + _DATA).value


# Behind the reference count and the type.
_DATA = object.__basicsize__
_word = ctypes.c_ssize_t.from_address
_sample = np.arange(9)[3:]
_is_known = sys.implementation.name == "cpython" and _by_struct(_sample) == _by_interface(_sample)

# Where an array's first element lies; 0 for none.
address: Callable[[Array | None], int] = _by_struct if _is_known else _by_interface


# Numbers packed side by side: in one call, where an element of an array takes 50 ns to set.
_PACK = [Struct(f"{count}q").pack_into for count in range(7)]


def begun(fields: Array, *addresses: int) -> Array:
    """A call's own copy of a kernel's arguments: behind the next task and where to stop come the operands' addresses."""
    a: Array = fields.copy()
    _PACK[len(addresses)](a, 16, *addresses)
    return a


def put_range(fields: Array, begin: int, stop: int) -> None:
    """Set a kernel's next task, and where to stop."""
    _PACK[2](fields, 0, begin, stop)


def set_fields(template: Array, **values: int) -> None:
    """Set fields of the kernels' arguments."""
    for name, value in values.items():
        template[name] = value


def setter(arguments: np.dtype[Any]) -> Callable[..., None]:
    """The function ``put(fields, **values)`` for the int64 fields of a kernel's arguments.

    A call copies and sets those: to copy a structured array of 75 fields takes NumPy 37 us.
    """
    places = {name: at for at, name in enumerate(arguments.names or ())}

    def put(fields: Array, **values: int) -> None:
        for name, value in values.items():
            fields[places[name]] = value

    return put


def contiguous(bias: Array | None) -> Array | None:
    """A bias whose elements are neighbours: at most a few thousand are copied."""
    return bias if bias is None or bias.flags.c_contiguous else np.ascontiguousarray(bias)


def scratch(nbytes: int) -> tuple[Array, int]:
    """Fresh bytes and the first aligned address in them; keep the array as long as the address is used."""
    array = np.empty(nbytes + ALIGNMENT, np.uint8)
    at = address(array)
    return array, at + -at % ALIGNMENT


def computed(dtype: str) -> str:
    """The type a kernel computes `dtype` in; unsigned 64-bit arithmetic is the signed one's."""
    accumulate = DTYPES[dtype].accumulate
    return "int64" if accumulate == "uint64" else accumulate


def cast_images(planner: P) -> P:
    """Let a planner of float32, float64, int32 and int64 plan every other dtype too.

    Weights and a few images at a time are cast to the type sums are formed in, the result is rounded once.
    """

    @wraps(planner)
    def plan(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
        wide = computed(spec.dtype)
        if spec.dtype == wide and spec.out_dtype == wide:
            return planner(spec, precision, workspace_limit)
        return _cast(planner, spec, precision, workspace_limit)

    return plan  # type: ignore[return-value]


def _cast(planner: Callable[..., Run], spec: ConvSpec, precision: str, limit: int | None) -> Run:
    wide = computed(spec.dtype)
    itemsize = DTYPES[wide].itemsize
    image = (math.prod(spec.input_shape[1:]) + math.prod(spec.output_shape[1:])) * itemsize
    weight = math.prod(spec.weight_shape) * itemsize
    images = max(min(CAST_BYTES // image, spec.batch), 1)
    if limit is not None:
        images = max(min(images, (limit - weight) // (2 * image)), 1)
    held = images * image
    left = None if limit is None else max(limit - weight - held, 0)
    small = replace(spec, dtype=wide, out_dtype=wide, batch=images)
    try:
        inner = planner(small, precision, left)
    except Unsupported as refusal:
        if refusal.workspace is None:
            raise
        need = refusal.workspace + weight + held
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need) from None
    if limit is not None and weight + held > limit:
        raise Unsupported(f"needs {weight + held} bytes for one image in {wide}", workspace=weight + held)

    def cast(array: Array) -> Array:
        return array.view(wide) if array.dtype == np.uint64 else np.ascontiguousarray(array, dtype=wide)

    def whole(inner: Run) -> Callable[..., None]:
        def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
            offset = None if bias is None else bias.astype(wide)
            x_part = np.empty((images, *x.shape[1:]), wide)
            y_part = np.empty((images, *y.shape[1:]), wide)
            result = y.view(wide) if y.dtype == np.uint64 else y
            for n in range(0, spec.batch, images):
                count = min(images, spec.batch - n)
                np.copyto(x_part[:count], x[n : n + count], casting="unsafe")
                # Images beyond the last are computed again from what is there, and dropped.
                inner.call(x_part, w, offset, y_part)
                np.copyto(result[n : n + count], y_part[:count], casting="unsafe")

        return call

    seconds = inner.seconds * -(-spec.batch // images) + spec.nbytes() / 1e10
    note = f"{inner.note}{', ' if inner.note else ''}in {wide}, {images} image{'s' * (images > 1)} at a time"
    run = whole(inner)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        run(x, cast(w), bias, y)

    prepared = None
    if (made := inner.prepared) is not None:
        pack = made.pack
        assert pack is not None
        prepared = replace(
            made,
            call=whole(made),
            seconds=seconds - inner.seconds + made.seconds,
            shared=made.shared + held,
            note=note,
            pack=lambda w: pack(cast(w)),
            packing=(wide, made.packing),
        )
    return replace(
        inner, call=call, seconds=seconds, shared=inner.shared + weight + held, note=note, prepared=prepared
    )
