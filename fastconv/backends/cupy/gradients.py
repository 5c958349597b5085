"""Gradients of a convolution, as products whose columns are never stored.

The gradient of the input gathers from ``grad_output``: at a stride the input's positions fall into phases, each met by
every so many-th kernel element alone, and each a product of its own without a wasted multiplication. The gradient of the
weight is one product over images and positions, cut into parts that are added up in a fixed order. Either kind of
product, on CUDA cores or on tensor cores, takes the same places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from fastconv.backends import Run, algorithm
from fastconv.backends.cupy.geometry import (
    AXES,
    BOX,
    ELEMENT_THREADS,
    Axis,
    box,
    c_strides,
    check_counts,
    fill,
    images_at_once,
    lifted,
    padding,
    portions,
    tiles,
    volume,
)
from fastconv.backends.cupy.implicit_gemm import check_positions, forward_axes, types_of
from fastconv.backends.cupy.implicit_gemm_mma import by_warpgroups, on_tensor_cores
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, Program, View, kept
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
    AnyTile,
    Choice,
    Placed,
    Places,
    Shape,
    Types,
    WarpgroupTile,
    choose,
    pixels_of,
    product,
    taps_of,
    tensor_product,
    tiles_of,
    total,
    warp_tiles_of,
    warpgroup_product,
    warpgroup_tiles,
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


# A weight gradient's product for a forward one as large: where a row of positions leads is looked for at every kernel element.
ROWS_OF_POSITIONS = 1.3


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


class Part(NamedTuple):
    """One phase of all three axes: how it reads, and where its weights and results begin and how they lie (elements)."""

    axes: list[Axis]
    weight_start: int
    weight_taps: tuple[int, ...]
    result_start: int
    result_strides: tuple[int, ...]


class Phased(NamedTuple):
    """What the launches of one phase are made from.

    Attributes
    ----------
    spec : ConvSpec
        Padded with zeros.
    types : Types
        Of ``grad_output``, of sums and of the result.
    images : int
    dy, w : View
    source, target : Placed
        The first image of ``grad_output`` and of the result, which has no other offset.
    strides : tuple of int
        Of the result, lifted.
    bias : View or None
    weight : Placed
        The weight as given, or packed in scratch: in the order it is summed.
    whole : tuple of bool
        Whether numbers of k come in whole vectors, of the weight and of ``grad_output``.
    """

    spec: ConvSpec
    types: Types
    images: int
    dy: View
    w: View
    source: Placed
    target: Placed
    strides: tuple[int, ...]
    bias: View | None
    weight: Placed
    whole: tuple[bool, bool] = (False, False)

    def parts(self) -> Iterator[Part]:
        """The phases, each with its place."""
        ws = lifted(self.w.strides, 0)[2:]
        axes, steps = self.strides[2:], (1,) * (AXES - self.spec.rank) + self.spec.stride
        for chosen in itertools.product(*_along(self.spec)):
            yield Part(
                axes=[phase.axis for phase in chosen],
                weight_start=sum(phase.tap * stride for phase, stride in zip(chosen, ws, strict=True)),
                weight_taps=tuple(phase.tap_step * stride for phase, stride in zip(chosen, ws, strict=True)),
                result_start=sum(phase.first * stride for phase, stride in zip(chosen, axes, strict=True)),
                result_strides=tuple(stride * step for stride, step in zip(axes, steps, strict=True)),
            )

    def unmet(self) -> Iterator[Launch]:
        """Where some positions meet no tap at all, everything gets its bias first."""
        spec, strides = self.spec, self.strides
        steps = (1,) * (AXES - spec.rank) + spec.stride
        sizes = lifted(spec.input_shape, 1)[2:]
        met = all(
            len(some) == min(step, size) for some, step, size in zip(_along(spec), steps, sizes, strict=True)
        )
        if not met and self.images:
            everything = [Axis(1, size, 0, 1, 0, 0) for size in sizes]
            columns = pixels_of(everything, self.images, (0,) * 4, (strides[0], *strides[2:]), linear=True)
            shape = Shape(spec.in_channels, self.images * volume(sizes), 0, 1)
            result = self.target._replace(row=strides[1])
            bias = self.bias and Placed(2, 0, row=self.bias.strides[0])
            yield total(shape, self.types, 0, columns, result, bias)


Steps = Iterator[Launch]


def by_phases(
    spec: ConvSpec,
    workspace_limit: int | None,
    launches: Callable[[Phased], Steps],
    seconds: float,
    note: str,
    error: float = 0.0,
    gathered: float | None = None,
    hopper: Callable[[Phased], Steps] | None = None,
) -> Run:
    """Input gradient by phases; where padding shows input elements, of the padded input, which is then folded.

    Launches of which `gathered` is given, the seconds they take where they gather number by number, take a packed weight
    where its vectors of k are whole ones, and images that are turned where that is estimated to pay. `hopper` are those on
    compute capability 9.0.
    """
    check_positions(spec)
    bare = unpadded(spec)
    check_counts(
        **{
            "input positions of the batch": spec.batch * volume(bare.in_size),
            "products of one sum": spec.out_channels // spec.groups * volume(spec.kernel_size),
        }
    )
    types = types_of(spec)
    plain = spec.padding_mode == "zeros"
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    vector = numbers_of_vector(spec.dtype)
    # Taps that are summed one after the other are neighbours where one phase has them all.
    by_channels, by_taps = o_group % vector == 0, o_group * volume(spec.kernel_size) % vector == 0
    by_taps = by_taps and volume(spec.stride) == 1
    packed = (
        packed_bytes(spec, workspace_limit)
        if gathered is not None and plain and (by_channels or by_taps)
        else 0
    )
    turned = 0
    if gathered is not None:
        if packed and by_channels:
            left = left_of(workspace_limit, packed)
            turned = turned_bytes(spec.output_shape, spec.dtype, gathered - seconds, left)
        seconds = turning(turned) + seconds if turned else gathered
    images, own = spec.batch, packed + turned
    if not plain:
        image = volume(bare.input_shape[1:]) * DTYPES[types.sums].itemsize
        images = images_at_once(spec.batch, volume(bare.input_shape[1:]), image, workspace_limit)
        own = images * image

    def build(launches: Callable[[Phased], Steps], dy: View, w: View, bias: View | None, dx: View) -> Program:
        dys, dxs = lifted(dy.strides, 0), lifted(dx.strides, 0)
        weight = Placed(1, 0, group=o_group * w.strides[0])
        steps: list[Launch] = []
        if plain:
            whole = False, False
            source, target = Placed(0, 0, aligned=dy.aligned), Placed(3, 0, aligned=dx.aligned)
            if turned and not dy.channels_last:
                step, dy = turned_images(spec.output_shape, spec.dtype, dy, packed)
                source = Placed(WORKSPACE, packed // DTYPES[spec.dtype].itemsize, aligned=True)
                steps.append(step)
            last = dy.channels_last
            if packed and (by_channels if last else by_taps):
                steps.append(packed_weight(spec, 0, of_gradient=True, channels_last=last))
                w = _packed_view(spec, last)
                weight = Placed(WORKSPACE, 0, group=c_group * w.strides[1])
                whole = True, last and in_vectors(dy, spec.dtype)
            scratch = own if steps else 0
            phased = Phased(spec, types, images, dy, w, source, target, dxs, bias, weight, whole)
            return Program(steps=(*steps, *phased.unmet(), *launches(phased)), workspace=scratch)
        inner, target = c_strides(bare.input_shape), Placed(WORKSPACE, 0, aligned=True)
        for begin, some in portions(spec.batch, images):
            source = Placed(0, begin * dys[0], aligned=dy.aligned)
            padded_types = types._replace(out=types.sums)
            phased = Phased(bare, padded_types, some, dy, w, source, target, inner, None, weight)
            steps += [*phased.unmet(), *launches(phased), _folded(spec, some, inner, bias, begin, dxs)]
        return Program(steps=tuple(steps), workspace=own)

    count = math.prod(map(len, _along(spec if plain else bare)))
    folded = "" if plain else f", of {images} padded images at a time, then folded"
    return Run(
        call=OnDevice(kept(partial(build, launches)), hopper and kept(partial(build, hopper))),
        seconds=seconds,
        shared=own,
        note=f"{note}{count} phase{'s' * (count != 1)}{folded}{told(turned)}",
        error=error,
    )


@algorithm("implicit_gemm")
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Input gradient: in channels by positions of one phase, summed over out channels and the taps that meet them."""
    chosen = _chosen(spec, tiles_of(types_of(spec).sums))
    return by_phases(spec, workspace_limit, _products, _seconds(spec, chosen), "")


