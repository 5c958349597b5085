"""Depthwise convolution: each output channel sees one input channel, so there is nothing to share but weights.

Vectors of output positions lie along the lanes and the input is read where it lies, a vector for each tap, two
of which every second lane is taken for a stride of 2. Padding is a mask for each vector and tap; groups of
vectors that meet no border read no masks. Both come from a table that all channels share.

With 3 x 3 taps, which is what networks have, vectors of ``ROWS`` rows share the rows they read. Where a row of outputs
fills at most half a vector, each holds two rows, which lie ``ROWS`` apart: so they share as much, and a plane of 7 x 7 is
one group of vectors.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from .simd import (
    ELEMENTS,
    I32,
    I64,
    Element,
    as_written,
    const,
    fetch,
    flags,
    halves,
    host,
    load,
    masked_load,
    masked_store,
    multiply_add,
    next_task,
    pointer,
    splat,
    store,
    store_all,
)

# Vectors that are summed side by side: an FMA takes 4 cycles and two begin in each.
TOGETHER = 4

# Vectors of different output rows that are computed side by side with 3 x 3 taps.
ROWS = 4

# Numbers of a vector in the table: where it reads tap (0, 0, 0), where it writes, which lanes it writes.
SLOT = 3

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x w bias y "  # addresses; no bias is 0
    "offsets slots masks inner "  # addresses of the plan's tables; where rows are held, the first is of zeros
    "x_n x_c y_n y_c "  # strides of images and channels
    "o per_group taps "  # output channels, those of a group; kernel elements
    "groups slots_step masks_step "  # groups of vectors, and what each has of the tables, in bytes
    "o_step o_tasks "  # output channels of a task, tasks of an image
    "stride "  # 1 or 2
    "past "  # whether results go past the caches, which they would fill
    "rows_held row row_out"  # rows of 3 x 3 taps a vector holds, or 0; elements from row to row, in input and output
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


def _read(b: ir.IRBuilder, e: Element, stride: int, at: Any, bits: Any) -> Any:
    """One vector of every `stride`-th element, of the lanes whose bit is set; of all where `bits` is None."""
    parts = []
    for r in range(stride):
        place = b.gep(at, [const(r * e.lanes)])
        if bits is None:
            parts.append(load(b, e, place))
        else:
            part = b.lshr(bits, ir.Constant(I32, r * e.lanes)) if r else bits
            parts.append(masked_load(b, e, place, flags(b, e, part)))
    return parts[0] if stride == 1 else halves(b, *parts)[0]


def _pick(b: ir.IRBuilder, low: Any, high: Any, lanes: list[int]) -> Any:
    """These lanes of two vectors."""
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _emit(module: ir.Module, e: Element, stride: int, masked: bool, name: str) -> ir.Function:
    """Sum ``TOGETHER`` vectors over the taps."""
    if name in module.globals:
        return module.globals[name]
    element, words = e.llvm.as_pointer(), I32.as_pointer()
    signature = ir.FunctionType(
        ir.VoidType(),
        # taps, x, offsets, slots, masks, w, y, bias
        [I64, element, words, I64.as_pointer(), words, element, element, element],
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    taps, x, offsets, slots, masks, w, y, bias = function.args
    entry, tap, done = (function.append_basic_block(label) for label in ("entry", "tap", "done"))

    b = ir.IRBuilder(entry)
    begins = [b.gep(x, [b.load(b.gep(slots, [const(SLOT * u)]))]) for u in range(TOGETHER)]
    b.branch(tap)

    b = ir.IRBuilder(tap)
    t = b.phi(I64)
    sums = [b.phi(e.vector) for _ in range(TOGETHER)]
    offset = b.sext(b.load(b.gep(offsets, [t])), I64)
    weight = splat(b, e.vector, b.load(b.gep(w, [t])))
    after = []
    for u in range(TOGETHER):
        at = b.mul(t, const(TOGETHER))
        bits = b.load(b.gep(masks, [b.add(at, const(u))])) if masked else None
        vector = _read(b, e, stride, b.gep(begins[u], [offset]), bits)
        after.append(multiply_add(b, e, vector, weight, sums[u]))
    t_next = b.add(t, const(1))
    as_written(b.cbranch(b.icmp_signed("<", t_next, taps), tap, done))
    t.add_incoming(const(0), entry)
    t.add_incoming(t_next, tap)
    for phi, value in zip(sums, after, strict=True):
        phi.add_incoming(ir.Constant(e.vector, None), entry)
        phi.add_incoming(value, tap)

    b = ir.IRBuilder(done)
    add, offset = (b.fadd if e.real else b.add), splat(b, e.vector, b.load(bias))
    for u, value in enumerate(add(total, offset) for total in after):
        at, mask = (b.load(b.gep(slots, [const(SLOT * u + field)])) for field in (1, 2))
        with b.if_else(b.icmp_unsigned("==", mask, const((1 << e.lanes) - 1)), likely=True) as (whole, part):
            with whole:
                store(b, e, value, b.gep(y, [at]))
            with part:
                masked_store(b, e, value, b.gep(y, [at]), mask)
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)
def sum_taps(
    typing: Any, S: Any, MASKED: Any, T: Any,
    taps: Any, x: Any, offsets: Any, slots: Any, masks: Any, w: Any, y: Any, bias: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of stride S for elements of type T; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (S, MASKED)):
        return None
    e, stride, masked = ELEMENTS[T.instance_type], S.literal_value, bool(MASKED.literal_value)
    name = f"depthwise_{e.short}_s{stride}{'_masked' if masked else ''}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _emit(builder.module, e, stride, masked, name)
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[3:], function.args, strict=True)
        ]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(S, MASKED, T, *[types.int64] * 8), codegen


def half(stride: int, lanes: int) -> int:
    """The most outputs of a row where a vector holds two rows: those whose taps lie in one vector of input."""
    return min(lanes // 2, (lanes - 3) // stride + 1)


def loads(stride: int, pair: bool, lanes: int) -> tuple[int, ...]:
    """Where in a row the vectors begin that its taps are made of."""
    return (0,) if pair else (0, 1, 2) if stride == 1 else (0, lanes, lanes + 2)


def columns_of(b: ir.IRBuilder, stride: int, vectors: list[Any]) -> list[Any]:
    """The elements under each of three taps, from what was loaded: of one row, or a vector of each of two."""
    lanes = vectors[0].type.count
    if len(vectors) == 2:  # lanes without an output get anything
        picks = [[(stride * i + kw) % lanes for i in range(lanes // 2)] for kw in range(3)]
        return [_pick(b, vectors[0], vectors[1], [*low, *(i + lanes for i in low)]) for low in picks]
    if stride == 1:
        return vectors
    even, odd = halves(b, *vectors[:2])
    return [even, odd, _pick(b, even, vectors[2], [*range(1, lanes), 2 * lanes - 2])]


def _emit_rows(
    module: ir.Module, e: Element, stride: int, masked: bool, pair: bool, name: str
) -> ir.Function:
    """3 x 3 taps for ``ROWS`` vectors, of a row each or a `pair`; a slot's mask is for lanes, above them for rows.

    Padding above and below is a row of zeros, so that all rows have the same masks. Vectors of a row each are written
    whole but for the last: four masked stores took a third of the time of all.
    """
    if name in module.globals:
        return module.globals[name]
    element, words = e.llvm.as_pointer(), I32.as_pointer()
    signature = ir.FunctionType(
        ir.VoidType(),
        # x, row, slots, masks, w, y, row_out, bias, zeros, past
        [element, I64, I64.as_pointer(), words, element, element, I64, element, element, I64],
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    x, row, slots, masks, w, y, row_out, bias, zeros, past = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    begin, y_at, mask = (b.load(b.gep(slots, [const(field)])) for field in range(SLOT))
    begin = b.gep(x, [begin])
    starts = loads(stride, pair, e.lanes)
    if masked:
        left, there, *bits = (b.load(b.gep(masks, [const(i)])) for i in range(2 + len(starts)))
        zeros = b.gep(zeros, [b.sext(left, I64)])
        inside = [flags(b, e, word) for word in bits]
    weights = [splat(b, e.vector, b.load(b.gep(w, [const(t)]))) for t in range(9)]
    sums = [ir.Constant(e.vector, None)] * ROWS
    for i in range((ROWS - 1) * stride + 3):
        vectors = []
        for r in (i, i + ROWS * stride)[: 1 + pair]:
            at = b.gep(begin, [b.mul(row, const(r))])
            if masked:
                at = b.select(b.trunc(b.lshr(there, ir.Constant(I32, r)), ir.IntType(1)), at, zeros)
            places = [b.gep(at, [const(start)]) for start in starts]
            if masked:
                vectors += [masked_load(b, e, *place) for place in zip(places, inside, strict=True)]
            else:
                vectors += [load(b, e, place) for place in places]
        columns = columns_of(b, stride, vectors)
        for r in range(ROWS):
            if 0 <= (kh := i - r * stride) < 3:
                for kw in range(3):
                    sums[r] = multiply_add(b, e, columns[kw], weights[3 * kh + kw], sums[r])
    add, offset = (b.fadd if e.real else b.add), splat(b, e.vector, b.load(bias))
    values = [add(total, offset) for total in sums]

    def place(row: int, lane: int = 0) -> Any:
        return b.gep(y, [b.add(y_at, b.sub(b.mul(row_out, const(row)), const(lane)))])

    if pair:
        for r, part in itertools.product(range(ROWS), range(2)):
            row, lane = r + part * ROWS, part * (e.lanes // 2)
            # No branch: LLVM would put the row's sums behind it, and spill what they are of.
            there = b.trunc(b.lshr(mask, const(32 + row)), ir.IntType(1))
            lanes = b.select(there, b.shl(mask, const(lane)), const(0))
            masked_store(b, e, values[r], place(row, lane), lanes)
    else:
        whole = [(value, place(r)) for r, value in enumerate(values)]
        store_all(b, e, whole[: ROWS - masked], past, y, y_at, row_out)
        for value, to in whole[ROWS - masked :]:
            masked_store(b, e, value, to, b.and_(mask, const((1 << e.lanes) - 1)))
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)
def sum_rows(
    typing: Any, S: Any, MASKED: Any, PAIR: Any, T: Any,
    x: Any, row: Any, slots: Any, masks: Any, w: Any, y: Any, row_out: Any, bias: Any, zeros: Any, past: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of 3 x 3 taps and stride S for elements of type T; every pointer is an address.

    What is a PAIR is MASKED.
    """
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (S, MASKED, PAIR)):
        return None
    e, stride = ELEMENTS[T.instance_type], S.literal_value
    masked, pair = bool(MASKED.literal_value), bool(PAIR.literal_value)
    kind = "_pair" if pair else "_masked" if masked else ""
    name = f"depthwise_{e.short}_3x3_s{stride}{kind}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _emit_rows(builder.module, e, stride, masked, pair, name)
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[4:], function.args, strict=True)
        ]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(S, MASKED, PAIR, T, *[types.int64] * 10), codegen


