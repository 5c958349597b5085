"""Pooling: windows of one plane at a time, reduced to their maximum or their sum.

``taps`` lays vectors along the output positions, as depthwise convolution does, and reads the input where it lies:
a vector for each tap, two of which every second lane is taken for a stride of 2; a mask for each vector and tap
stands for the padding. ``cells`` takes the outputs one by one and lays vectors along each window's rows: for bins of
unequal size and long strides. ``planes`` is for windows as large as the image, as many at a time as a vector has
lanes. The windows that networks have are in the module ``windows``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .simd import (
    ELEMENTS,
    I32,
    I64,
    Element,
    as_written,
    const,
    element,
    first_lanes,
    flags,
    halves,
    host,
    lane_range,
    load,
    masked_load,
    masked_store,
    next_task,
    out_of_line,
    pointer,
    splat,
    store,
)

# Vectors that are reduced side by side.
TOGETHER = 4

# Numbers of a vector in the table: where it reads its first tap, where it writes, which lanes it writes.
SLOT = 3

# What a window is reduced to.
SUM, MAX, ARGMAX = range(3)
OPS = ("sum", "max", "argmax")

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x y indices divisors "  # addresses; divisors may be 0
    "offsets slots masks firsts inner "  # addresses of the tables of `taps`; `flat` has masks too
    "bins_d bins_h bins_w "  # addresses of the tables of `cells`: first element, count and step of every bin
    "plane plane_out planes "  # elements of a plane, outputs of one, planes in all
    "planes_step "  # planes of a task
    "taps groups stride "  # taps of a window, groups of vectors, stride along a row
    "h w od oh ow before_h before_w "  # sizes, and padding
    "strips n_strips segments n_segments "  # of `rows`: the tables of strips of columns and segments of rows
    "edge "  # of `rows`: how many rows of outputs at a task's end need care
    "tops "  # of `rows`: where each row of each window begins, in bytes, or -1; and where the plane does, in elements
    "zeros "  # of `rows`: in place of a row at -1
    "divisors_h divisors_w "  # of `rows`: what an average is divided by, along each axis
    "group divisors_step "  # of both: planes that are taken together; of `flat`: from divisors to the next
    "ahead "  # how far in front to prefetch, in bytes
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)
FIELD = {name: at for at, name in enumerate(FIELDS.split())}


def lowest(e: Element) -> ir.Constant:
    """What every maximum begins with."""
    return ir.Constant(e.llvm, float("-inf") if e.real else -(1 << (8 * e.size - 1)))


def wins(b: ir.IRBuilder, e: Element, value: Any, best: Any) -> Any:
    """Whether a value replaces the maximum so far: NaN does, an equal one does not."""
    if not e.real:
        return b.icmp_signed(">", value, best)
    return b.or_(b.fcmp_ordered(">", value, best), b.fcmp_unordered("uno", value, value))


def _read(b: ir.IRBuilder, e: Element, op: int, stride: int, at: Any, bits: Any) -> Any:
    """One vector of every `stride`-th element; lanes whose bit is not set are neutral."""
    neutral = splat(b, e.vector, lowest(e)) if op else None
    parts = []
    for r in range(stride):
        place = b.gep(at, [const(r * e.lanes)])
        if bits is None:
            parts.append(load(b, e, place))
        else:
            part = b.lshr(bits, ir.Constant(I32, r * e.lanes)) if r else bits
            parts.append(masked_load(b, e, place, flags(b, e, part), neutral))
    return parts[0] if stride == 1 else halves(b, *parts)[0]


def _emit(module: ir.Module, e: Element, op: int, stride: int, masked: bool, name: str) -> ir.Function:
    """Reduce ``TOGETHER`` vectors over the taps."""
    if name in module.globals:
        return module.globals[name]
    elements, words = e.llvm.as_pointer(), I32.as_pointer()
    signature = ir.FunctionType(
        ir.VoidType(),
        # taps, x, offsets, slots, masks, firsts, y, divisors, indices
        [I64, elements, words, I64.as_pointer(), words, words, elements, elements, I64.as_pointer()],
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    taps, x, offsets, slots, masks, firsts, y, divisors, indices = function.args
    entry, tap, done = (function.append_basic_block(label) for label in ("entry", "tap", "done"))
    places = ir.VectorType(I32, e.lanes)

    b = ir.IRBuilder(entry)
    begin = [b.load(b.gep(slots, [const(SLOT * u)])) for u in range(TOGETHER)]
    begins = [b.gep(x, [at]) for at in begin]
    lane = ir.Constant(places, [stride * i for i in range(e.lanes)])
    first_place = [b.add(splat(b, places, b.trunc(at, I32)), lane) for at in begin] if op == ARGMAX else []
    neutral = splat(b, e.vector, lowest(e)) if op else ir.Constant(e.vector, None)
    # A window of nothing but -inf has its maximum at its first element.
    started = []
    for u in range(TOGETHER if op == ARGMAX else 0):
        started.append(b.load(b.bitcast(b.gep(firsts, [const(u * e.lanes)]), places.as_pointer())))
        started[-1].align = 4
    b.branch(tap)

    b = ir.IRBuilder(tap)
    t = b.phi(I64)
    sums = [b.phi(e.vector) for _ in range(TOGETHER)]
    found = [b.phi(places) for _ in range(TOGETHER)] if op == ARGMAX else []
    offset = b.load(b.gep(offsets, [t]))
    after, where = [], []
    for u in range(TOGETHER):
        at = b.add(b.mul(t, const(TOGETHER)), const(u))
        bits = b.load(b.gep(masks, [at])) if masked else None
        value = _read(b, e, op, stride, b.gep(begins[u], [b.sext(offset, I64)]), bits)
        if op == SUM:
            after.append(b.fadd(sums[u], value) if e.real else b.add(sums[u], value))
            continue
        better = wins(b, e, value, sums[u])
        if op == ARGMAX:
            where.append(b.select(better, b.add(first_place[u], splat(b, places, offset)), found[u]))
        after.append(b.select(better, value, sums[u]))
    t_next = b.add(t, const(1))
    as_written(b.cbranch(b.icmp_signed("<", t_next, taps), tap, done))
    t.add_incoming(const(0), entry)
    t.add_incoming(t_next, tap)
    for phi, value in zip(sums, after, strict=True):
        phi.add_incoming(neutral, entry)
        phi.add_incoming(value, tap)
    for phi, value, start in zip(found, where, started, strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, tap)

    b = ir.IRBuilder(done)
    divided = b.icmp_unsigned("!=", b.ptrtoint(divisors, I64), const(0)) if op == SUM and e.real else None
    for u, value in enumerate(after):
        at, mask = (b.load(b.gep(slots, [const(SLOT * u + field)])) for field in (1, 2))
        if divided is not None:
            before = b.block
            with b.if_then(divided):
                lanes = flags(b, e, mask)
                ones = splat(b, e.vector, ir.Constant(e.llvm, 1.0))
                quotient = b.fdiv(value, masked_load(b, e, b.gep(divisors, [at]), lanes, ones))
                inside = b.block
            phi = b.phi(e.vector)
            phi.add_incoming(value, before)
            phi.add_incoming(quotient, inside)
            value = phi
        with b.if_else(b.icmp_unsigned("==", mask, const((1 << e.lanes) - 1)), likely=True) as (whole, part):
            with whole:
                store(b, e, value, b.gep(y, [at]))
            with part:
                masked_store(b, e, value, b.gep(y, [at]), mask, in_loop=True)
        if op == ARGMAX:
            store_places(b, e, where[u], b.gep(indices, [at]), mask)
    b.ret_void()
    return function


def store_places(
    b: ir.IRBuilder,
    e: Element,
    where: Any,
    to: Any,
    mask: Any,
    put: Callable[..., None] = masked_store,
    order: Sequence[int] | None = None,
) -> None:
    """Store int64 places, in as many vectors as they take; all of them where `mask` is None.

    Lane i holds place ``order[i]``. Places are not negative, so they are widened by weaving zeros between them, which
    costs no more where they lie as instructions that work on pieces of 16 bytes leave them.
    """
    wide, zeros = ELEMENTS[types.int64], ir.Constant(where.type, None)
    order = list(order or range(e.lanes))
    for half in range(0, e.lanes, wide.lanes):
        lanes = [pick for i in range(wide.lanes) for pick in (order.index(half + i), e.lanes)]
        picks = ir.Constant(ir.VectorType(I32, 2 * wide.lanes), [ir.Constant(I32, lane) for lane in lanes])
        value = b.bitcast(b.shuffle_vector(where, zeros, picks), wide.vector)
        if mask is None:
            store(b, wide, value, b.gep(to, [const(half)]))
        else:
            put(b, wide, value, b.gep(to, [const(half)]), b.lshr(mask, const(half)))


@intrinsic(prefer_literal=True)
def reduce_taps(
    typing: Any, OP: Any, S: Any, MASKED: Any, T: Any,
    taps: Any, x: Any, offsets: Any, slots: Any, masks: Any, firsts: Any, y: Any, divisors: Any, indices: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of an op and stride S for elements of type T; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (OP, S, MASKED)):
        return None
    e, op, stride = ELEMENTS[T.instance_type], OP.literal_value, S.literal_value
    masked = bool(MASKED.literal_value)
    name = f"pool_{e.short}_{OPS[op]}_s{stride}{'_masked' if masked else ''}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _emit(builder.module, e, op, stride, masked, name)
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[4:], function.args, strict=True)
        ]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(OP, S, MASKED, T, *[types.int64] * 9), codegen


@intrinsic(prefer_literal=True)
def reduce_planes(
    typing: Any, OP: Any, T: Any, x: Any, step: Any, area: Any, count: Any, y: Any, divisor: Any
) -> Any:
    """Reduce `count` planes, at most a vector of them, of `area` neighbouring elements each, `step` apart."""
    if not isinstance(OP, types.IntegerLiteral):
        return None
    e, op = ELEMENTS[T.instance_type], OP.literal_value
    name = f"pool_{e.short}_planes_{OPS[op]}_{host().name}"

    def body(b: ir.IRBuilder, x: Any, step: Any, area: Any, count: Any, y: Any, divisor: Any) -> None:
        _emit_planes(b, e, op, x, step, area, count, y, divisor)

    codegen = out_of_line(name, "piiipp", 2, e, body)
    return types.void(OP, T, *[types.int64] * 6), codegen


def _emit_planes(
    b: ir.IRBuilder, e: Element, op: int, x: Any, step: Any, area: Any, count: Any, y: Any, divisor: Any
) -> None:
    """Each plane's vectors are joined, four at a time, and then the lanes of as many planes as there are lanes."""
    neutral = splat(b, e.vector, lowest(e)) if op else ir.Constant(e.vector, None)

    def join(a: Any, value: Any) -> Any:
        if op == SUM:
            return b.fadd(a, value) if e.real else b.add(a, value)
        return b.select(wins(b, e, value, a), value, a)

    partial = cgutils.alloca_once(b, e.vector, size=e.lanes)
    for lane in range(e.lanes):
        b.store(neutral, b.gep(partial, [const(lane)]))
    full = b.and_(area, const(-e.lanes))
    fours = b.and_(area, const(-TOGETHER * e.lanes))
    tail = lane_range(b, e, const(0), b.sub(area, full))
    sums = [cgutils.alloca_once(b, e.vector) for _ in range(TOGETHER)]
    with cgutils.for_range(b, count) as plane:
        at = b.gep(x, [b.mul(plane.index, step)])
        for place in sums:
            b.store(neutral, place)
        with cgutils.for_range_slice(b, const(0), fours, const(TOGETHER * e.lanes), I64) as (i, _):
            for u, place in enumerate(sums):
                value = load(b, e, b.gep(at, [b.add(i, const(u * e.lanes))]))
                b.store(join(b.load(place), value), place)
        with cgutils.for_range_slice(b, fours, full, const(e.lanes), I64) as (i, _):
            b.store(join(b.load(sums[0]), load(b, e, b.gep(at, [i]))), sums[0])
        first = join(b.load(sums[0]), masked_load(b, e, b.gep(at, [full]), tail, neutral))
        second, third, fourth = (b.load(place) for place in sums[1:])
        b.store(join(join(first, second), join(third, fourth)), b.gep(partial, [plane.index]))
    vectors = [b.load(b.gep(partial, [const(lane)])) for lane in range(e.lanes)]
    while len(vectors) > 1:
        vectors = [join(*halves(b, *vectors[i : i + 2])) for i in range(0, len(vectors), 2)]
    result = vectors[0]
    if op == SUM and e.real:
        result = b.fdiv(result, splat(b, e.vector, b.load(divisor)))
    masked_store(b, e, result, y, first_lanes(b, e, count))


