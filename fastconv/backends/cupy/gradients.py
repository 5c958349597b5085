"""Gradients of a convolution, as products whose columns are never stored.

The gradient of the input gathers from ``grad_output``: at a stride the input's positions fall into phases, each met by
every so many-th kernel element alone, and each a product of its own without a wasted multiplication. The gradient of the
weight is one product over images and positions, cut into parts that are added up in a fixed order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastconv.backends import Run, algorithm
from fastconv.backends.cupy.geometry import (
    AXES, BOX, ELEMENT_THREADS, Axis, box, c_strides, check_counts, fill, images_at_once, lifted, padding, portions, tiles, volume,
)
from fastconv.backends.cupy.implicit_gemm import RATE, check_positions, forward_axes, types_of
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, Program, View, kept
from fastconv.backends.cupy.product import (
    Placed,
    Shape,
    note,
    parts_for,
    pixels_of,
    product,
    taps_of,
    tile_for,
    total,
    workspace_of,
)
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, ConvSpec, Op

PADDED = np.dtype(
    [
        *((name, "u8") for name in ("padded", "bias", "result")),
        ("padded_stride", "i8", 2 + AXES),
        ("result_stride", "i8", 2 + AXES),
        ("bias_stride", "i8"),
        ("count", "i4"),
        ("size", "i4", AXES),
        ("before", "i4", AXES),
        ("after", "i4", AXES),
        ("box", BOX),
    ],
    align=True,
)


class Phase(NamedTuple):
    """Every stride-th position along an axis from `first`, and every so many-th tap from `tap` that meets them."""

    first: int
    tap: int
    tap_step: int
    axis: Axis


def phases(size: int, out: int, stride: int, kernel: int, dilation: int, before: int) -> list[Phase]:
    """The phases along an axis that any tap meets.

    Tap t brings output q to position ``q * stride + t * dilation - before``; so a position and a tap meet where
    ``position + before - t * dilation`` is a multiple of the stride, which depends on t modulo stride / gcd alone.
    """
    common = math.gcd(stride, dilation)
    step = stride // common
    found = []
    for tap in range(min(step, kernel)):
        first = (tap * dilation - before) % stride
        if first < size:
            axis = Axis(
                size=out,
                columns=tiles(size - first, stride),
                step=1,
                taps=tiles(kernel - tap, step),
                tap=-(dilation // common),
                start=(first + before - tap * dilation) // stride,
            )
            found.append(Phase(first, tap, step, axis))
    return found


def unpadded(spec: ConvSpec) -> ConvSpec:
    """The convolution of the padded input."""
    padded = tuple(n + before + after for n, (before, after) in zip(spec.in_size, spec.padding, strict=True))
    return ConvSpec(
        batch=spec.batch,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        in_size=padded,
        kernel_size=spec.kernel_size,
        stride=spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
        dtype=spec.dtype,
        out_dtype=spec.out_dtype,
    )


@algorithm("implicit_gemm")
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Input gradient, by phases; where padding shows input elements, of the padded input, which is then folded."""
    check_positions(spec)
    check_counts(
        **{
            "input positions of the batch": spec.batch * volume(unpadded(spec).in_size),
            "products of one sum": spec.out_channels // spec.groups * volume(spec.kernel_size),
        }
    )
    if spec.padding_mode == "zeros":
        bare, types = spec, types_of(spec)
        images, own = spec.batch, 0
    else:
        bare = unpadded(spec)
        types = types_of(spec)._replace(out=types_of(spec).sums)
        image = volume(bare.input_shape[1:]) * DTYPES[types.sums].itemsize
        images = images_at_once(spec.batch, volume(bare.input_shape[1:]), image, workspace_limit)
        own = images * image

    @kept
    def build(dy: View, w: View, bias: View | None, dx: View) -> Program:
        dys, dxs = lifted(dy.strides, 0), lifted(dx.strides, 0)
        if spec.padding_mode == "zeros":
            return Program(steps=tuple(_phases(spec, images, dy, w, bias, Placed(0, 0), Placed(3, 0), dxs)))
        inner = c_strides(bare.input_shape)
        steps: list[Launch] = []
        for begin, some in portions(spec.batch, images):
            steps += _phases(
                bare, some, dy, w, None, Placed(0, begin * dys[0]), Placed(WORKSPACE, 0), inner, types.out
            )
            steps.append(_folded(spec, some, inner, bias, begin, dxs))
        return Program(steps=tuple(steps), workspace=own)

    count = len(list(itertools.product(*_along(bare))))
    folded = "" if spec.padding_mode == "zeros" else f", of {images} padded images at a time, then folded"
    return Run(
        call=OnDevice(build),
        seconds=spec.flops() / RATE,
        shared=own,
        note=f"{count} phase{'s' * (count != 1)}{folded}",
    )


def _along(spec: ConvSpec) -> list[list[Phase]]:
    """The phases along each of the three axes."""
    real = [
        phases(*row)
        for row in zip(
            spec.in_size,
            spec.out_size,
            spec.stride,
            spec.kernel_size,
            spec.dilation,
            (before for before, _ in spec.padding),
            strict=True,
        )
    ]
    return [phases(1, 1, 1, 1, 1, 0)] * (AXES - spec.rank) + real


