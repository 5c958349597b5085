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

from typing import NamedTuple

from fastconv.backends import TF32_ERROR, Run, Unsupported
from fastconv.backends.cupy.geometry import lifted, tiles, volume
from fastconv.backends.cupy.implicit_gemm import check_positions, forward_axes, types_of
from fastconv.backends.cupy.launch import WORKSPACE, Build, Launch, Program, View, kept
from fastconv.backends.cupy.packing import (
    gathering,
    in_vectors,
    left_of,
    numbers_of_vector,
    packed_bytes,
    packed_weight,
    told,
    turned_bytes,
    turned_images,
    turning,
)
from fastconv.backends.cupy.pooling import BANDWIDTH
from fastconv.backends.cupy.product import (
    VECTOR_BYTES,
    AnyTile,
    Choice,
    Placed,
    Places,
    Shape,
    WarpgroupTile,
    choose,
    in_bits,
    pixels_of,
    taps_of,
    tensor_product,
    warp_tiles_of,
    warpgroup_product,
    warpgroup_tiles,
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


class Way(NamedTuple):
    """How the product is made, and bytes of scratch: of its parts' sums, of the packed weight, of turned images.

    `seconds` are those of images in C order.
    """

    shape: Shape
    choice: Choice
    seconds: float
    partial: int
    packed: int
    turned: int

    @property
    def workspace(self) -> int:
        """Bytes of scratch."""
        return self.partial + self.packed + self.turned

    @property
    def note(self) -> str:
        """What was decided, for people."""
        return self.choice.note(self.shape) + told(self.turned)


def implicit_gemm_mma(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward on tensor cores; sums are float32."""
    split, error = on_tensor_cores(spec, precision)
    check_positions(spec)
    way = _way(spec, split, workspace_limit)
    build, hopper, ways = _built(spec, way, split), None, [way]
    if by_warpgroups(spec):
        wide = _way(spec, split, workspace_limit, warpgroup_tiles())
        if isinstance(wide.choice.tile, WarpgroupTile):
            hopper = _built(spec, wide, split, build)
            ways.insert(0, wide)
    return Run(
        call=OnDevice(build, hopper),
        seconds=max(ways[0].seconds, spec.nbytes() / BANDWIDTH),
        shared=max(each.workspace for each in ways),
        note="; before compute capability 9.0 ".join(each.note for each in ways),
        error=error,
    )


def by_warpgroups(spec: ConvSpec) -> bool:
    """Whether the instructions of compute capability 9.0 take the operands, where they come by whole vectors."""
    plain = spec.padding_mode == "zeros" and in_bits(spec.kernel_size)
    return plain and DTYPES[spec.dtype].itemsize == 2


def _way(spec: ConvSpec, split: bool, limit: int | None, wide: tuple[AnyTile, ...] = ()) -> Way:
    """The fastest of warps' tiles and of `wide` ones, which whole vectors alone are read by; and what is copied ahead."""
    out_channels, in_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    sums, taps, narrow = types_of(spec).sums, volume(spec.kernel_size), warp_tiles_of(spec.dtype, split)
    shape = Shape(out_channels, spec.batch * volume(spec.out_size), in_channels * taps, spec.groups)
    vectors = in_channels % numbers_of_vector(spec.dtype) == 0
    packed = packed_bytes(spec, limit) if taps > 1 and vectors else 0
    left = left_of(limit, packed)
    seconds = gathering(spec.dtype, shape, choose(shape, narrow, sums, left))
    if not vectors or (taps > 1 and not packed):
        wide = ()
    choice, turned = choose(shape, (*wide, *narrow), sums, left), 0
    if vectors and (packed or taps == 1):
        turned = turned_bytes(spec.input_shape, spec.dtype, seconds - choice.seconds, left)
    if turned:
        choice = choose(shape, (*wide, *narrow), sums, left_of(left, turned))
        seconds = turning(turned) + choice.seconds
    partial = tiles(choice.workspace(shape, sums), VECTOR_BYTES) * VECTOR_BYTES
    return Way(shape, choice, seconds, partial, packed, turned)


def _built(spec: ConvSpec, way: Way, split: bool, otherwise: Build | None = None) -> Build:
    """The program of this way; `otherwise` is that of operands a warpgroup's tile does not take."""
    shape, choice, _, partial, packed, turned = way
    out_channels, in_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    axes, types, taps = forward_axes(spec), types_of(spec), volume(spec.kernel_size)
    itemsize, vector = DTYPES[spec.dtype].itemsize, numbers_of_vector(spec.dtype)
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        steps: list[Launch] = []
        last, images, weight = x, Placed(0, 0), Placed(1, 0, aligned=w.aligned)
        if turned and not x.channels_last:
            step, last = turned_images(spec.input_shape, spec.dtype, x, partial + packed)
            images = Placed(WORKSPACE, (partial + packed) // itemsize)
            steps.append(step)
        xs, ws, ys = lifted(last.strides, 0), lifted(w.strides, 0), lifted(y.strides, 0)
        whole = last.channels_last and in_channels % vector == 0 and in_vectors(last, spec.dtype)
        if whole and packed:
            ws = (shape.k, 1, *(stride * in_channels for stride in ws[2:]))
            weight = Placed(WORKSPACE, partial // itemsize, aligned=True)
            steps.append(packed_weight(spec, partial))
        # Whether neighbours in memory are neighbours in k.
        ordered = taps == 1 or weight.array == WORKSPACE or not last.channels_last
        wholes = ordered and shape.k % vector == 0 and weight.aligned, whole
        places = Places(
            rows=taps_of(
                axes, in_channels, xs[1:], ws[1:], linear=linear, channels_first=not last.channels_last
            ),
            columns=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (ys[0], *ys[2:]), linear=linear),
            axes=axes,
            gathered=images._replace(group=in_channels * xs[1]),
            gathered_strides=xs[2:],
            dense=weight._replace(row=shape.k, group=out_channels * shape.k),
            result=Placed(3, 0, ys[1], out_channels * ys[1], y.aligned),
            bias=bias and Placed(2, 0, row=bias.strides[0], group=out_channels * bias.strides[0]),
        )
        if otherwise is None:
            program = tensor_product(
                shape,
                types,
                choice,
                lanes=int(last.channels_last),
                whole=wholes,
                split=split,
                mode=spec.padding_mode,
                **places,
            )
        elif all(wholes):
            program = warpgroup_product(shape, types, choice, **places)
        else:
            return otherwise(x, w, bias, y)
        if not steps or not program.steps:
            return program
        return Program(steps=(*steps, *program.steps), workspace=way.workspace)

    return build


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
