"""Pooling: windows of one plane at a time, reduced to their maximum or their sum.

``taps`` lays vectors along the output positions, as depthwise convolution does, and reads the input where it lies:
a vector for each tap, two of which every second lane is taken for a stride of 2; a mask for each vector and tap
stands for the padding. ``rows`` does so for windows of 2 x 2 and 3 x 3, which is what networks have, four rows of
outputs at a time: what their windows share is loaded and reduced once. ``cells`` takes the outputs one by one and lays vectors along each window's rows: for bins
of unequal size, long strides, and windows as large as the image.
"""

from __future__ import annotations

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
    flags,
    halves,
    host,
    lane_range,
    load,
    masked_load,
    masked_store,
    next_task,
    out_of_line,
    phases,
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

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x y indices divisors "  # addresses; divisors may be 0
    "offsets slots masks firsts inner "  # addresses of the tables of `taps`
    "bins_d bins_h bins_w "  # addresses of the tables of `cells`: first element, count and step of every bin
    "plane plane_out planes "  # elements of a plane, outputs of one, planes in all
    "planes_step "  # planes of a task
    "taps groups stride "  # taps of a window, groups of vectors, stride along a row
    "h w od oh ow "  # sizes
    "channels x_n x_c x_h before_h before_w "  # of `rows`: strides of the input, and padding
    "block begin end "  # of `rows`: rows of outputs at a time, and those whose windows have all their rows
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


def outputs_of(stride: int, k: int, lanes: int) -> int:
    """How many outputs of a row are reduced from `stride` vectors of it."""
    return (stride * lanes - k) // stride + 1


class Strip:
    """What both micro-kernels of a strip do with one row of the input: `k` columns from S vectors."""

    def __init__(self, e: Element, op: int, stride: int, k: int) -> None:
        self.e, self.op, self.stride, self.k = e, op, stride, k
        self.places = ir.VectorType(I32, e.lanes)

    def neutral(self, b: ir.IRBuilder) -> Any:
        """A vector that changes no result."""
        return splat(b, self.e.vector, lowest(self.e)) if self.op else ir.Constant(self.e.vector, None)

    def masks(self, b: ir.IRBuilder, low: Any, high: Any) -> list[Any]:
        """Flags of the elements from `low` to `high`, for each vector of a row."""
        skips = [const(r * self.e.lanes) for r in range(self.stride)]
        return [lane_range(b, self.e, b.sub(low, skip), b.sub(high, skip)) for skip in skips]

    def load(self, b: ir.IRBuilder, at: Any, masks: list[Any] | None) -> list[Any]:
        """The vectors of a row; what the masks leave out is neutral and not read."""
        places = [b.gep(at, [const(r * self.e.lanes)]) for r in range(self.stride)]
        if masks is None:
            return [load(b, self.e, place) for place in places]
        neutral = self.neutral(b)
        return [masked_load(b, self.e, place, m, neutral) for place, m in zip(places, masks, strict=True)]

    def columns(self, b: ir.IRBuilder, parts: list[Any]) -> list[Any]:
        """Lane i of column t is element ``S * i + t``; the last lanes of later columns hold anything."""
        found, lanes = [], self.e.lanes
        split = phases(b, parts)
        for t in range(self.k):
            column, shift = split[t % self.stride], t // self.stride
            if shift:
                picks = [ir.Constant(I32, (lane + shift) % lanes) for lane in range(lanes)]
                column = b.shuffle_vector(column, column, ir.Constant(self.places, picks))
            found.append(column)
        return found

    def add(self, b: ir.IRBuilder, a: Any, value: Any) -> Any:
        """The sum of two vectors."""
        return b.fadd(a, value) if self.e.real else b.add(a, value)

    def larger(self, b: ir.IRBuilder, value: Any, best: Any) -> Any:
        """Flags of the lanes where `value` is larger: no number is, where one of the two is no number."""
        return b.fcmp_ordered(">", value, best) if self.e.real else b.icmp_signed(">", value, best)

    def place(self, b: ir.IRBuilder, first: Any, t: int) -> Any:
        """Where column t's elements lie in the plane, if the strip's first lies at `first` (an i64)."""
        lane = ir.Constant(self.places, [self.stride * i + t for i in range(self.e.lanes)])
        return b.add(splat(b, self.places, b.trunc(first, I32)), lane)

    def finish(
        self, b: ir.IRBuilder, value: Any, where: Any, y: Any, indices: Any, written: Any, divisor: Any
    ) -> None:
        """Write a vector of results."""
        mask = b.sub(b.shl(const(1), written), const(1))
        if divisor is not None:
            value = b.fdiv(value, divisor)
        masked_store(b, self.e, value, y, flags(b, self.e, mask))
        if self.op == ARGMAX:
            _store_places(b, self.e, where, b.inttoptr(indices, I64.as_pointer()), mask)

    def divisor(self, b: ir.IRBuilder, divisors: Any, written: Any) -> Any:
        """The divisors of a vector of averages, or None."""
        if self.op != SUM or not self.e.real:
            return None
        ones = splat(b, self.e.vector, ir.Constant(self.e.llvm, 1.0))
        return masked_load(b, self.e, divisors, lane_range(b, self.e, const(0), written), ones)


