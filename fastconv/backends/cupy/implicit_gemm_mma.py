"""Forward convolution on tensor cores: the product of ``implicit_gemm.py`` in float16, bfloat16, or float32 as tf32.

Images with channels last, C / groups a multiple of 16 bytes, come by whole vectors; their weights are packed ahead of the
product, channels last too. Everything else is gathered number by number.

A float32 operand is rounded to tf32 where that is asked for. Else it is split into two tf32 numbers, and three of their four
products are summed (3xtf32). That is near float32, yet no plain sum of it: a sum of K products may be off by
``min(K, 10 sqrt(K))`` roundoffs (docs/numerics.md), and these are off by up to 16 each, however few they are. So they
state an error, as a transform does, and ``precision="highest"`` declines them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastconv.backends import TF32_ERROR, Run, Unsupported
from fastconv.backends.cupy.geometry import (
    DIVISOR,
    ELEMENT_THREADS,
    check_counts,
    divisor,
    fill,
    lifted,
    tiles,
    volume,
)
from fastconv.backends.cupy.implicit_gemm import check_positions, forward_axes, types_of
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, Program, View, kept
from fastconv.backends.cupy.pooling import BANDWIDTH
from fastconv.backends.cupy.product import (
    VECTOR_BYTES,
    Placed,
    Shape,
    choose,
    pixels_of,
    taps_of,
    tensor_product,
    warp_tiles_of,
)
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, ConvSpec

PACKED_WEIGHT = np.dtype(
    [
        *((name, "u8") for name in ("weight", "result")),
        *((name, "i8") for name in ("group", "row", "outer", "inner")),
        ("count", "i4"),
        *((name, DIVISOR) for name in ("rows", "outers", "inners")),
    ],
    align=True,
)

# What tensor cores multiply here.
TYPES = ("float16", "bfloat16", "float32")

# What they may be off by, as a part of max|a| max|b|, in units of 2**-23. The high part is x to nearest, of 11 significant
# bits: what is left is at most 2**-11 of x, so the product of two such, which is dropped, is 2. Its 12 bits are cut off
# after 11, which is 1 of each operand: 2 more. Tensor cores add up to 8 products of high parts, but round nothing: each is
# cut off at the last bit of the largest, and so is their sum, which is 1 and 1 of every product (Fasi, Higham, Mikaitis,
# Pranesh, Numerical behavior of NVIDIA tensor cores, 2021). Sums of what crosses are cut off too, at 2**-10 of that and
# 64 times before they are added: 1/3. Together less than 8.
SPLIT_ERROR = 8 * 2.0**-23


def implicit_gemm_mma(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward on tensor cores; sums are float32."""
    split, error = on_tensor_cores(spec, precision)
    check_positions(spec)
    out_channels, in_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    axes, types, taps = forward_axes(spec), types_of(spec), volume(spec.kernel_size)
    shape = Shape(out_channels, spec.batch * volume(spec.out_size), in_channels * taps, spec.groups)
    vector = VECTOR_BYTES // DTYPES[spec.dtype].itemsize
    packed = packed_bytes(spec, workspace_limit) if taps > 1 and in_channels % vector == 0 else 0
    left = None if workspace_limit is None else workspace_limit - packed
    choice = choose(shape, warp_tiles_of(spec.dtype, split), types.sums, left)
    partial = tiles(choice.workspace(shape, types.sums), VECTOR_BYTES) * VECTOR_BYTES if packed else 0
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        xs, ws, ys = lifted(x.strides, 0), lifted(w.strides, 0), lifted(y.strides, 0)
        whole = x.channels_last and in_channels % vector == 0 and in_vectors(x, vector)
        pack = whole and packed > 0
        ordered = taps == 1 or pack or not x.channels_last  # neighbours in memory are neighbours in k
        if pack:
            ws = (shape.k, 1, *(stride * in_channels for stride in ws[2:]))
        program = tensor_product(
            shape,
            types,
            choice,
            rows=taps_of(
                axes, in_channels, xs[1:], ws[1:], linear=linear, channels_first=not x.channels_last
            ),
            columns=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (ys[0], *ys[2:]), linear=linear),
            axes=axes,
            gathered=Placed(0, 0, group=in_channels * xs[1]),
            gathered_strides=xs[2:],
            dense=Placed(
                WORKSPACE if pack else 1,
                partial // DTYPES[spec.dtype].itemsize if pack else 0,
                row=shape.k,
                group=out_channels * shape.k,
            ),
            result=Placed(3, 0, ys[1], out_channels * ys[1], y.aligned),
            bias=bias and Placed(2, 0, row=bias.strides[0], group=out_channels * bias.strides[0]),
            mode=spec.padding_mode,
            lanes=int(x.channels_last),
            whole=(ordered and shape.k % vector == 0 and (pack or w.aligned), whole),
            split=split,
        )
        if not pack or not program.steps:
            return program
        packing = packed_weight(spec, partial)
        return Program(steps=(packing, *program.steps), workspace=partial + packed)

    return Run(
        call=OnDevice(build),
        seconds=max(choice.seconds, spec.nbytes() / BANDWIDTH),
        shared=max(choice.workspace(shape, types.sums), partial + packed),
        note=choice.note(shape),
        error=error,
    )


def on_tensor_cores(spec: ConvSpec, precision: str) -> tuple[bool, float]:
    """Whether three of their products make one, and what that adds to the plain sum's error.

    They decline types they do not have, and float32 where the plain sum is asked for. One product of tf32 for one of
    float32 is never given unasked.
    """
    if spec.dtype not in TYPES:
        raise Unsupported(
            f"{spec.dtype} is no type of tensor cores here: float16, bfloat16, or float32 as tf32"
        )
    if spec.dtype != "float32":
        return False, 0.0
    if precision == "highest":
        raise Unsupported(
            "float32 on tensor cores is a sum of tf32 products, and precision='highest' asks for the plain sum"
        )
    return (False, TF32_ERROR) if precision == "tf32" else (True, SPLIT_ERROR)


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
    return Launch(
        kernel=Kernel("pack_weight.cu", "pack_weight", (("IN", spec.dtype),)),
        grid=tiles(elements, ELEMENT_THREADS),
        block=ELEMENT_THREADS,
        params=fill(
            PACKED_WEIGHT,
            group=out_channels * in_channels * taps,
            row=row[1],
            outer=outer[1],
            inner=inner[1],
            count=elements,
            rows=divisor(row[0]),
            outers=divisor(outer[0]),
            inners=divisor(inner[0]),
        ),
        addresses=(Address("weight", 1), Address("result", WORKSPACE, offset)),
    )


def in_vectors(x: View, vector: int) -> bool:
    """Whether every position's channels begin at a multiple of a vector."""
    steps: Sequence[int] = (x.strides[0], *x.strides[2:])
    return x.aligned and all(step % vector == 0 for step in steps)
