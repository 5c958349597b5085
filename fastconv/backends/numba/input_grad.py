"""The gradient of a convolution's input, planned.

It is a convolution again: of the output's gradient, with turned weights. With a stride s its elements fall into s
phases along each axis, and each is a convolution of stride 1 with every s-th tap:

    dx[s * j + first] = sum_t w[k0 + t * step] * dy[j + begin - t * dilation]

so every forward planner serves it, and nothing is scattered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Planner, Run, Unsupported, algorithm, blocks
from fastconv.backends.numba import cost, depthwise, direct, implicit_gemm, jit, positions, threads, winograd
from fastconv.backends.numba.geometry import Geometry, geometry, lift
from fastconv.backends.numba.kernels import input_grad as kernels
from fastconv.backends.numba.operands import (
    ALIGNMENT,
    Array,
    address,
    cast_images,
    contiguous,
    scratch,
    set_fields,
    setter,
)
from fastconv.backends.numba.pages import empty
from fastconv.backends.numba.pairs import Pairs
from fastconv.spec import DTYPES, ConvSpec

TURN = jit.Kernel(kernels.turn)
WEAVE = jit.Kernel(kernels.weave)

put_turn, put_weave = setter(kernels.TURN), setter(kernels.WEAVE)

# Phases of some images are computed, then woven into the result while a cache still holds them.
PHASE_BYTES = 4 << 20

# An element of weights that are turned ahead, in square blocks or one by one.
TURN_CYCLES, PICK_CYCLES = 2.5, 4.5

# Elements of a task that turns or weaves: 4 us.
WOVEN = 8 << 10

# Forward planners that know how to turn weights as they read or pack them.
RUN_TURNED: dict[Planner, Callable[[ConvSpec, positions.Turned], Run]] = {
    implicit_gemm.implicit_gemm: implicit_gemm.run_turned,
    implicit_gemm.pointwise: implicit_gemm.run_turned,
    direct.direct: direct.run_turned,
}


class Phase(NamedTuple):
    """What a stride leaves of one axis: a convolution of stride 1."""

    first: int  # the first element of the input that belongs to it
    length: int
    taps: range  # as the weights count them, from the last to the first
    dilation: int
    padding: tuple[int, int]
    crop: int  # elements of the output's gradient that it does not begin with


def phases(spec: ConvSpec, axis: int) -> list[Phase]:
    """The phases that meet any tap along an axis; one at stride 1."""
    size, out, kernel = spec.in_size[axis], spec.out_size[axis], spec.kernel_size[axis]
    stride, before = spec.stride[axis], spec.padding[axis][0]
    common = math.gcd(stride, spec.dilation[axis])
    step, dilation = stride // common, spec.dilation[axis] // common
    found = []
    for k0 in range(min(step, kernel)):
        at = k0 * spec.dilation[axis] - before
        first = at % stride
        count = -(-(size - first) // stride)
        taps = range(k0, kernel, step)[::-1]
        begin = (first - at) // stride
        pad = (len(taps) - 1) * dilation - begin
        crop = max(-pad, 0)
        if count > 0 and count + begin > 0 and crop < out:
            after = count + begin - out
            found.append(Phase(first, count, taps, dilation, (max(pad, 0), after), crop))
    return found


class Part(NamedTuple):
    """A phase of every axis."""

    spec: ConvSpec  # of the convolution that computes it
    taps: Array  # which of a kernel's taps stands at each place of the turned one
    read: tuple[slice, ...]  # of the output's gradient


def images_of(spec: ConvSpec, image: int, limit: int | None) -> int:
    """How many images of so many bytes are computed at a time: the last few are computed twice, so few are best left over.

    16 images by fives are 20, by fours 16. A round costs as much as a tenth of an image.
    """
    most = min(1 if limit is not None else max(PHASE_BYTES // max(image, 1), 1), spec.batch)
    return min(range(1, most + 1), key=lambda some: -(-spec.batch // some) * (some + 0.1), default=0)


def parts_of(spec: ConvSpec, axes: Sequence[list[Phase]], images: int) -> list[Part]:
    """The convolution of every combination of phases."""
    made = []
    for along in itertools.product(*axes):
        small = ConvSpec(
            batch=images,
            in_channels=spec.out_channels,
            out_channels=spec.in_channels,
            in_size=tuple(out - phase.crop for out, phase in zip(spec.out_size, along, strict=True)),
            kernel_size=tuple(len(phase.taps) for phase in along),
            padding=tuple(phase.padding for phase in along),
            dilation=tuple(phase.dilation for phase in along),
            groups=spec.groups,
            dtype=spec.dtype,
            out_dtype=spec.out_dtype,
        )
        places = np.meshgrid(*(phase.taps for phase in along), indexing="ij")
        taps = np.ravel_multi_index(tuple(places), spec.kernel_size).ravel().astype(np.int64)
        made.append(Part(small, taps, tuple(slice(phase.crop, None) for phase in along)))
    return made


def turner(spec: ConvSpec, parts: Sequence[Part]) -> Callable[[Array], list[Array]]:
    """The function that turns weights: (O, C / groups, taps) as (C, O / groups, taps turned round) of every part."""
    shapes = [part.spec.weight_shape for part in parts]
    begins = [0, *itertools.accumulate(map(math.prod, shapes))]
    counts = np.array([len(part.taps) for part in parts], np.int64)
    at = np.array(begins, np.int64)
    pair = spec.in_channels // spec.groups * math.prod(spec.kernel_size)
    channels = np.arange(kernels.TOGETHER)[:, None] * pair
    none = np.zeros(0, np.int64)
    offsets = np.concatenate([none, *((channels + part.taps).ravel() for part in parts)]).astype(np.int32)
    o, c = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    c_units = -(-c // kernels.TURNED)
    units = spec.groups * c_units
    step = max(WOVEN * units // max(begins[-1], 1), 1)
    template = np.zeros(1, kernels.TURN)
    set_fields(
        template, offsets=address(offsets), begins=address(at), counts=address(counts), parts=len(parts), o=o, c=c,
        taps=math.prod(spec.kernel_size), units=units, c_units=c_units, step=step,
    )  # fmt: skip
    fields, tasks = template.view(np.int64), -(-units // step)

    def turn(weight: Array) -> list[Array]:
        weight, a = np.ascontiguousarray(weight), fields.copy()
        memory = empty((begins[-1],), spec.dtype)
        put_turn(a, w=address(weight), to=address(memory))
        moved = cost.moving(memory.nbytes)
        threads.launch(TURN.address(spec.dtype), a, tasks, threads.workers(tasks), moved)
        return [memory[b:e].reshape(s) for b, e, s in zip(begins, begins[1:], shapes, strict=False)]

    turn.tables = offsets, at, counts  # type: ignore[attr-defined]
    return turn


def weaver(
    spec: ConvSpec, axes: Sequence[list[Phase]], parts: Sequence[Part], images: int
) -> Callable[..., None]:
    """The function ``(phases' planes, bias, dx)`` that puts images together."""
    one = [Phase(0, 1, range(1), 1, (0, 0), 0)]
    lifted = [one] * (3 - spec.rank) + list(axes)
    size, stride = lift(spec.in_size, 1), lift(spec.stride, 1)
    which = [np.full(min(s, n), -1) for s, n in zip(stride, size, strict=True)]
    for table, axis in zip(which, lifted, strict=True):
        for at, phase in enumerate(axis):
            table[phase.first] = at
    counts = [np.array([phase.length for phase in axis], np.int64) for axis in lifted]
    first_w = np.array([phase.first for phase in lifted[2]], np.int64)
    begins = np.cumsum([0, *(math.prod(part.spec.output_shape) for part in parts)])
    planes, plane = images * spec.in_channels, math.prod(size)
    step = max(WOVEN // plane, 1)
    template = np.zeros(1, kernels.WEAVE)
    set_fields(
        template, phase_d=address(which[0]), phase_h=address(which[1]), first_w=address(first_w),
        counts_d=address(counts[0]), counts_h=address(counts[1]), counts_w=address(counts[2]), begins=address(begins),
        planes=planes, channels=spec.in_channels, step=step, d=size[0], h=size[1], w=size[2],
        stride_d=len(which[0]), stride_h=len(which[1]), stride_w=stride[2],
        phases_h=len(lifted[1]), phases_w=len(lifted[2]), whole=sum(counts[2]) == size[2],
        past=cost.is_past(spec.batch * spec.in_channels * plane, size[2], spec.dtype),
    )  # fmt: skip
    tasks, fields = -(-planes // step), template.view(np.int64)

    def weave(held: int, bias: Array | None, dx: Array) -> None:
        a = fields.copy()
        put_weave(a, x=held, bias=address(bias), y=address(dx))
        threads.launch(WEAVE.address(spec.dtype), a, tasks, threads.workers(tasks), cost.moving(dx.nbytes))

    weave.tables = which, counts, first_w, begins  # type: ignore[attr-defined]
    return weave


def plan_parts(
    forward: Planner, parts: Sequence[Part], precision: str, limit: int | None, own: int
) -> list[Run]:
    """Every part's run, under what `own` bytes leave of the limit."""
    left = None if limit is None else max(limit - own, 0)
    runs, needs = [], [own]
    for part in parts:
        try:
            runs.append(forward(part.spec, precision, left))
        except Unsupported as refusal:
            if refusal.workspace is None:
                raise
            needs.append(own + refusal.workspace)
    if limit is not None and max(needs) > limit:
        raise Unsupported(f"needs {max(needs)} bytes of scratch", workspace=max(needs))
    return runs


def together(runs: Sequence[Run], left: int | None) -> tuple[int, int, int]:
    """Scratch of runs one after the other: of a thread, shared, and how many threads there may be."""
    workspace = max((run.workspace for run in runs), default=0)
    shared = max((run.shared + run.workspace for run in runs), default=0) - workspace
    at_once = max((run.at_once for run in runs), default=1)
    if left is not None and workspace:
        at_once = max(min(at_once, (left - shared) // workspace), 1)
    return workspace, shared, at_once


def turning_seconds(spec: ConvSpec, elements: int) -> float:
    """To turn so many weights ahead, and to write them to memory that is new."""
    cycles = TURN_CYCLES if math.prod(spec.kernel_size) == 1 else PICK_CYCLES
    return elements * cycles * cost.CYCLE + cost.traffic(4 * elements * DTYPES[spec.dtype].itemsize)


def plan_phases(forward: Planner, spec: ConvSpec, precision: str, limit: int | None) -> Run:
    """The gradient of an input that is padded with zeros."""
    axes = [phases(spec, axis) for axis in range(spec.rank)]
    itemsize = DTYPES[spec.dtype].itemsize
    image = spec.in_channels * math.prod(sum(phase.length for phase in axis) for axis in axes) * itemsize
    woven = set(spec.stride) != {1}
    images = spec.batch
    if woven:
        images = images_of(spec, image, limit)
    parts = parts_of(spec, axes, images)
    copies = [math.prod(part.spec.input_shape) if any(at.start for at in part.read) else 0 for part in parts]
    turned = sum(math.prod(part.spec.weight_shape) for part in parts)
    held = images * image + ALIGNMENT if woven else 0
    own = held + max(copies, default=0) * itemsize
    runs = plan_parts(forward, parts, precision, limit, own + turned * itemsize)
    weave = weaver(spec, axes, parts, images) if woven else None
    turn = turner(spec, parts)

    def caller(runs: Sequence[Run]) -> Callable[..., None]:
        def call(dy: Array, weights: Sequence[Any], bias: Array | None, dx: Array) -> None:
            bias = contiguous(bias)
            if not parts:
                dx[...] = 0 if bias is None else bias.reshape(-1, *(1,) * spec.rank)
                return
            memory, at = scratch(max(held - ALIGNMENT, 0)) if woven else (dx, 0)
            for begin in range(0, spec.batch, max(images, 1)):
                n = min(begin, spec.batch - images)  # the last few may be computed twice, alike
                target, offset = dx[n : n + images], at - address(memory)
                for part, run, weight, copied in zip(parts, runs, weights, copies, strict=True):
                    read = dy[n : n + images]
                    if copied:
                        read = np.ascontiguousarray(read[(..., *part.read)])
                    shape = part.spec.output_shape
                    to = np.ndarray(shape, target.dtype, memory, offset) if woven else target
                    run.call(read, weight, bias, to)
                    offset += to.nbytes
                if weave is not None:
                    weave(at, bias, target)

        return call

    def ready(runs: Sequence[Run], weight: Array) -> list[Any]:
        return [run.pack(w) if run.pack else w for run, w in zip(runs, turn(weight), strict=True)]

    rounds = -(-spec.batch // max(images, 1))
    moved = cost.traffic(2 * image * spec.batch + own * rounds) if woven else 0.0
    prepared_runs = [run.prepared or run for run in runs]
    unprepared = caller(runs)
    cut = f"{len(parts)} phase{'s' * (len(parts) != 1)}, {images} image{'s' * (images != 1)} at a time"

    def whole(runs: Sequence[Run], call: Callable[..., None]) -> Run:
        workspace, shared, at_once = together(
            runs, None if limit is None else limit - own - turned * itemsize
        )
        return Run(
            call=call,
            seconds=rounds * sum(run.seconds for run in runs) + moved,
            workspace=workspace,
            at_once=at_once,
            shared=own + shared,
            note="; ".join(sorted({run.note for run in runs if run.note} | ({cut} if woven else set()))),
            error=max((run.error for run in runs), default=0.0),
            finite_only=any(run.finite_only for run in runs),
        )

    def turned_as_read() -> Run | None:
        """The same by runs that turn weights as they read them, where that takes less time."""
        run_turned = RUN_TURNED.get(forward)
        if run_turned is None or limit is not None or not parts:
            return None
        count = math.prod(spec.kernel_size)
        try:
            made = [run_turned(part.spec, positions.Turned(part.taps, count)) for part in parts]
        except Unsupported:
            return None
        call = caller(made)
        return whole(
            made,
            lambda dy, w, bias, dx: call(
                np.ascontiguousarray(dy), [np.ascontiguousarray(w)] * len(parts), bias, dx
            ),
        )

    plain = whole(runs, lambda dy, w, bias, dx: unprepared(dy, ready(runs, w), bias, dx))
    prepared = replace(
        whole(prepared_runs, caller(prepared_runs)),
        pack=lambda w: ready(prepared_runs, w),
        packing=("turned", tuple((tuple(part.taps), run.packing) for part, run in zip(parts, prepared_runs, strict=True))),
    )  # fmt: skip
    plain = replace(
        plain,
        seconds=plain.seconds + turning_seconds(spec, turned) + cost.CALL_SECONDS * len(parts),
        shared=plain.shared + turned * itemsize,
    )
    other = turned_as_read()
    if other is not None and other.seconds < plain.seconds:
        plain = other
    return replace(plain, prepared=prepared)


def plan_turned(spec: ConvSpec) -> Run | None:
    """By Winograd, whose transform turns the weights as it reads them; where there is one phase, of all outputs."""
    axes = [phases(spec, axis) for axis in range(spec.rank)]
    parts = parts_of(spec, axes, spec.batch)
    if len(parts) != 1 or set(spec.stride) != {1} or any(at.start for at in parts[0].read):
        return None
    turn = turner(spec, parts)
    return winograd.turned(parts[0].spec, lambda weight: turn(weight)[0])


def plan_folded(forward: Planner, spec: ConvSpec, precision: str, limit: int | None) -> Run:
    """Padding holds elements of the input: the padded input's gradient, whose border is added to what it shows."""
    padded = tuple(n + sum(pads) for n, pads in zip(spec.in_size, spec.padding, strict=True))
    bare = replace(spec, in_size=padded, padding=((0, 0),) * spec.rank, padding_mode="zeros")
    itemsize = DTYPES[spec.dtype].itemsize
    image = math.prod(bare.input_shape[1:]) * itemsize
    images = images_of(spec, image, limit)
    own = images * image
    try:
        inner = plan_phases(
            forward, bare.with_batch(images), precision, None if limit is None else max(limit - own, 0)
        )
    except Unsupported as refusal:
        if refusal.workspace is None:
            raise
        need = own + refusal.workspace
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need) from None
    one = (1,) * spec.rank
    copy = replace(spec, kernel_size=one, stride=one, dilation=one)
    window = tuple(slice(0, n) for n in padded)

    def call(dy: Array, weight: Array, bias: Array | None, dx: Array) -> None:
        part = np.empty((images, *bare.input_shape[1:]), dx.dtype)
        for begin in range(0, spec.batch, max(images, 1)):
            n = min(begin, spec.batch - images)
            target = dx[n : n + images]
            inner.call(dy[n : n + images], weight, None, part)
            target[...] = 0 if bias is None else bias.reshape(-1, *one)
            blocks.add_slab(copy, part, window, target)

    rounds = -(-spec.batch // max(images, 1))
    return replace(
        inner,
        call=call,
        seconds=rounds * inner.seconds + cost.traffic(4 * image * spec.batch),
        shared=inner.shared + own,
        prepared=None,
    )


def is_product(spec: ConvSpec) -> bool:
    """Whether each element of the input meets one tap, of every image and output channel."""
    return spec.padding_mode == "zeros" and spec.groups == 1 and spec.batch > 0 and geometry(spec).is_whole


def plan_product(spec: ConvSpec, limit: int | None) -> Run:
    """One matrix product, ``dx[n, (c, tap)] = sum_o dy[n, o] w[o, (c, tap)]``.

    It is a pointwise convolution whose image is the weight, so nothing is turned. As a convolution of the output's
    gradient, of one position, LeNet's third layer would add 24 zeros to every product.
    """
    image = spec.in_channels * math.prod(spec.kernel_size)
    inner = implicit_gemm.run_product(spec.batch, spec.out_channels, image, spec, limit)

    def call(dy: Array, weight: Array, bias: Array | None, dx: Array) -> None:
        inner.call(
            np.ascontiguousarray(weight), np.ascontiguousarray(dy), None, dx.reshape(1, spec.batch, -1)
        )
        if bias is not None:
            dx += bias.reshape(-1, *(1,) * spec.rank)

    return replace(inner, call=call)


def plan_pairs(spec: ConvSpec, g: Geometry) -> Run:
    """Of a depthwise convolution at a stride of 2: two rows of the input's gradient at a time, without phases."""
    planes = spec.batch * spec.in_channels
    spread = Pairs(g, spec.dtype, planes, spec.in_channels)
    at_once = max(spread.tasks, 1)

    def call(dy: Array, weight: Array, bias: Array | None, dx: Array) -> None:
        dy, weight, bias = np.ascontiguousarray(dy), np.ascontiguousarray(weight), contiguous(bias)
        spread(address(dy), address(dx), planes, at_once, w=address(weight), bias=address(bias))

    return Run(
        call=call,
        seconds=planes * spread.seconds + cost.CALL_SECONDS,
        at_once=at_once,
        note="two rows at a time",
    )


def input_grad(forward: Planner) -> Planner:
    """The planner of the input's gradient by a forward planner."""

    @algorithm(forward.__name__)
    @cast_images
    def plan(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
        if forward is implicit_gemm.implicit_gemm and is_product(spec):
            return plan_product(spec, workspace_limit)
        if forward is depthwise.depthwise and spec.padding_mode == "zeros":
            g = geometry(spec)
            if (g.c, g.o, g.kernel[2]) == (1, 1, 3) and Pairs.take(g):
                return plan_pairs(spec, g)
        if forward is winograd.winograd and spec.padding_mode == "zeros" and workspace_limit is None:
            turned = plan_turned(spec)
            if turned is not None:
                return turned
        kind = plan_phases if spec.padding_mode == "zeros" else plan_folded
        return kind(forward, spec, precision, workspace_limit)

    return plan