# Arguments of both micro-kernels: the first element, elements from one row to the next, rows, which columns of the
# strip there are (from low to high), where results go and how many of a row; the first element's place in its plane
# and how far the next row's is.
STRIP = "x row count low high y row_out written divisors indices place width".split()
POINTERS = ("x", "y", "divisors")


def _function(module: ir.Module, e: Element, name: str) -> tuple[ir.Function, dict[str, Any]]:
    kinds = [e.llvm.as_pointer() if argument in POINTERS else I64 for argument in STRIP]
    function = ir.Function(module, ir.FunctionType(I64, kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    return function, dict(zip(STRIP, function.args, strict=True))


def _emit_strip(module: ir.Module, s: Strip, masked: bool, name: str) -> None:
    """Down a strip: `count` rows of outputs whose windows have all their rows. Each row of the input is reduced once.

    Returns 1, or 0 if a maximum may be wrong. Such a comparison as the processor has takes one instruction, and loses
    a NaN; that there was none is checked beside it, and costs half a comparison more for each vector. A window of
    nothing but the lowest number, of which padding takes part, has its place wrong.
    """
    e, op = s.e, s.op
    function, given = _function(module, e, name)
    entry, loop, done = (function.append_basic_block(label) for label in ("entry", "loop", "done"))
    flags_type = ir.VectorType(ir.IntType(1), e.lanes)
    checks = op != SUM and (e.real or (op == ARGMAX and masked))
    kept = s.k - s.stride  # rows that the next row of outputs needs again

    def reduce(b: ir.IRBuilder, at: Any, place: Any, good: Any) -> tuple[Any, Any, Any]:
        parts = s.load(b, at, masks)
        if op != SUM and e.real:
            for part, other in zip(parts[::2], parts[1::2] or parts, strict=True):
                good = b.and_(good, b.fcmp_ordered("ord", part, other))
        value, *columns = s.columns(b, parts)
        where = s.place(b, place, 0) if op == ARGMAX else None
        for t, column in enumerate(columns, 1):
            if op == SUM:
                value = s.add(b, value, column)
                continue
            better = s.larger(b, column, value)
            if op == ARGMAX:
                where = b.select(better, s.place(b, place, t), where)
            value = b.select(better, column, value)
        return value, where, good

    b = ir.IRBuilder(entry)
    low, high, row, width = (given[key] for key in ("low", "high", "row", "width"))
    masks = s.masks(b, low, high) if masked else None
    divisor = s.divisor(b, given["divisors"], given["written"])
    good0 = ir.Constant(flags_type, [1] * e.lanes)
    at0, place0 = given["x"], given["place"]
    before = []
    for _ in range(kept):
        value, where, good0 = reduce(b, at0, place0, good0)
        before.append((value, where))
        at0, place0 = b.gep(at0, [row]), b.add(place0, width)
    b.branch(loop)

    b = ir.IRBuilder(loop)
    state = []  # each phi with its first value; the value it goes on with is added below

    def phi(first: Any) -> Any:
        node = b.phi(first.type)
        node.add_incoming(first, entry)
        state.append(node)
        return node

    i, at, y = phi(const(0)), phi(at0), phi(given["y"])
    carried = [(phi(value), phi(where) if op == ARGMAX else None) for value, where in before]
    place, indices = (phi(place0), phi(given["indices"])) if op == ARGMAX else (place0, given["indices"])
    good = phi(good0) if checks else good0
    rows, next_at, next_place, now_good = list(carried), at, place, good
    for _ in range(s.stride):
        value, where, now_good = reduce(b, next_at, next_place, now_good)
        rows.append((value, where))
        next_at = b.gep(next_at, [row])
        next_place = b.add(next_place, width) if op == ARGMAX else next_place
    value, where = rows[0]
    for other, its_place in rows[1 : s.k]:
        if op == SUM:
            value = s.add(b, value, other)
            continue
        better = s.larger(b, other, value)
        if op == ARGMAX:
            where = b.select(better, its_place, where)
        value = b.select(better, other, value)
    if op == ARGMAX and masked:
        same = b.fcmp_ordered if e.real else b.icmp_signed
        outside = b.not_(lane_range(b, e, const(0), given["written"]))
        now_good = b.and_(now_good, b.or_(outside, same("!=", value, splat(b, e.vector, lowest(e)))))
    s.finish(b, value, where, y, indices, given["written"], divisor)
    i_next = b.add(i, const(1))
    after = [i_next, next_at, b.gep(y, [given["row_out"]])]
    for value, where in rows[len(rows) - kept :] if kept else []:
        after += [value, where] if op == ARGMAX else [value]
    if op == ARGMAX:
        after += [next_place, b.add(indices, b.mul(const(8), given["row_out"]))]
    if checks:
        after.append(now_good)
    for node, value in zip(state, after, strict=True):
        node.add_incoming(value, loop)
    as_written(b.cbranch(b.icmp_signed("<", i_next, given["count"]), loop, done))
    b = ir.IRBuilder(done)
    if not checks:
        b.ret(const(1))
        return
    bits = b.bitcast(now_good, ir.IntType(e.lanes))
    b.ret(b.zext(b.icmp_unsigned("==", bits, ir.Constant(bits.type, -1)), I64))


def _emit_edge(module: ir.Module, s: Strip, name: str) -> None:
    """One row of outputs of a strip from `count` rows, whatever they hold: the last NaN, the first of the largest."""
    e, op = s.e, s.op
    function, given = _function(module, e, name)
    entry, loop, done = (function.append_basic_block(label) for label in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    masks = s.masks(b, given["low"], given["high"])
    none = ir.Constant(s.places, [ir.Constant(I32, -1)] * e.lanes)
    neutral = s.neutral(b)
    inside = []
    for t in range(s.k if op == ARGMAX else 0):
        first, stop = (splat(b, s.places, b.trunc(given[bound], I32)) for bound in ("low", "high"))
        column = ir.Constant(s.places, [s.stride * i + t for i in range(e.lanes)])
        inside.append(b.and_(b.icmp_signed(">=", column, first), b.icmp_signed("<", column, stop)))
    b.branch(loop)
    b = ir.IRBuilder(loop)
    i, at, best = b.phi(I64), b.phi(given["x"].type), b.phi(e.vector)
    place, found = b.phi(I64), b.phi(s.places)
    columns = s.columns(b, s.load(b, at, masks))
    value, where = best, found
    if op == SUM:
        total = columns[0]
        for column in columns[1:]:
            total = s.add(b, total, column)
        value = s.add(b, value, total)
    for t, column in enumerate(columns if op != SUM else ()):
        better = wins(b, e, column, value)
        if op == ARGMAX:
            better = b.and_(inside[t], b.or_(better, b.icmp_signed("==", where, none)))
            where = b.select(better, s.place(b, place, t), where)
        value = b.select(better, column, value)
    i_next, at_next = b.add(i, const(1)), b.gep(at, [given["row"]])
    place_next = b.add(place, given["width"])
    for node, first, following in (
        (i, const(0), i_next), (at, given["x"], at_next), (best, neutral, value),
        (place, given["place"], place_next), (found, none, where),
    ):  # fmt: skip
        node.add_incoming(first, entry)
        node.add_incoming(following, loop)
    as_written(b.cbranch(b.icmp_signed("<", i_next, given["count"]), loop, done))
    b = ir.IRBuilder(done)
    divisor = s.divisor(b, given["divisors"], given["written"])
    s.finish(b, value, where, given["y"], given["indices"], given["written"], divisor)
    b.ret(const(1))


# Which micro-kernel: windows with all their rows, of a strip inside its rows or at a border; any windows, carefully.
INSIDE, BORDER, CAREFUL = range(3)


@intrinsic(prefer_literal=True)
def strip(
    typing: Any, WAY: Any, OP: Any, S: Any, K: Any, T: Any,
    x: Any, row: Any, count: Any, low: Any, high: Any, y: Any, row_out: Any, written: Any, divisors: Any,
    indices: Any, place: Any, width: Any,
) -> Any:  # fmt: skip
    """Call a micro-kernel of K x K windows at stride S; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (WAY, OP, S, K)):
        return None
    e, way, op = ELEMENTS[T.instance_type], WAY.literal_value, OP.literal_value
    s = Strip(e, op, S.literal_value, K.literal_value)
    kind, reduced = ("inside", "border", "careful")[way], ("sum", "max", "argmax")[op]
    name = f"pool_{e.short}_{reduced}_{s.k}x{s.k}_s{s.stride}_{kind}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if name not in builder.module.globals:
            if way == CAREFUL:
                _emit_edge(builder.module, s, name)
            else:
                _emit_strip(builder.module, s, way == BORDER, name)
        function = builder.module.globals[name]
        arguments = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[5:], function.args, strict=True)
        ]
        return builder.call(function, arguments)

    return types.int64(WAY, OP, S, K, T, *[types.int64] * len(STRIP)), codegen


def rows(op: int, stride: int, k: int) -> Any:
    """A factory of tasks with k x k windows, a strip of outputs at a time: some planes."""

    def pool_rows(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size
        reads, full = stride * lanes, outputs_of(stride, k, lanes)

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            while True:
                task = next_task(arguments)
                if task >= a.stop:
                    return
                for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                    n, c = divmod(p, a.channels)
                    x = a.x + size * (n * a.x_n + c * a.x_c)
                    for block in range(0, a.oh, a.block):
                        last = min(block + a.block, a.oh)
                        # Windows of outputs from `begin` to `end` have all their rows.
                        begin = min(max(a.begin, block), last)
                        end = max(min(a.end, last), begin)
                        for w in range(0, a.ow, full):
                            # The last strip ends with the row, and repeats what the one before has written.
                            w = max(min(w, a.ow - full), 0)
                            written = min(full, a.ow)
                            left = w * stride - a.before_w
                            low, high = -left, a.w - left
                            if end > begin:
                                to = begin * a.ow + w
                                y, d = a.y + size * (p * a.plane_out + to), a.divisors + size * to
                                at = a.indices + 8 * (p * a.plane_out + to)
                                top = begin * stride - a.before_h
                                place, count = top * a.w + left, end - begin
                                from_ = x + size * (top * a.x_h + left)
                                if left >= 0 and left + reads <= a.w:
                                    good = strip(
                                        INSIDE, op, stride, k, T, from_, a.x_h, count, low, high, y, a.ow, written,
                                        d, at, place, a.w,
                                    )  # fmt: skip
                                else:
                                    good = strip(
                                        BORDER, op, stride, k, T, from_, a.x_h, count, low, high, y, a.ow, written,
                                        d, at, place, a.w,
                                    )  # fmt: skip
                            else:
                                good = 1
                            for j in range(block, last):
                                if good and begin <= j < end:
                                    continue
                                top = j * stride - a.before_h
                                bottom, top = min(top + k, a.h), max(top, 0)
                                to = j * a.ow + w
                                strip(
                                    CAREFUL, op, stride, k, T, x + size * (top * a.x_h + left), a.x_h, bottom - top,
                                    low, high, a.y + size * (p * a.plane_out + to), a.ow, written,
                                    a.divisors + size * to, a.indices + 8 * (p * a.plane_out + to),
                                    top * a.w + left, a.w,
                                )  # fmt: skip

        return work

    pool_rows.__name__ = f"pool_rows_{('sum', 'max', 'argmax')[op]}_{stride}_{k}"
    return pool_rows


@intrinsic(prefer_literal=True)
def reduce_planes(
    typing: Any, OP: Any, T: Any, x: Any, step: Any, area: Any, count: Any, y: Any, divisor: Any
) -> Any:
    """Reduce `count` planes, at most a vector of them, of `area` neighbouring elements each, `step` apart."""
    if not isinstance(OP, types.IntegerLiteral):
        return None
    e, op = ELEMENTS[T.instance_type], OP.literal_value
    name = f"pool_{e.short}_planes_{('sum', 'max')[op]}_{host().name}"

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
    masked_store(b, e, result, y, lane_range(b, e, const(0), count))


def planes(op: int) -> Any:
    """A factory of tasks with windows as large as the plane: some planes."""

    def pool_planes(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            while True:
                task = next_task(arguments)
                if task >= a.stop:
                    return
                stop = min((task + 1) * a.planes_step, a.planes)
                for p in range(task * a.planes_step, stop, lanes):
                    x, y = a.x + size * p * a.plane, a.y + size * p
                    reduce_planes(op, T, x, a.plane, a.plane, min(lanes, stop - p), y, a.divisors)

        return work

    pool_planes.__name__ = f"pool_planes_{('sum', 'max')[op]}"
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
