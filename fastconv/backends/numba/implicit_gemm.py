"""Implicit matrix products: vectors along output positions, and problems that are one product as they stand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost
from fastconv.backends.numba.geometry import geometry, merged, near_page
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import scalars
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, cast_images
from fastconv.backends.numba.positions import (
    FLAT,
    SLAB,
    Turned,
    caller,
    is_flat,
    pack_rows,
    plan_flat,
    plan_slab,
)
from fastconv.backends.numba.slabs import channels_last, orderer
from fastconv.spec import DTYPES, ConvSpec

# Output positions from which packed weights are worth having: below, 0 to 2 % are gained and sums along k lost.
PACKED_FROM = 600

# An element that NumPy copies of those a longer stride reads.
SAMPLE_CYCLES = cost.here(3.0, 1.4)


def strided(spec: ConvSpec, limit: int | None, packed: bool = False) -> Callable[..., None]:
    """The function for an input of any strides, planned when the first one comes."""

    @cache
    def planned() -> Callable[..., None]:
        return caller(SLAB, plan_slab(spec, limit, packed), spec)

    return lambda x, w, bias, y: planned()(x, w, bias, y)


def image_by_image(spec: ConvSpec, planned: Callable[[], Callable[..., None]]) -> Callable[..., None]:
    """The function for an input of any strides: each image is brought in order for the one that is `planned` for one."""
    planned = cache(planned)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        order = orderer(spec.dtype, spec.in_channels, spec.in_size) if channels_last(x) else None
        made = np.empty((1, *spec.input_shape[1:]), spec.dtype)
        for n in range(spec.batch):
            if order is None:
                made[...] = x[n : n + 1]
            else:
                order(x, n, 0, spec.in_channels, address(made))
            planned()(made, w, bias, y[n : n + 1])

    return call


def run_sampled(spec: ConvSpec, limit: int | None, packed: bool) -> Run | None:
    """A kernel of one element at a longer stride: the elements it reads, side by side, are a matrix product's.

    It is copied by NumPy, at most a quarter of the input, because rows as short as its own would leave half of each
    vector empty: 131 GF/s against 220 on 7 x 7 outputs.
    """
    plain = spec.padding == ((0, 0),) * spec.rank and math.prod(spec.kernel_size) == 1
    if not plain or limit is not None or math.prod(spec.stride) < 4:
        return None
    inner = run_gemm(replace(spec, in_size=spec.out_size, stride=(1,) * spec.rank), limit, packed)
    read = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(spec.out_size, spec.stride, strict=True))
    copied = spec.batch * spec.in_channels * math.prod(spec.out_size) * DTYPES[spec.dtype].itemsize

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        inner.call(np.ascontiguousarray(x[(..., *read)]), w, bias, y)

    return replace(
        inner,
        call=call,
        seconds=inner.seconds + copied / DTYPES[spec.dtype].itemsize * SAMPLE_CYCLES * cost.CYCLE,
        shared=inner.shared + copied,
        note="copies the elements it reads",
    )


def run_product(rows: int, channels: int, positions: int, spec: ConvSpec, limit: int | None) -> Run:
    """A matrix product, ``y[n, p] = sum_c w[n, c] x[c, p]``: a pointwise convolution of one image."""
    small = ConvSpec(
        batch=1,
        in_channels=channels,
        out_channels=rows,
        in_size=(positions,),
        kernel_size=(1,),
        dtype=spec.dtype,
        out_dtype=spec.out_dtype,
    )
    inner = run_gemm(small, limit, packed=False)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        inner.call(x.reshape(small.input_shape), w.reshape(small.weight_shape), bias, y)

    return replace(inner, call=call, note="one matrix product")


def is_product(spec: ConvSpec) -> bool:
    """Whether each result is a product with a whole image, so that all of them are one matrix product."""
    return spec.batch > 1 and spec.groups == 1 and geometry(spec).is_whole


def turn_rows(weight: Array, K: int) -> Array:
    """Weights of K products a row as the image of :func:`run_images`: (K, out_channels)."""
    rows = weight.reshape(1, -1, K).swapaxes(1, 2)
    turned = np.empty(rows.shape, weight.dtype)
    orderer(weight.dtype.name, K, rows.shape[2:])(rows, 0, 0, K, address(turned))
    return turned


def run_images(spec: ConvSpec, limit: int | None, packed: bool) -> Run:
    """All images in one matrix product, the weights its image: each weight is read once, and every lane is full.

    Image by image, with vectors along k, the weights are read for each: 16 images of 16 x 5 x 5 for 120 channels took
    168 us, so 46.
    """
    K = geometry(spec).K
    turned = K * spec.out_channels * DTYPES[spec.dtype].itemsize
    left = None if limit is None or packed else limit - turned
    if left is not None and left < 0:
        raise Unsupported(f"needs {turned} bytes for turned weights", workspace=turned)
    inner = run_product(spec.batch, K, spec.out_channels, spec, left)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        image = w if packed else turn_rows(np.ascontiguousarray(w), K)
        inner.call(image, np.ascontiguousarray(x), None, y.reshape(1, spec.batch, -1))
        if bias is not None:
            y += bias.reshape(-1, *(1,) * spec.rank)

    if packed:
        return replace(
            inner, call=call, pack=lambda w: turn_rows(np.ascontiguousarray(w), K), packing=("turned", K)
        )
    turning = K * spec.out_channels * cost.ORDER_CYCLES * cost.CYCLE + cost.CALL_SECONDS
    return replace(inner, call=call, seconds=inner.seconds + turning, shared=inner.shared + turned)


def run_gemm(spec: ConvSpec, limit: int | None, packed: bool) -> Run:
    """Direct convolution, of weights as they are given or packed."""
    image_by_image = run_windows(spec, limit, packed)
    if is_product(spec):
        with contextlib.suppress(Unsupported):
            return min(image_by_image, run_images(spec, limit, packed), key=lambda run: run.seconds)
    return image_by_image


def run_windows(spec: ConvSpec, limit: int | None, packed: bool) -> Run:
    """Direct convolution, an image after the other."""
    if (sampled := run_sampled(spec, limit, packed)) is not None:
        return sampled
    g = geometry(spec)
    planned, kernel = None, FLAT
    if is_flat(spec, flat := merged(g)):
        planned = plan_flat(spec, flat, packed, limit)
        if limit is not None and (need := planned.scratch + ALIGNMENT) > limit:
            raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    # A few channels meet in the same lines of the L1 cache without harm: it has 12 of each.
    crowded = g.c > 12 and near_page(math.prod(g.size) * DTYPES[spec.dtype].itemsize)
    if planned is None or (limit is None and crowded):
        copied = plan_slab(spec, limit, packed)
        if (
            planned is None
            or copied.seconds < planned.seconds * cost.SAME_LINES[bool(planned.arguments["panel_at"])]
        ):
            planned, kernel = copied, SLAB
    in_order = caller(kernel, planned, spec)
    if kernel is SLAB:
        other = in_order
    elif planned.arguments["left"]:  # a slab would add what is left in another order
        one = spec.with_batch(1)
        other = image_by_image(spec, lambda: caller(FLAT, plan_flat(one, flat, packed, limit), one))
    else:
        other = strided(spec, limit, packed)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        (in_order if x.flags.c_contiguous else other)(x, w, bias, y)

    at_once = max(planned.tasks * planned.images, 1)
    if limit is not None:
        at_once = max(min(at_once, (limit - planned.copied - ALIGNMENT) // planned.scratch), 1)
    return Run(
        call=call,
        seconds=planned.seconds + cost.CALL_SECONDS,
        workspace=planned.scratch,
        at_once=at_once,
        shared=planned.copied + ALIGNMENT,
        note="reads the input where it lies" if kernel is FLAT else "copies what it reads, padded",
        pack=(lambda w: pack_rows(spec, w)) if packed else None,
        packing=("rows", scalars(host()), spec.groups) if packed else None,
    )


def run_turned(spec: ConvSpec, turned: Turned) -> Run:
    """Direct convolution of an input in C order and of weights that tasks turn as they read them.

    Turned ahead, 1024 x 1024 of them took 1.4 ms of 3.1, a third of that to fetch new pages.
    """
    g = geometry(spec)
    if not is_flat(spec, g):
        raise Unsupported("needs outputs as far apart as what they read")
    planned = plan_flat(spec, g, packed=True, limit=None, turned=turned)
    return Run(
        call=caller(FLAT, planned, spec),
        seconds=planned.seconds + cost.CALL_SECONDS,
        workspace=planned.scratch,
        at_once=max(planned.tasks * planned.images, 1),
        shared=ALIGNMENT,
        note="reads the input where it lies, turns weights as it reads them",
    )


@cast_images
def implicit_gemm(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Direct convolution of any stride, dilation, groups, padding and rank."""
    run = run_gemm(spec, workspace_limit, packed=False)
    if math.prod(spec.out_size) < PACKED_FROM and not is_product(spec):
        return run
    return replace(run, prepared=run_gemm(spec, workspace_limit, packed=True))


@cast_images
def pointwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """A kernel of one element at stride 1: a matrix product over channels, in place."""
    if not geometry(spec).is_pointwise:
        raise Unsupported("needs a kernel of 1, stride 1 and no padding")
    return implicit_gemm(spec, precision, workspace_limit)
