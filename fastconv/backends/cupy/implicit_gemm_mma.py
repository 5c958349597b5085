"""Forward convolution on tensor cores: the product of ``implicit_gemm.py`` in float16, bfloat16, or float32 as tf32.

Images with channels last, C / groups a multiple of 16 bytes, come by whole vectors; their weights are packed ahead of the
product, channels last too. Such images of 16 bits in C order are copied first, channels last, where that is estimated to
pay. Everything else is gathered number by number.

A float32 operand is rounded to tf32 where that is asked for. Else it is split into two tf32 numbers, and three of their four
products are summed (3xtf32). That is near float32, yet no plain sum of it: a sum of K products may be off by
``min(K, 10 sqrt(K))`` roundoffs (docs/numerics.md), and these are off by up to 16 each, however few they are. So they
state an error, as a transform does, and ``precision="highest"`` declines them.
"""

from __future__ import annotations

from fastconv.backends import TF32_ERROR, Run, Unsupported
from fastconv.backends.cupy.geometry import lifted, tiles, volume
from fastconv.backends.cupy.implicit_gemm import check_positions, forward_axes, types_of
from fastconv.backends.cupy.launch import WORKSPACE, Launch, Program, View, kept
from fastconv.backends.cupy.packing import (
    in_c_order,
    in_vectors,
    left_of,
    packed_bytes,
    packed_weight,
    told,
    turned_bytes,
    turned_images,
)
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
    itemsize = DTYPES[spec.dtype].itemsize
    vectors = in_channels % (VECTOR_BYTES // itemsize) == 0
    packed = packed_bytes(spec, workspace_limit) if taps > 1 and vectors else 0
    left = left_of(workspace_limit, packed)
    choice, turned = choose(shape, warp_tiles_of(spec.dtype, split), types.sums, left), 0
    if vectors and (packed or taps == 1):
        turned = turned_bytes(spec.input_shape, spec.dtype, choice.along(shape), left)
        choice = choose(shape, warp_tiles_of(spec.dtype, split), types.sums, left_of(left, turned))
    partial = tiles(choice.workspace(shape, types.sums), VECTOR_BYTES) * VECTOR_BYTES
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        steps: list[Launch] = []
        images, weight = Placed(0, 0), Placed(1, 0, aligned=w.aligned)
        if turned and not x.channels_last:
            step, x = turned_images(spec.input_shape, spec.dtype, x, partial + packed)
            images = Placed(WORKSPACE, (partial + packed) // itemsize)
            steps.append(step)
        xs, ws, ys = lifted(x.strides, 0), lifted(w.strides, 0), lifted(y.strides, 0)
        whole = x.channels_last and vectors and in_vectors(x, spec.dtype)
        if whole and packed:
            ws = (shape.k, 1, *(stride * in_channels for stride in ws[2:]))
            weight = Placed(WORKSPACE, partial // itemsize, aligned=True)
            steps.append(packed_weight(spec, partial))
        # Whether neighbours in memory are neighbours in k.
        ordered = taps == 1 or weight.array == WORKSPACE or not x.channels_last
        program = tensor_product(
            shape,
            types,
            choice,
            rows=taps_of(
                axes, in_channels, xs[1:], ws[1:], linear=linear, channels_first=not x.channels_last
            ),
            columns=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (ys[0], *ys[2:]), linear=linear),
            axes=axes,
            gathered=images._replace(group=in_channels * xs[1]),
            gathered_strides=xs[2:],
            dense=weight._replace(row=shape.k, group=out_channels * shape.k),
            result=Placed(3, 0, ys[1], out_channels * ys[1], y.aligned),
            bias=bias and Placed(2, 0, row=bias.strides[0], group=out_channels * bias.strides[0]),
            mode=spec.padding_mode,
            lanes=int(x.channels_last),
            whole=(ordered and shape.k % (VECTOR_BYTES // itemsize) == 0 and weight.aligned, whole),
            split=split,
        )
        if not steps or not program.steps:
            return program
        return Program(steps=(*steps, *program.steps), workspace=partial + packed + turned)

    seconds = choice.seconds + in_c_order(spec.dtype, choice.along(shape), turned)
    return Run(
        call=OnDevice(build),
        seconds=max(seconds, spec.nbytes() / BANDWIDTH),
        shared=partial + packed + turned,
        note=choice.note(shape) + told(turned),
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