def depthwise(T: Any) -> Any:
    """Tasks of a depthwise convolution for elements of type T: one image, some channels."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        inner = carray(pointer(a.inner, types.int64), a.groups)
        zero = np.zeros(1, np.int64)
        row, row_out, zeros, past = a.row, a.row_out, a.offsets, a.past
        ahead, step = min(max(size * a.x_c, 4096), 8192), 64 * -(-size * a.x_c // (64 * a.groups))
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            n, o0 = divmod(task, a.o_tasks)
            o0 *= a.o_step
            for o in range(o0, min(o0 + a.o_step, a.o)):
                c = o if a.per_group == 1 else o // a.per_group  # a division takes as long as a row
                x = a.x + size * (n * a.x_n + c * a.x_c)
                y = a.y + size * (n * a.y_n + o * a.y_c)
                w = a.w + size * o * a.taps
                bias = a.bias + size * o if a.bias else zero.ctypes.data
                for v in range(a.groups):
                    for i in range(v * step, (v + 1) * step, 64):
                        fetch(x + ahead + i)
                    slots, masks = a.slots + v * a.slots_step, a.masks + v * a.masks_step
                    if a.rows_held == 2:
                        if a.stride == 1:
                            sum_rows(1, 1, 1, T, x, row, slots, masks, w, y, row_out, bias, zeros, past)
                        else:
                            sum_rows(2, 1, 1, T, x, row, slots, masks, w, y, row_out, bias, zeros, past)
                    elif a.rows_held:
                        if a.stride == 1:
                            if inner[v]:
                                sum_rows(1, 0, 0, T, x, row, slots, masks, w, y, row_out, bias, zeros, past)
                            else:
                                sum_rows(1, 1, 0, T, x, row, slots, masks, w, y, row_out, bias, zeros, past)
                        elif inner[v]:
                            sum_rows(2, 0, 0, T, x, row, slots, masks, w, y, row_out, bias, zeros, past)
                        else:
                            sum_rows(2, 1, 0, T, x, row, slots, masks, w, y, row_out, bias, zeros, past)
                    elif a.stride == 1:
                        if inner[v]:
                            sum_taps(1, 0, T, a.taps, x, a.offsets, slots, masks, w, y, bias)
                        else:
                            sum_taps(1, 1, T, a.taps, x, a.offsets, slots, masks, w, y, bias)
                    elif inner[v]:
                        sum_taps(2, 0, T, a.taps, x, a.offsets, slots, masks, w, y, bias)
                    else:
                        sum_taps(2, 1, T, a.taps, x, a.offsets, slots, masks, w, y, bias)

    return work
