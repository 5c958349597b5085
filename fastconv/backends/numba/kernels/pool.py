"""Pooling: windows of one plane at a time, reduced to their maximum or their sum.

``taps`` lays vectors along the output positions, as depthwise convolution does, and reads the input where it lies:
a vector for each tap, two of which every second lane is taken for a stride of 2; a mask for each vector and tap
stands for the padding. ``rows`` does so for windows of 2 x 2 and 3 x 3, which is what networks have, four rows of
outputs at a time: what their windows share is loaded and reduced once. ``cells`` takes the outputs one by one and lays vectors along each window's rows: for bins
of unequal size, long strides, and windows as large as the image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic, register_jitable

from .simd import (
    ELEMENTS,
    I32,
    I64,
    Element,
    as_written,
    const,
    element,
    flags,
    halves,
    host,
    lane_range,
    load,
    masked_load,
    masked_store,
    next_task,
    pointer,
    splat,
    store,
)

# Vectors that are reduced side by side.
TOGETHER = 4

# Output rows that are reduced side by side.
ROWS = 4

# Numbers of a vector in the table: where it reads its first tap, where it writes, which lanes it writes.
SLOT = 3

# What a window is reduced to.
SUM, MAX, ARGMAX = range(3)

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x y indices divisors "  # addresses; divisors may be 0
    "offsets slots masks firsts inner "  # addresses of the tables of `taps`
    "bins_d bins_h bins_w "  # addresses of the tables of `cells`: first element, count and step of every bin
    "plane plane_out planes "  # elements of a plane, outputs of one, planes in all
    "planes_step "  # planes of a task
    "taps groups stride "  # taps of a window, groups of vectors, stride along a row
    "h w od oh ow "  # sizes
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


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
                masked_store(b, e, value, b.gep(y, [at]), flags(b, e, mask))
        if op == ARGMAX:
            _store_places(b, e, where[u], b.gep(indices, [at]), mask)
    b.ret_void()
    return function


def _store_places(b: ir.IRBuilder, e: Element, where: Any, to: Any, mask: Any) -> None:
    """Store int64 places, in as many vectors as they take."""
    wide = ELEMENTS[types.int64]
    for half in range(0, e.lanes, wide.lanes):
        picks = ir.Constant(
            ir.VectorType(I32, wide.lanes), [ir.Constant(I32, half + i) for i in range(wide.lanes)]
        )
        part = b.shuffle_vector(where, where, picks)
        value = b.sext(part, wide.vector)
        lanes = flags(b, wide, b.lshr(mask, const(half)))
        masked_store(b, wide, value, b.gep(to, [const(half)]), lanes)


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
    name = (
        f"pool_{e.short}_{('sum', 'max', 'argmax')[op]}_s{stride}{'_masked' if masked else ''}_{host().name}"
    )

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _emit(builder.module, e, op, stride, masked, name)
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[4:], function.args, strict=True)
        ]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(OP, S, MASKED, T, *[types.int64] * 9), codegen


def loads(stride: int, k: int) -> tuple[int, int]:
    """How many rows ``ROWS`` output rows of k x k windows read, and how many times each is loaded."""
    return (ROWS - 1) * stride + k, k if stride == 1 else -(-k // 2)


def _emit_rows(
    module: ir.Module, e: Element, op: int, stride: int, k: int, masked: bool, name: str
) -> ir.Function:
    """K x k windows of one vector of each of ``ROWS`` rows; a slot's mask is for lanes, above them for rows.

    Each input row is reduced along the width once, and the results are shared by the windows above each other.
    """
    if name in module.globals:
        return module.globals[name]
    elements, words = e.llvm.as_pointer(), I32.as_pointer()
    signature = ir.FunctionType(
        ir.VoidType(),
        # x, row, slots, masks, y, row_out, divisors
        [elements, I64, I64.as_pointer(), words, elements, I64, elements],
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    x, row, slots, masks, y, row_out, divisors = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    begin = b.gep(x, [b.load(b.gep(slots, [const(0)]))])
    neutral = splat(b, e.vector, lowest(e)) if op else None
    rows, times = loads(stride, k)
    results: list[Any] = [None] * ROWS

    def join(a: Any, value: Any) -> Any:
        if a is None:
            return value
        if op == SUM:
            return b.fadd(a, value) if e.real else b.add(a, value)
        return b.select(wins(b, e, value, a), value, a)

    for i in range(rows):
        at = b.gep(begin, [b.mul(row, const(i))])
        columns: list[Any] = []
        for j in range(times):
            bits = b.load(b.gep(masks, [const(i * times + j)])) if masked else None
            parts = []
            for r in range(stride):
                place = b.gep(at, [const(stride * j + r * e.lanes)])
                if bits is None:
                    parts.append(load(b, e, place))
                else:
                    part = b.lshr(bits, ir.Constant(I32, r * e.lanes)) if r else bits
                    parts.append(masked_load(b, e, place, flags(b, e, part), neutral))
            columns += parts if stride == 1 else halves(b, *parts)
        reduced = None
        for column in columns[:k]:
            reduced = join(reduced, column)
        for r in range(ROWS):
            if 0 <= i - r * stride < k:
                results[r] = join(results[r], reduced)
    y_at, mask = (b.load(b.gep(slots, [const(field)])) for field in (1, 2))
    for r, value in enumerate(results):
        place = b.add(y_at, b.mul(row_out, const(r)))
        there = b.trunc(b.lshr(mask, const(32 + r)), ir.IntType(1))
        with b.if_then(there, likely=True):
            lanes = flags(b, e, mask)
            if op == SUM and e.real:
                ones = splat(b, e.vector, ir.Constant(e.llvm, 1.0))
                value = b.fdiv(value, masked_load(b, e, b.gep(divisors, [place]), lanes, ones))
            if masked:
                masked_store(b, e, value, b.gep(y, [place]), lanes)
            else:
                store(b, e, value, b.gep(y, [place]))
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)
def reduce_rows(
    typing: Any, OP: Any, S: Any, K: Any, MASKED: Any, T: Any,
    x: Any, row: Any, slots: Any, masks: Any, y: Any, row_out: Any, divisors: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of an op, a stride S and K x K windows; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (OP, S, K, MASKED)):
        return None
    e, op, stride, k = ELEMENTS[T.instance_type], OP.literal_value, S.literal_value, K.literal_value
    masked = bool(MASKED.literal_value)
    name = f"pool_{e.short}_{('sum', 'max')[op]}_{k}x{k}_s{stride}{'_masked' if masked else ''}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _emit_rows(builder.module, e, op, stride, k, masked, name)
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[5:], function.args, strict=True)
        ]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(OP, S, K, MASKED, T, *[types.int64] * 7), codegen


def rows(op: int, stride: int, k: int) -> Any:
    """A factory of tasks with k x k windows, four rows of outputs at a time: some planes."""
    each = math.prod(loads(stride, k))

    def pool_rows(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            inner = carray(pointer(a.inner, types.int64), a.groups)
            while True:
                task = next_task(arguments)
                if task >= a.stop:
                    return
                for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                    x, y = a.x + size * p * a.plane, a.y + size * p * a.plane_out
                    for v in range(a.groups):
                        slots, masks = a.slots + 8 * SLOT * v, a.masks + 4 * each * v
                        if inner[v]:
                            reduce_rows(op, stride, k, 0, T, x, a.w, slots, masks, y, a.ow, a.divisors)
                        else:
                            reduce_rows(op, stride, k, 1, T, x, a.w, slots, masks, y, a.ow, a.divisors)

        return work

    pool_rows.__name__ = f"pool_rows_{('sum', 'max')[op]}_{stride}_{k}"
    return pool_rows


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
    name = f"pool_{e.short}_row_{('sum', 'max')[op]}_{host().name}"

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
                task = next_task(arguments)
                if task >= a.stop:
                    return
                for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                    x, y = a.x + size * p * a.plane, a.y + size * p * a.plane_out
                    indices = a.indices + 8 * p * a.plane_out
                    for v in range(a.groups):
                        slots = a.slots + 8 * SLOT * TOGETHER * v
                        masks = a.masks + 4 * TOGETHER * a.taps * v
                        firsts = a.firsts + 4 * TOGETHER * lanes * v
                        if a.stride == 1:
                            if inner[v]:
                                reduce_taps(
                                    op,
                                    1,
                                    0,
                                    T,
                                    a.taps,
                                    x,
                                    a.offsets,
                                    slots,
                                    masks,
                                    firsts,
                                    y,
                                    a.divisors,
                                    indices,
                                )
                            else:
                                reduce_taps(
                                    op,
                                    1,
                                    1,
                                    T,
                                    a.taps,
                                    x,
                                    a.offsets,
                                    slots,
                                    masks,
                                    firsts,
                                    y,
                                    a.divisors,
                                    indices,
                                )
                        elif inner[v]:
                            reduce_taps(
                                op,
                                2,
                                0,
                                T,
                                a.taps,
                                x,
                                a.offsets,
                                slots,
                                masks,
                                firsts,
                                y,
                                a.divisors,
                                indices,
                            )
                        else:
                            reduce_taps(
                                op,
                                2,
                                1,
                                T,
                                a.taps,
                                x,
                                a.offsets,
                                slots,
                                masks,
                                firsts,
                                y,
                                a.divisors,
                                indices,
                            )

        return work

    pool_taps.__name__ = f"pool_taps_{('sum', 'max', 'argmax')[op]}"
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
                task = next_task(arguments)
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

    pool_cells.__name__ = f"pool_cells_{('sum', 'max', 'argmax')[op]}"
    return pool_cells