def _phases(
    spec: ConvSpec,
    images: int,
    dy: View,
    w: View,
    bias: View | None,
    source: Placed,
    target: Placed,
    strides: tuple[int, ...],
    out: str = "",
) -> Iterator[Launch]:
    """Launches that fill the gradient of an input padded with zeros, which lies with these strides."""
    types = types_of(spec)._replace(out=out or spec.out_dtype)
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    dys, ws = lifted(dy.strides, 0), lifted(w.strides, 0)
    steps = (1,) * (AXES - spec.rank) + spec.stride
    placed_bias = bias and Placed(2, 0, bias.strides[0], c_group * bias.strides[0])
    target = target._replace(row=strides[1], group=c_group * strides[1])
    along = _along(spec)
    sizes = lifted(spec.input_shape, 1)[2:]
    if any(len(some) < min(step, size) for some, step, size in zip(along, steps, sizes, strict=True)):
        # Some positions meet no tap at all: everything gets its bias first.
        everything = [Axis(1, size, 0, 1, 0, 0) for size in sizes]
        columns = pixels_of(everything, images, (0, 0, 0, 0), (strides[0], *strides[2:]), linear=True)
        whole = Shape(c_group, images * volume(sizes), 0, spec.groups)
        if whole.n:
            yield total(whole, types, 0, columns, target, placed_bias)
    for chosen in itertools.product(*along):
        axes = [phase.axis for phase in chosen]
        shape = Shape(
            c_group,
            images * volume(tuple(axis.columns for axis in axes)),
            o_group * volume(tuple(axis.taps for axis in axes)),
            spec.groups,
        )
        taps = [phase.tap_step * stride for phase, stride in zip(chosen, ws[2:], strict=True)]
        yield from product(
            shape,
            types,
            rows=taps_of(axes, o_group, dys[1:], (ws[0], *taps), linear=True, channels_first=not dy.channels_last),
            columns=pixels_of(
                axes,
                images,
                (dys[0], *dys[2:]),
                (strides[0], *(stride * step for stride, step in zip(strides[2:], steps, strict=True))),
                linear=True,
            ),
            axes=axes,
            gathered=source._replace(group=o_group * dys[1]),
            gathered_strides=dys[2:],
            dense=Placed(
                1,
                sum(phase.tap * stride for phase, stride in zip(chosen, ws[2:], strict=True)),
                row=ws[1],
                group=o_group * ws[0],
            ),
            result=target._replace(
                start=target.start
                + sum(phase.first * stride for phase, stride in zip(chosen, strides[2:], strict=True))
            ),
            bias=placed_bias,
            lanes=int(dy.channels_last),
            tile=tile_for(shape, types.sums),
        ).steps  # type: ignore[misc]


def _folded(
    spec: ConvSpec, images: int, inner: tuple[int, ...], bias: View | None, begin: int, dxs: tuple[int, ...]
) -> Launch:
    """The launch that adds every padded position to the element it shows."""
    types = types_of(spec)
    count = images * volume(spec.input_shape[1:])
    before, after = zip(*((0, 0),) * (AXES - spec.rank), *spec.padding, strict=True)
    return Launch(
        kernel=Kernel(
            "fold_padding.cu",
            "fold_padding",
            (("SUM", types.sums), ("OUT", types.out), ("PADDING", padding(spec.padding_mode))),
        ),
        grid=tiles(count, ELEMENT_THREADS),
        block=ELEMENT_THREADS,
        params=fill(
            PADDED,
            padded_stride=inner,
            result_stride=dxs,
            bias_stride=bias.strides[0] if bias else 0,
            count=count,
            box=box(spec.input_shape),
            size=lifted(spec.input_shape, 1)[2:],
            before=before,
            after=after,
        ),
        addresses=(
            Address("padded", WORKSPACE),
            Placed(3, begin * dxs[0]).address("result", types.out),
            *([Address("bias", 2)] if bias else []),
        ),
    )


@algorithm("implicit_gemm")
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Weight gradient: out channels by kernel elements, summed over images and positions."""
    check_positions(spec)
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    axes, types = forward_axes(spec), types_of(spec)
    shape = Shape(
        o_group, c_group * volume(spec.kernel_size), spec.batch * volume(spec.out_size), spec.groups
    )
    tile = tile_for(shape, types.sums)
    parts = parts_for(shape, tile, types.sums, workspace_limit)
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, dy: View, dw: View) -> Program:
        xs, dys, dws = lifted(x.strides, 0), lifted(dy.strides, 0), lifted(dw.strides, 0)
        return product(
            shape,
            types,
            rows=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (dys[0], *dys[2:]), linear=linear),
            columns=taps_of(axes, c_group, xs[1:], dws[1:], linear=linear, channels_first=not x.channels_last),
            axes=axes,
            gathered=Placed(0, 0, group=c_group * xs[1]),
            gathered_strides=xs[2:],
            dense=Placed(1, 0, row=dys[1], group=o_group * dys[1]),
            result=Placed(2, 0, row=dws[0], group=o_group * dws[0]),
            mode=spec.padding_mode,
            lanes=int(not x.channels_last),
            tile=tile,
            parts=parts,
        )

    return Run(
        call=OnDevice(build),
        seconds=spec.flops(Op.CONV_WEIGHT_GRAD) / RATE,
        shared=workspace_of(shape, parts, types.sums),
        note=note(shape, tile, parts),
    )
