"""The column matrix and its adjoint (``kernels/unfold.cu``), and convolution as a product of it by cuBLAS.

``im2col`` is the textbook method and the reference of this backend: columns of as many images as :data:`TARGET_BYTES`
hold are written out, ``cupy.matmul`` multiplies them. A 1x1 kernel over an image in C order needs no columns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm
from fastconv.backends.cupy.geometry import (
    AXES,
    BOX,
    DIVISOR,
    ELEMENT_THREADS,
    Digit,
    box,
    c_strides,
    check_counts,
    divisor,
    fill,
    images_at_once,
    lifted,
    padding,
    portions,
    tiles,
    volume,
)
from fastconv.backends.cupy.implicit_gemm import check_positions
from fastconv.backends.cupy.launch import (
    WORKSPACE,
    Address,
    Kernel,
    Launch,
    Operand,
    Product,
    Program,
    View,
    kept,
)
from fastconv.backends.cupy.packing import packed_weight
from fastconv.backends.cupy.pooling import BANDWIDTH
from fastconv.backends.cupy.product import Placed, Shape, Types, total
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, ConvSpec, Op, Sizes

COLUMNS = np.dtype(
    [
        *((name, "u8") for name in ("from", "to")),
        ("image_stride", "i8", 2 + AXES),
        ("columns_stride", "i8", 3),
        ("count", "i4"),
        *((name, "i4", AXES) for name in ("size", "out", "kernel", "stride", "dilation", "before", "after")),
        *((name, DIVISOR) for name in ("positions", "taps")),
        *((name, DIVISOR, AXES) for name in ("q", "k")),
        ("box", BOX),
    ],
    align=True,
)

# Columns held at a time. They pass through memory anyway: a larger chunk saves launches, and these are few at 256 MiB.
TARGET_BYTES = 256 << 20

# Bytes of columns a second beside the product, on an H200: unfolded and read by cuBLAS, written by it and folded, unfolded and
# read as the transposed matrix.
UNFOLDED, FOLDED, TRANSPOSED = 0.64e12, 0.4e12, 0.45e12

# Bytes `cupy.matmul` takes for a matrix that is multiplied by one that several share: pointers to both and to the result, and
# as much again while it makes them.
POINTERS = 2 * 3 * 8

# Operations a second of cuBLAS in float32, 33 to 36e12 in batches of ResNet-50's 1x1 layers on an H200, and the seconds such a
# batch takes beside them: its pointers to matrices are made and copied. The host takes 80 us for all that, which a shorter
# call waits for.
RATE = 35e12
BATCH_SECONDS = 15e-6
HOST_SECONDS = 80e-6
CUBLAS_TILE = 128


def _columns(
    spec: ConvSpec,
    some: int,
    fold: bool,
    types: tuple[str, str, str],
    image: tuple[Address, tuple[int, ...]],
    columns: tuple[Address, tuple[int, ...]],
) -> Launch:
    """The launch that makes columns of so many images, or images of columns; an array is an address and strides."""
    filler = AXES - spec.rank
    pads = ((0, 0),) * filler + spec.padding
    kernel, out = (1,) * filler + spec.kernel_size, (1,) * filler + spec.out_size
    count = some * volume(spec.input_shape[1:] if fold else spec.columns_shape[1:])
    stored, sums, result = types
    defines: tuple[tuple[str, str | int], ...] = (
        ("IN", stored),
        ("SUM", sums),
        ("OUT", result),
        ("PADDING", padding(spec.padding_mode)),
        ("FOLD", int(fold)),
    )
    return Launch(
        kernel=Kernel("unfold.cu", "unfold", defines),
        grid=tiles(count, ELEMENT_THREADS),
        block=ELEMENT_THREADS,
        params=fill(
            COLUMNS,
            image_stride=image[1],
            columns_stride=columns[1],
            count=count,
            size=(1,) * filler + spec.in_size,
            out=out,
            kernel=kernel,
            stride=(1,) * filler + spec.stride,
            dilation=(1,) * filler + spec.dilation,
            before=tuple(before for before, _ in pads),
            after=tuple(after for _, after in pads),
            positions=divisor(volume(out)),
            taps=divisor(volume(kernel)),
            q=[divisor(size) for size in out],
            k=[divisor(size) for size in kernel],
            box=box(spec.input_shape),
        ),
        addresses=(image[0], columns[0]),
    )


def _at(
    field: str, array: int, strides: tuple[int, ...], begin: int, dtype: str
) -> tuple[Address, tuple[int, ...]]:
    return Address(field, array, begin * strides[0] * DTYPES[dtype].itemsize), strides


def _columns_check(spec: ConvSpec) -> None:
    check_positions(spec)
    check_counts(**{"kernel elements": volume(spec.kernel_size)})


def unfold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """im2col: one element of the columns a thread."""
    _columns_check(spec)
    images = images_at_once(spec.batch, volume(spec.columns_shape[1:]), 0, workspace_limit)

    @kept
    def build(x: View, columns: View) -> Program:
        return Program(
            steps=tuple(
                _columns(
                    spec,
                    some,
                    False,
                    (spec.dtype,) * 3,
                    _at("from", 0, lifted(x.strides, 0), begin, spec.dtype),
                    _at("to", 1, columns.strides, begin, spec.dtype),
                )
                for begin, some in portions(spec.batch, images)
            )
        )

    return Run(call=OnDevice(build), seconds=spec.nbytes(Op.UNFOLD) / BANDWIDTH)


def fold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """col2im as a gather: each element of the image asks the columns that hold it."""
    _columns_check(spec)
    images = images_at_once(spec.batch, volume(spec.input_shape[1:]), 0, workspace_limit)
    types = spec.dtype, DTYPES[spec.dtype].accumulate, spec.out_dtype

    @kept
    def build(columns: View, x: View) -> Program:
        return Program(
            steps=tuple(
                _columns(
                    spec,
                    some,
                    True,
                    types,
                    _at("to", 1, lifted(x.strides, 0), begin, spec.out_dtype),
                    _at("from", 0, columns.strides, begin, spec.dtype),
                )
                for begin, some in portions(spec.batch, images)
            )
        )

    return Run(call=OnDevice(build), seconds=spec.nbytes(Op.FOLD) / BANDWIDTH)


def copied(shape: Sizes, dtype: str, source: Address, strides: Sizes, target: Address) -> Iterator[Launch]:
    """The launches that copy an array into C order: an image is its own columns of a 1x1 kernel."""
    batch, channels, *axes = shape
    image = ConvSpec(
        batch=batch,
        in_channels=channels,
        out_channels=channels,
        in_size=tuple(axes),
        kernel_size=(1,) * len(axes),
        dtype=dtype,
    )
    in_order = (*c_strides(image.columns_shape)[:2], 1)
    for begin, some in portions(batch, images_at_once(batch, volume(shape[1:]), 0, None)):
        yield _columns(
            image,
            some,
            False,
            (dtype,) * 3,
            _moved(source, lifted(strides, 0), begin, dtype),
            _moved(target, in_order, begin, dtype),
        )


def _moved(place: Address, strides: Sizes, begin: int, dtype: str) -> tuple[Address, Sizes]:
    offset = place.offset + begin * strides[0] * DTYPES[dtype].itemsize
    return place._replace(offset=offset), strides


def _check_product(spec: ConvSpec) -> None:
    """Decline what cuBLAS through CuPy would not sum as this library promises."""
    if spec.dtype not in ("float32", "float64") or spec.out_dtype != spec.dtype:
        raise Unsupported(
            f"the types are {spec.dtype} to {spec.out_dtype}, needs float32 or float64 throughout"
        )
    if spec.dtype == "float32" and os.environ.get("CUPY_TF32", "0") != "0":
        raise Unsupported("CUPY_TF32 is set, which has cuBLAS round float32 operands to 11 bits; unset it")
    _columns_check(spec)


class _Columned:
    """A convolution's columns, some images at a time: how many, what they cost, where they lie.

    They lie behind `before` bytes of other scratch, `own` bytes in all. `cupy.matmul` takes `beside` bytes more for each
    image: it copies operands that are not in C order.
    """

    def __init__(self, spec: ConvSpec, limit: int | None, before: int = 0, beside: int = 0) -> None:
        _check_product(spec)
        self.spec, self.before = spec, before
        self.itemsize = DTYPES[spec.dtype].itemsize
        image = volume(spec.columns_shape[1:])
        one = image * self.itemsize + beside
        if limit is not None and spec.batch and before + one > limit:
            raise Unsupported(f"needs {before + one} bytes of scratch for one image", workspace=before + one)
        left = None if limit is None else max(limit - before, 0)
        images = images_at_once(spec.batch, image, one, left)
        self.images = min(images, max(TARGET_BYTES // max(one, 1), 1))
        self.beside = self.images * beside
        self.own = before + self.images * image * self.itemsize
        self.rows, self.positions = spec.columns_shape[1] // spec.groups, spec.columns_shape[2]
        self.strides = (*c_strides(spec.columns_shape)[:2], 1)

    def columns(self, some: int) -> Operand:
        """The columns of so many images in the workspace: (images, groups, rows, positions)."""
        return self._matrix(WORKSPACE, self.before, some, self.rows)

    def place(self, field: str) -> tuple[Address, Sizes]:
        """Where columns are written or read."""
        return Address(field, WORKSPACE, self.before), self.strides

    def pixels(self, array: int, begin: int, some: int) -> Operand:
        """Those images of an output-shaped array in C order: (images, groups, channels, positions)."""
        channels = self.spec.out_channels // self.spec.groups
        start = begin * self.spec.out_channels * self.positions * self.itemsize
        return self._matrix(array, start, some, channels)

    def weight(self) -> Operand:
        """The weight: (groups, out channels, rows)."""
        channels = self.spec.out_channels // self.spec.groups
        shape = (self.spec.groups, channels, self.rows)
        return Operand(1, 0, shape, (channels * self.rows, self.rows, 1), self.spec.dtype)

    def _matrix(self, array: int, start: int, some: int, rows: int) -> Operand:
        groups, positions = self.spec.groups, self.positions
        strides = (groups * rows * positions, rows * positions, positions, 1)
        return Operand(array, start, (some, groups, rows, positions), strides, self.spec.dtype)

    def is_pointwise(self) -> bool:
        """Whether the columns are the image."""
        spec = self.spec
        return volume(spec.kernel_size) == volume(spec.stride) == 1 and not any(map(any, spec.padding))

    def note(self) -> str:
        """What was decided, for people."""
        return f"columns of {self.images} image{'s' * (self.images != 1)} at a time"


def _seconds(flops: float, columns: float) -> float:
    """Of so many operations by cuBLAS, and of columns beside them."""
    return max(HOST_SECONDS, BATCH_SECONDS + flops / RATE + columns)


def _pointers(spec: ConvSpec) -> int:
    """Bytes of pointers for each image's matrices, which share the weight."""
    return POINTERS * spec.groups * (spec.batch > 1)


