"""Depthwise convolution: each output channel sees one input channel, so there is nothing to share but weights.

Vectors of output positions lie along the lanes and the input is read where it lies, a vector for each tap, two
of which every second lane is taken for a stride of 2. Padding is a mask for each vector and tap; groups of
vectors that meet no border read no masks. Both come from a table that all channels share.
"""

from __future__ import annotations

import math
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
)

# Vectors that are summed side by side: an FMA takes 4 cycles and two begin in each.
TOGETHER = 4

# Output rows that are computed side by side with 3 x 3 taps.
ROWS = 4

# Numbers of a vector in the table: where it reads tap (0, 0, 0), where it writes, which lanes it writes.
SLOT = 3

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x w bias y "  # addresses; no bias is 0
    "offsets slots masks inner "  # addresses of the plan's tables
    "x_n x_c y_n y_c "  # strides of images and channels
    "o per_group taps groups_of_vectors "  # output channels, those of a group; kernel elements
    "o_step o_tasks "  # output channels of a task, tasks of an image
    "stride "  # 1 or 2
    "in_rows row row_out"  # whether groups are four rows; elements from row to row, in input and output
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
                masked_store(b, e, value, b.gep(y, [at]), flags(b, e, mask))
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


def loads(stride: int) -> tuple[int, int]:
    """How many rows four output rows of 3 x 3 taps read, and how many times each is loaded."""
    return (ROWS - 1) * stride + 3, 3 if stride == 1 else 2


def _emit_rows(module: ir.Module, e: Element, stride: int, masked: bool, name: str) -> ir.Function:
    """3 x 3 taps for one vector of each of ``ROWS`` rows; a slot's mask is for lanes, above them for rows."""
    if name in module.globals:
        return module.globals[name]
    element, words = e.llvm.as_pointer(), I32.as_pointer()
    signature = ir.FunctionType(
        ir.VoidType(),
        # x, row, slots, masks, w, y, row_out, bias
        [element, I64, I64.as_pointer(), words, element, element, I64, element],
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    x, row, slots, masks, w, y, row_out, bias = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    begin = b.gep(x, [b.load(b.gep(slots, [const(0)]))])
    weights = [splat(b, e.vector, b.load(b.gep(w, [const(t)]))) for t in range(9)]
    sums = [ir.Constant(e.vector, None)] * ROWS
    rows, times = loads(stride)
    for i in range(rows):
        at = b.gep(begin, [b.mul(row, const(i))])
        columns = []
        for j in range(times):
            bits = b.load(b.gep(masks, [const(i * times + j)])) if masked else None
            if stride == 1:
                columns.append(_read(b, e, 1, b.gep(at, [const(j)]), bits))
            else:
                columns += _pair(b, e, b.gep(at, [const(2 * j)]), bits)
        for r in range(ROWS):
            if 0 <= (kh := i - r * stride) < 3:
                for kw in range(3):
                    sums[r] = multiply_add(b, e, columns[kw], weights[3 * kh + kw], sums[r])
    y_at, mask = (b.load(b.gep(slots, [const(field)])) for field in (1, 2))
    add, offset = (b.fadd if e.real else b.add), splat(b, e.vector, b.load(bias))
    for r, value in enumerate(add(total, offset) for total in sums):
        to = b.gep(y, [b.add(y_at, b.mul(row_out, const(r)))])
        if masked:
            there = b.trunc(b.lshr(mask, const(32 + r)), ir.IntType(1))
            with b.if_then(there, likely=True):
                masked_store(b, e, value, to, flags(b, e, mask))
        else:
            store(b, e, value, to)
    b.ret_void()
    return function


def _pair(b: ir.IRBuilder, e: Element, at: Any, bits: Any) -> tuple[Any, Any]:
    """The even and the odd elements of two vectors in a row."""
    if bits is None:
        parts = [load(b, e, b.gep(at, [const(r * e.lanes)])) for r in range(2)]
    else:
        high = b.lshr(bits, ir.Constant(I32, e.lanes))
        parts = [
            masked_load(b, e, b.gep(at, [const(r * e.lanes)]), flags(b, e, part))
            for r, part in enumerate((bits, high))
        ]
    return halves(b, *parts)


@intrinsic(prefer_literal=True)
def sum_rows(
    typing: Any, S: Any, MASKED: Any, T: Any,
    x: Any, row: Any, slots: Any, masks: Any, w: Any, y: Any, row_out: Any, bias: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of 3 x 3 taps and stride S for elements of type T; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (S, MASKED)):
        return None
    e, stride, masked = ELEMENTS[T.instance_type], S.literal_value, bool(MASKED.literal_value)
    name = f"depthwise_{e.short}_3x3_s{stride}{'_masked' if masked else ''}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = _emit_rows(builder.module, e, stride, masked, name)
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[3:], function.args, strict=True)
        ]
        builder.call(function, arguments)
        return context.get_dummy_value()

    return types.void(S, MASKED, T, *[types.int64] * 8), codegen


def depthwise(T: Any) -> Any:
    """Tasks of a depthwise convolution for elements of type T: one image, some channels."""
    size = T.bitwidth // 8
    masks_1, masks_2 = (math.prod(loads(stride)) for stride in (1, 2))

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        inner = carray(pointer(a.inner, types.int64), a.groups_of_vectors)
        zero = np.zeros(1, np.int64)
        while True:
            task = next_task(arguments)
            if task >= a.stop:
                return
            n, o0 = divmod(task, a.o_tasks)
            o0 *= a.o_step
            for o in range(o0, min(o0 + a.o_step, a.o)):
                x = a.x + size * (n * a.x_n + o // a.per_group * a.x_c)
                y = a.y + size * (n * a.y_n + o * a.y_c)
                w = a.w + size * o * a.taps
                bias = a.bias + size * o if a.bias else zero.ctypes.data
                ahead = x + max(size * a.x_c, 4096)
                step = 64 * -(-size * a.x_c // (64 * a.groups_of_vectors))
                if a.in_rows:
                    each = masks_1 if a.stride == 1 else masks_2
                    for v in range(a.groups_of_vectors):
                        slots, masks = a.slots + 8 * SLOT * v, a.masks + 4 * each * v
                        for i in range(0, step, 64):
                            fetch(ahead + v * step + i)
                        if a.stride == 1:
                            if inner[v]:
                                sum_rows(1, 0, T, x, a.row, slots, masks, w, y, a.row_out, bias)
                            else:
                                sum_rows(1, 1, T, x, a.row, slots, masks, w, y, a.row_out, bias)
                        elif inner[v]:
                            sum_rows(2, 0, T, x, a.row, slots, masks, w, y, a.row_out, bias)
                        else:
                            sum_rows(2, 1, T, x, a.row, slots, masks, w, y, a.row_out, bias)
                    continue
                for v in range(a.groups_of_vectors):
                    for i in range(0, step, 64):
                        fetch(ahead + v * step + i)
                    slots = a.slots + 8 * SLOT * TOGETHER * v
                    masks = a.masks + 4 * TOGETHER * a.taps * v
                    if a.stride == 1:
                        if inner[v]:
                            sum_taps(1, 0, T, a.taps, x, a.offsets, slots, masks, w, y, bias)
                        else:
                            sum_taps(1, 1, T, a.taps, x, a.offsets, slots, masks, w, y, bias)
                    elif inner[v]:
                        sum_taps(2, 0, T, a.taps, x, a.offsets, slots, masks, w, y, bias)
                    else:
                        sum_taps(2, 1, T, a.taps, x, a.offsets, slots, masks, w, y, bias)

    return work