@algorithm("implicit_gemm_mma")
def input_grad_mma(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """The same on tensor cores; sums are float32."""
    split, error = on_tensor_cores(spec, precision)
    wide, narrow = by_warpgroups(spec), warp_tiles_of(spec.dtype, split)
    chosen = _chosen(spec, narrow)
    gathered = sum(gathering(spec.dtype, shape, choice) for shape, choice in chosen)
    if wide:
        chosen = _chosen(spec, (*warpgroup_tiles(), *narrow))
    launches = partial(_tensor_products, split=split)
    hopper = partial(_tensor_products, split=split, wide=True) if wide else None
    return by_phases(spec, workspace_limit, launches, _seconds(spec, chosen), "", error, gathered, hopper)


def _chosen(spec: ConvSpec, among: Sequence[AnyTile]) -> list[tuple[Shape, Choice]]:
    """The product of every phase."""
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    found = []
    for phase in itertools.product(*_along(spec)):
        columns, taps = (
            math.prod(sizes) for sizes in zip(*((p.axis.columns, p.axis.taps) for p in phase), strict=True)
        )
        shape = Shape(c_group, spec.batch * columns, o_group * taps, spec.groups)
        found.append((shape, choose(shape, among, types_of(spec).sums, None, counts=(1,))))
    return found


def _seconds(spec: ConvSpec, chosen: Sequence[tuple[Shape, Choice]]) -> float:
    """Of all phases one after the other, or of their traffic."""
    return max(sum(choice.seconds for _, choice in chosen), spec.nbytes(Op.CONV_INPUT_GRAD) / BANDWIDTH)


def _packed_view(spec: ConvSpec, channels_last: bool) -> View:
    """How the weight lies that :func:`packed_weight` writes for this gradient."""
    o_group, taps = spec.out_channels // spec.groups, volume(spec.kernel_size)
    along = [math.prod(spec.kernel_size[at + 1 :]) for at in range(spec.rank)]
    if channels_last:
        return View((1, taps * o_group, *(step * o_group for step in along)), True)
    return View((taps, taps * o_group, *along), True)


def _products(given: Phased) -> Steps:
    """The launches of every phase, as products on CUDA cores."""
    for shape, places in _places(given):
        choice = choose(shape, tiles_of(given.types.sums), given.types.sums, None, counts=(1,))
        yield from product(shape, given.types, choice, lanes=int(given.dy.channels_last), **places).launches


def _tensor_products(given: Phased, split: bool, wide: bool = False) -> Steps:
    """The launches of every phase, as products on tensor cores; `wide` ones may be warpgroups'."""
    for shape, places in _places(given):
        among: tuple[AnyTile, ...] = warp_tiles_of(given.types.stored, split)
        if wide and all(given.whole):
            among = (*warpgroup_tiles(), *among)
        choice = choose(shape, among, given.types.sums, None, counts=(1,))
        if isinstance(choice.tile, WarpgroupTile):
            program = warpgroup_product(shape, given.types, choice, **places)
        else:
            program = tensor_product(
                shape,
                given.types,
                choice,
                lanes=int(given.dy.channels_last),
                whole=given.whole,
                split=split,
                **places,
            )
        yield from program.launches


def _places(given: Phased) -> Iterator[tuple[Shape, Places]]:
    """The product of every phase: its shape, and where its numbers are."""
    spec, strides = given.spec, given.strides
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    dys, ws = lifted(given.dy.strides, 0), lifted(given.w.strides, 0)
    bias = given.bias and Placed(2, 0, given.bias.strides[0], c_group * given.bias.strides[0])
    last = given.dy.channels_last
    for part in given.parts():
        shape = Shape(
            c_group,
            given.images * volume(tuple(axis.columns for axis in part.axes)),
            o_group * volume(tuple(axis.taps for axis in part.axes)),
            spec.groups,
        )
        taps = (ws[0], *part.weight_taps)
        yield (
            shape,
            Places(
                rows=taps_of(part.axes, o_group, dys[1:], taps, linear=True, channels_first=not last),
                columns=pixels_of(
                    part.axes,
                    given.images,
                    (dys[0], *dys[2:]),
                    (strides[0], *part.result_strides),
                    linear=True,
                ),
                axes=part.axes,
                gathered=given.source._replace(group=o_group * dys[1]),
                gathered_strides=dys[2:],
                dense=given.weight._replace(start=part.weight_start, row=ws[1]),
                result=given.target._replace(
                    start=given.target.start + part.result_start, row=strides[1], group=c_group * strides[1]
                ),
                bias=bias,
            ),
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
    shape, types = weight_shape(spec), types_of(spec)
    choice = choose(shape, tiles_of(types.sums), types.sums, workspace_limit)

    @kept
    def build(x: View, dy: View, dw: View) -> Program:
        places, lanes = weight_places(spec, x, dy, dw), int(not x.channels_last)
        return product(shape, types, choice, lanes=lanes, mode=spec.padding_mode, **places)

    return Run(
        call=OnDevice(build),
        seconds=max(ROWS_OF_POSITIONS * choice.seconds, spec.nbytes(Op.CONV_WEIGHT_GRAD) / BANDWIDTH),
        shared=choice.workspace(shape, types.sums),
        note=choice.note(shape),
    )


@algorithm("implicit_gemm_mma")
def weight_grad_mma(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """The same on tensor cores; sums are float32."""
    split, error = on_tensor_cores(spec, precision)
    check_positions(spec)
    shape, types = weight_shape(spec), types_of(spec)
    choice = choose(shape, warp_tiles_of(spec.dtype, split), types.sums, workspace_limit)

    @kept
    def build(x: View, dy: View, dw: View) -> Program:
        places, lanes = weight_places(spec, x, dy, dw), int(not x.channels_last)
        whole = _in_vectors(spec, dy), _pointwise(spec) and _in_vectors(spec, x)
        return tensor_product(
            shape,
            types,
            choice,
            lanes=lanes,
            whole=whole,
            split=split,
            mode=spec.padding_mode,
            **places,
        )

    return Run(
        call=OnDevice(build),
        seconds=max(ROWS_OF_POSITIONS * choice.seconds, spec.nbytes(Op.CONV_WEIGHT_GRAD) / BANDWIDTH),
        shared=choice.workspace(shape, types.sums),
        note=choice.note(shape),
        error=error,
    )


def weight_shape(spec: ConvSpec) -> Shape:
    """Of a weight gradient's product."""
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    return Shape(o_group, c_group * volume(spec.kernel_size), spec.batch * volume(spec.out_size), spec.groups)


def weight_places(spec: ConvSpec, x: View, dy: View, dw: View) -> Places:
    """Where the numbers of a weight gradient's product are."""
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    axes, linear = forward_axes(spec), spec.padding_mode == "zeros"
    xs, dys, dws = lifted(x.strides, 0), lifted(dy.strides, 0), lifted(dw.strides, 0)
    return Places(
        rows=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (dys[0], *dys[2:]), linear=linear),
        columns=taps_of(axes, c_group, xs[1:], dws[1:], linear=linear, channels_first=not x.channels_last),
        axes=axes,
        gathered=Placed(0, 0, group=c_group * xs[1]),
        gathered_strides=xs[2:],
        dense=Placed(1, 0, row=dys[1], group=o_group * dys[1]),
        result=Placed(2, 0, dws[0], o_group * dws[0], dw.aligned),
    )


def _pointwise(spec: ConvSpec) -> bool:
    """Whether every output position reads the input's position of the same number."""
    return volume(spec.kernel_size) == 1 and spec.in_size == spec.out_size and not any(map(any, spec.padding))


def _in_vectors(spec: ConvSpec, images: View) -> bool:
    """Whether images that are as large as the output hold positions in a row, whole vectors of them to a channel."""
    vector, size = numbers_of_vector(spec.dtype), volume(spec.out_size)
    rows = [stride for stride, n in zip(images.strides[2:], spec.out_size, strict=True) if n > 1]
    real = [n for n in spec.out_size if n > 1]
    in_a_row = [math.prod(real[at + 1 :]) for at in range(len(real))]
    channels = zip(images.strides[:2], (spec.batch, 2), strict=True)
    whole = size % vector == 0 and all(stride % vector == 0 for stride, n in channels if n > 1)
    return images.aligned and rows == in_a_row and whole