def turned(operand: Operand) -> Operand:
    """The transposed matrix."""
    *head, a, b = operand.shape
    *steps, c, d = operand.strides
    return operand._replace(shape=(*head, b, a), strides=(*steps, d, c))


def im2col(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward: weight times columns."""
    made = _Columned(spec, workspace_limit, beside=_pointers(spec))
    pointwise = made.is_pointwise()
    in_place = c_strides(spec.input_shape)

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        steps: list[Any] = []
        bare = pointwise and lifted(x.strides, 0) == in_place
        for begin, some in portions(spec.batch, made.images):
            columns = made.columns(some)
            if bare:
                columns = columns._replace(array=0, offset=begin * in_place[0] * made.itemsize)
            else:
                source = _at("from", 0, lifted(x.strides, 0), begin, spec.dtype)
                steps.append(_columns(spec, some, False, (spec.dtype,) * 3, source, made.place("to")))
            steps.append(Product(left=made.weight(), right=columns, out=made.pixels(3, begin, some)))
        if bias and spec.batch:
            steps.append(biased(spec.output_shape, spec.dtype, bias))
        return Program(steps=tuple(steps), workspace=0 if bare else made.own)

    return Run(
        call=OnDevice(build),
        seconds=_seconds(spec.flops(), (not pointwise) * spec.columns_nbytes / UNFOLDED),
        shared=made.beside + (0 if pointwise else made.own),
        note="the image is its own columns" if pointwise else made.note(),
    )


def biased(result: Sizes, dtype: str, bias: View) -> Launch:
    """The launch that adds the bias to a result of this shape in C order, where it lies."""
    batch, channels, positions = result[0], result[1], volume(result[2:])
    launch = total(
        Shape(channels, positions, 0, batch),
        Types(dtype, DTYPES[dtype].accumulate, dtype),
        1,
        (Digit(positions, other=1), *(Digit(1),) * AXES),
        Placed(3, 0, row=positions, group=channels * positions),
        Placed(2, 0, row=bias.strides[0]),
        part=dtype,
    )
    addresses = tuple(Address("parts", 3) if a.field == "parts" else a for a in launch.addresses)
    return replace(launch, addresses=addresses)


@algorithm("im2col")
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Input gradient: transposed weight times ``grad_output`` are columns, which are folded."""
    o_group, weight = spec.out_channels // spec.groups, volume(spec.weight_shape)
    before = weight * DTYPES[spec.dtype].itemsize
    made = _Columned(spec, workspace_limit, before, _pointers(spec))
    # Written once, where `cupy.matmul` would copy it for every product.
    strides = (made.rows * o_group, o_group, 1)
    transposed = Operand(WORKSPACE, 0, (spec.groups, made.rows, o_group), strides, spec.dtype)

    @kept
    def build(dy: View, w: View, bias: View | None, dx: View) -> Program:
        steps: list[Any] = [packed_weight(spec, 0, of_gradient=True)] if weight and spec.batch else []
        strides = lifted(dx.strides, 0)
        for begin, some in portions(spec.batch, made.images):
            columns = made.columns(some)
            steps.append(Product(left=transposed, right=made.pixels(0, begin, some), out=columns))
            target = _at("to", 3, strides, begin, spec.dtype)
            steps.append(_columns(spec, some, True, (spec.dtype,) * 3, target, made.place("from")))
        if bias and spec.batch:
            steps.append(biased(spec.input_shape, spec.dtype, bias))
        return Program(steps=tuple(steps), workspace=made.own)

    return Run(
        call=OnDevice(build),
        seconds=_seconds(spec.flops(), spec.columns_nbytes / FOLDED),
        shared=made.own + made.beside,
        note=made.note(),
    )


@algorithm("im2col")
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Weight gradient: each image's columns times its transposed ``grad_output``, added up in order.

    `cupy.matmul` copies what is transposed: ``grad_output`` is smaller than columns are.
    """
    weight, itemsize = volume(spec.weight_shape), DTYPES[spec.dtype].itemsize
    # Sums of every image, and behind them columns of some.
    sums = spec.batch * weight * itemsize
    made = _Columned(spec, workspace_limit, sums, volume(spec.output_shape[1:]) * itemsize)
    c_group, o_group = made.rows, spec.out_channels // spec.groups
    # cuBLAS makes an image's small matrix of whole tiles.
    filled = math.prod(tiles(size, CUBLAS_TILE) * CUBLAS_TILE / max(size, 1) for size in (c_group, o_group))

    @kept
    def build(x: View, dy: View, dw: View) -> Program:
        steps: list[Any] = []
        for begin, some in portions(spec.batch, made.images):
            source = _at("from", 0, lifted(x.strides, 0), begin, spec.dtype)
            steps.append(_columns(spec, some, False, (spec.dtype,) * 3, source, made.place("to")))
            out = Operand(
                WORKSPACE,
                begin * weight * made.itemsize,
                (some, spec.groups, c_group, o_group),
                (weight, o_group * c_group, o_group, 1),
                spec.dtype,
            )
            right = turned(made.pixels(1, begin, some))
            steps.append(Product(left=made.columns(some), right=right, out=out))
        shape = Shape(c_group, o_group, 0, spec.groups)
        transposed = (Digit(o_group, other=c_group), *(Digit(1),) * AXES)
        types = Types(spec.dtype, spec.dtype, spec.dtype)
        result = Placed(2, 0, row=1, group=o_group * c_group)
        steps.append(total(shape, types, spec.batch, transposed, result, None))
        return Program(steps=tuple(steps), workspace=made.own)

    return Run(
        call=OnDevice(build),
        seconds=_seconds(filled * spec.flops(), spec.columns_nbytes / TRANSPOSED + 2 * sums / BANDWIDTH),
        shared=made.own + made.beside,
        note=made.note() + ", each image's sums apart",
    )