def planes(op: int) -> Any:
    """A factory of tasks with windows as large as the plane: some planes."""

    def pool_planes(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                stop = min((task + 1) * a.planes_step, a.planes)
                for p in range(task * a.planes_step, stop, lanes):
                    x, y = a.x + size * p * a.plane, a.y + size * p
                    reduce_planes(op, T, x, a.plane, a.plane, min(lanes, stop - p), y, a.divisors)

        return work

    pool_planes.__name__ = f"pool_planes_{OPS[op]}"
    return pool_planes


@intrinsic
def zero(typing: Any, T: Any) -> Any:
    """0 of type T."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(ELEMENTS[T.instance_type].llvm, 0)

    return T.instance_type(T), codegen


@intrinsic(prefer_literal=True)
def reduce_row(typing: Any, OP: Any, T: Any, x: Any, count: Any, start: Any) -> Any:
    """Reduce `count` neighbouring elements, and `start`, to their sum or maximum."""
    if not isinstance(OP, types.IntegerLiteral):
        return None
    e, op = ELEMENTS[T.instance_type], OP.literal_value
    name = f"pool_{e.short}_row_{OPS[op]}_{host().name}"

    def join(b: ir.IRBuilder, a: Any, value: Any) -> Any:
        if op == SUM:
            return b.fadd(a, value) if e.real else b.add(a, value)
        return b.select(wins(b, e, value, a), value, a)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.module.globals.get(name)
        if function is None:
            function = _emit_row(builder.module, e, op, name, join)
        _, _, x, count, start = values
        return builder.call(function, [builder.inttoptr(x, e.llvm.as_pointer()), count, start])

    return T.instance_type(OP, T, types.int64, types.int64, T.instance_type), codegen


def _emit_row(module: ir.Module, e: Element, op: int, name: str, join: Any) -> ir.Function:
    signature = ir.FunctionType(e.llvm, [e.llvm.as_pointer(), I64, e.llvm])
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    x, count, start = function.args
    entry, loop, done = (function.append_basic_block(label) for label in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    neutral = splat(b, e.vector, lowest(e)) if op else ir.Constant(e.vector, None)
    b.branch(loop)
    b = ir.IRBuilder(loop)
    i, best = b.phi(I64), b.phi(e.vector)
    value = masked_load(b, e, b.gep(x, [i]), lane_range(b, e, const(0), b.sub(count, i)), neutral)
    joined = join(b, best, value)
    i_next = b.add(i, const(e.lanes))
    as_written(b.cbranch(b.icmp_signed("<", i_next, count), loop, done))
    i.add_incoming(const(0), entry)
    i.add_incoming(i_next, loop)
    best.add_incoming(neutral, entry)
    best.add_incoming(joined, loop)
    b = ir.IRBuilder(done)
    step, vector = e.lanes // 2, joined
    while step:
        order = [ir.Constant(I32, (lane + step) % e.lanes) for lane in range(e.lanes)]
        picks = ir.Constant(ir.VectorType(I32, e.lanes), order)
        vector = join(b, vector, b.shuffle_vector(vector, vector, picks))
        step //= 2
    b.ret(join(b, start, b.extract_element(vector, ir.Constant(I32, 0))))
    return function


def taps(op: int) -> Any:
    """A factory of tasks with vectors along the outputs: some planes."""

    def pool_taps(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            inner = carray(pointer(a.inner, types.int64), a.groups)
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                    x, y = a.x + size * p * a.plane, a.y + size * p * a.plane_out
                    at = a.indices + 8 * p * a.plane_out
                    for v in range(a.groups):
                        slots = a.slots + 8 * SLOT * TOGETHER * v
                        masks = a.masks + 4 * TOGETHER * a.taps * v
                        first = a.firsts + 4 * TOGETHER * lanes * v
                        if a.stride == 1 and inner[v]:
                            reduce_taps(
                                op, 1, 0, T, a.taps, x, a.offsets, slots, masks, first, y, a.divisors, at
                            )
                        elif a.stride == 1:
                            reduce_taps(
                                op, 1, 1, T, a.taps, x, a.offsets, slots, masks, first, y, a.divisors, at
                            )
                        elif inner[v]:
                            reduce_taps(
                                op, 2, 0, T, a.taps, x, a.offsets, slots, masks, first, y, a.divisors, at
                            )
                        else:
                            reduce_taps(
                                op, 2, 1, T, a.taps, x, a.offsets, slots, masks, first, y, a.divisors, at
                            )

        return work

    pool_taps.__name__ = f"pool_taps_{OPS[op]}"
    return pool_taps


@register_jitable
def find(T, size, x, w, d0, nd, sd, h0, nh, sh, w0, nw, sw, h):  # type: ignore[no-untyped-def]
    """The place of a window's maximum: the last NaN (torch's rule), else the first of the largest."""
    best = element(x + size * ((d0 * h + h0) * w + w0), T)
    place = (d0 * h + h0) * w + w0
    for i in range(nd):
        for j in range(nh):
            row = ((d0 + i * sd) * h + h0 + j * sh) * w + w0
            for k in range(nw):
                value = element(x + size * (row + k * sw), T)
                if value > best or value != value:
                    best, place = value, row + k * sw
    return place


def cells(op: int) -> Any:
    """A factory of tasks with vectors along the rows of a window: some planes."""
    row_op = SUM if op == SUM else MAX

    def pool_cells(T: Any) -> Any:
        size = T.bitwidth // 8
        real = op == SUM and ELEMENTS[T].real

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            bins_d = carray(pointer(a.bins_d, types.int64), (a.od, 3))
            bins_h = carray(pointer(a.bins_h, types.int64), (a.oh, 3))
            bins_w = carray(pointer(a.bins_w, types.int64), (a.ow, 3))
            divisors = carray(pointer(a.divisors, T), a.plane_out)
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                    x = a.x + size * p * a.plane
                    y = carray(pointer(a.y + size * p * a.plane_out, T), a.plane_out)
                    indices = carray(pointer(a.indices + 8 * p * a.plane_out, types.int64), a.plane_out)
                    q = 0
                    for i in range(a.od):
                        d0, nd, sd = bins_d[i, 0], bins_d[i, 1], bins_d[i, 2]
                        for j in range(a.oh):
                            h0, nh, sh = bins_h[j, 0], bins_h[j, 1], bins_h[j, 2]
                            for k in range(a.ow):
                                w0, nw, sw = bins_w[k, 0], bins_w[k, 1], bins_w[k, 2]
                                if op == ARGMAX:
                                    place = find(T, size, x, a.w, d0, nd, sd, h0, nh, sh, w0, nw, sw, a.h)
                                    indices[q], y[q] = place, element(x + size * place, T)
                                    q += 1
                                    continue
                                total = element(x + size * ((d0 * a.h + h0) * a.w + w0), T)
                                if op == SUM:
                                    total = zero(T)
                                for m in range(nd):
                                    at = ((d0 + m * sd) * a.h + h0) * a.w + w0
                                    if sw == 1 and sh == 1 and nw == a.w:
                                        total = reduce_row(row_op, T, x + size * at, nh * nw, total)
                                        continue
                                    for n in range(nh):
                                        row = x + size * (at + n * sh * a.w)
                                        if sw == 1 and nw > 4:
                                            total = reduce_row(row_op, T, row, nw, total)
                                            continue
                                        for o in range(nw):
                                            value = element(row + size * o * sw, T)
                                            if op == SUM:
                                                total = total + value
                                            elif value > total or value != value:
                                                total = value
                                y[q] = total / divisors[q] if real and a.divisors else total
                                q += 1

        return work

    pool_cells.__name__ = f"pool_cells_{OPS[op]}"
    return pool_cells
