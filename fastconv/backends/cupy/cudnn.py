"""Convolution and its gradients by cuDNN, NVIDIA's library: an extra, taken by name alone.

It is never chosen by ``"auto"`` or ``"measure"``: what a call computes with, and its bits, shall not depend on what else
is installed. Results keep this backend's promises all the same, so plans of cuDNN that break one are left out (``graph.py``):
in float32 its tensor cores unless ``precision="tf32"``, everywhere Winograd, FFT, narrower sums, and atomics.

cuDNN says only on a device what it takes and what scratch it wants. So a planner, once it is named, builds the graphs of
arrays in C order there and then; those of other layouts are built in their first call, which may still be refused.

Arrays are read where they lie, in any order of axes. What cuDNN does not read (steps backwards or of zero, a start that
is no multiple of 16 bytes) is copied first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastconv import gpu
from fastconv.backends import TF32_ERROR, Run, Unsupported, algorithm
from fastconv.backends.cupy import graph
from fastconv.backends.cupy.columns import biased, copied
from fastconv.backends.cupy.geometry import tiles, volume
from fastconv.backends.cupy.launch import (
    WORKSPACE,
    Address,
    Build,
    Graph,
    Launch,
    Operand,
    Program,
    View,
    kept,
)
from fastconv.backends.cupy.product import VECTOR_BYTES
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import ConvSpec, Op, Shape, Sizes

# Spatial axes of cuDNN's arrays: one has a second of one element put before it.
LEAST_AXES = 2

# Its operations a second without and with tensor cores: 3x3 layers of ResNet-50 on an H200.
RATE = {False: 30e12, True: 400e12}

# What rounding a narrow result once more, to add a bias to it, may cost: half a unit of its last place.
ROUNDED_AGAIN = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@algorithm("cudnn", by_name=True)
def cudnn(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward; a bias is added before the result is rounded."""
    return _planned(spec, Op.CONV, precision, workspace_limit)


@algorithm("cudnn", by_name=True)
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Input gradient; cuDNN adds no bias to it, so that comes after, to a result that is rounded already."""
    again = ROUNDED_AGAIN.get(spec.dtype, 0.0)
    if again and precision == "highest":
        raise Unsupported(f"a bias would round {spec.dtype} twice, which precision='highest' does not allow")
    made = _planned(spec, Op.CONV_INPUT_GRAD, precision, workspace_limit)
    return replace(made, error=made.error + again)


@algorithm("cudnn", by_name=True)
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Weight gradient."""
    return _planned(spec, Op.CONV_WEIGHT_GRAD, precision, workspace_limit)


def _planned(spec: ConvSpec, op: Op, precision: str, limit: int | None) -> Run:
    _check(spec)
    if why := gpu.cudnn():
        raise Unsupported(why)
    shapes = spec.shapes(op)
    tf32 = spec.dtype == "float32" and precision == "tf32"
    tensor_cores = tf32 or spec.dtype != "float32"
    before = _lifted(tuple(pads[0] for pads in spec.padding), 0)
    after = _lifted(tuple(max(pads[1], 0) for pads in spec.padding), 0)

    @kept
    def build(*views: View | None) -> Program:
        left, right, *others, result = views
        bias = others[0] if others else None
        scratch = _Scratch()
        operands = scratch.read(0, shapes[0], left), scratch.read(1, shapes[1], right)
        added = None
        if bias and op is Op.CONV:
            added = scratch.read(2, *_one_position(bias, spec))
        written = scratch.written(len(views) - 1, shapes[2], result)
        if limit is not None and scratch.nbytes > limit:
            raise Unsupported(
                f"needs {scratch.nbytes} bytes of scratch for copies of what cuDNN does not read where it lies",
                workspace=scratch.nbytes,
            )
        step = Graph(
            op=op,
            operands=operands,
            bias=added,
            result=written,
            stride=_lifted(spec.stride, 1),
            dilation=_lifted(spec.dilation, 1),
            before=before,
            after=after,
            tensor_cores=tensor_cores,
            limit=None if limit is None else limit - scratch.nbytes,
        )
        last = (biased(shapes[2].shape, spec.dtype, bias),) if bias and op is Op.CONV_INPUT_GRAD else ()
        return Program(steps=(*scratch.first, step, *scratch.then, *last), workspace=scratch.nbytes)

    first, *more = (graph.built(step) for step in _expected(build, op, shapes))
    return Run(
        call=OnDevice(build),
        seconds=spec.flops(op) / RATE[tensor_cores],  # for `explain`: it chooses nothing
        shared=max(there.workspace for there in (first, *more)),
        note=f"{first.name}, the first plan that will do",
        error=TF32_ERROR if tf32 else 0.0,
    )


def _expected(build: Build, op: Op, shapes: tuple[Shape, ...]) -> Iterator[Graph]:
    """The graphs of arrays in C order: cuDNN says of no other what scratch it wants. A bias may come or not."""
    left, right, result = map(_in_order, shapes)
    calls: list[tuple[View | None, ...]] = [(left, right, None, result)]
    if op is Op.CONV:
        calls.append((left, right, View((1,), True), result))
    if op is Op.CONV_WEIGHT_GRAD:
        calls = [(left, right, result)]
    for call in calls:
        yield from (step for step in build(*call).steps if isinstance(step, Graph))


def _check(spec: ConvSpec) -> None:
    """Decline what cuDNN's convolution is not."""
    if spec.dtype not in graph.TYPES or spec.out_dtype != spec.dtype:
        raise Unsupported(
            f"the types are {spec.dtype} to {spec.out_dtype}, needs one floating type throughout"
        )
    if spec.padding_mode != "zeros":
        raise Unsupported(f"padding_mode is {spec.padding_mode!r}, and cuDNN pads with zeros alone")
    if not spec.batch:
        raise Unsupported("the batch is empty, which cuDNN refuses")
    uncut = tuple((before, max(after, 0)) for before, after in spec.padding)
    if replace(spec, padding=uncut).out_size != spec.out_size:
        raise Unsupported(
            f"padding is {spec.padding}: cuDNN knows no negative one, and with zeros there would be more outputs"
        )


class _Scratch:
    """Copies of arrays that cuDNN cannot take where they lie: the launches that make them, and their place.

    Attributes
    ----------
    first, then : list of Launch
        Before cuDNN's step and after it.
    nbytes : int
    """

    def __init__(self) -> None:
        self.first: list[Launch] = []
        self.then: list[Launch] = []
        self.nbytes = 0

    def read(self, array: int, shape: Shape, seen: View | None) -> Operand:
        """An operand: itself, or its copy in C order."""
        assert seen is not None
        steps = zip(shape.shape, seen.strides, strict=True)
        if seen.aligned and all(step > 0 or size == 1 for size, step in steps):
            return _operand(array, 0, shape, seen.strides)
        made = self._room(shape)
        target = Address("to", WORKSPACE, made.offset)
        self.first += copied(shape.shape, shape.dtype, Address("from", array), seen.strides, target)
        return made

    def written(self, array: int, shape: Shape, seen: View | None) -> Operand:
        """The result, which is in C order: itself, or where its copy will come from."""
        assert seen is not None
        if seen.aligned:
            return _operand(array, 0, shape, seen.strides)
        made = self._room(shape)
        source = Address("from", WORKSPACE, made.offset)
        in_order = _in_order(shape).strides
        self.then += copied(shape.shape, shape.dtype, source, in_order, Address("to", array))
        return made

    def _room(self, shape: Shape) -> Operand:
        offset = self.nbytes
        self.nbytes += tiles(shape.nbytes, VECTOR_BYTES) * VECTOR_BYTES
        return _operand(WORKSPACE, offset, shape, _in_order(shape).strides)


def _operand(array: int, offset: int, shape: Shape, strides: Sizes) -> Operand:
    """An array with as many axes as cuDNN wants, all steps positive: those along one element could be anything."""
    sizes, steps = shape.shape, tuple(max(step, 1) for step in strides)
    if len(sizes) < 2 + LEAST_AXES:
        whole = sizes[2] * steps[2]
        sizes, steps = (*sizes[:2], 1, sizes[2]), (*steps[:2], whole, steps[2])
    return Operand(array, offset, sizes, steps, shape.dtype)


def _in_order(shape: Shape) -> View:
    """The layout of an array in C order."""
    return View(tuple(volume(shape.shape[axis + 1 :]) for axis in range(len(shape.shape))), True)


def _one_position(bias: View, spec: ConvSpec) -> tuple[Shape, View]:
    """A bias as an image of one position; cuDNN is given it without gaps."""
    (step,), ones = bias.strides, (1,) * spec.rank
    shape = Shape("bias", (1, spec.out_channels, *ones), spec.dtype)
    return shape, View((spec.out_channels, step, *ones), bias.aligned and step == 1)


def _lifted(values: Sizes, filler: int) -> Sizes:
    """One entry for each axis of cuDNN's, from those of the spec's axes."""
    return (filler,) * (LEAST_AXES - len(values)) + values
