"""The host's vectors, and the few LLVM pieces that plain Numba has no word for.

Each intrinsic is module-level and takes what it is built from as literals: only so does Numba's on-disk cache
know it again in another process (an intrinsic made in a closure misses every time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Isa(NamedTuple):
    """A family of vector instructions: its name, bytes of a vector, registers, and whether masks have their own."""

    name: str
    width: int
    registers: int
    masks: bool


AVX512 = Isa("avx512", 64, 32, True)
AVX2 = Isa("avx2", 32, 16, False)
NEON = Isa("neon", 16, 32, False)
PORTABLE = Isa("portable", 16, 16, False)


# Bytes of a cache line, which one vector of AVX-512 fills.
LINE_BYTES = 64


@cache
def host() -> Isa:
    """The widest vectors Numba compiles for here.

    Numba's own variables ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` override what the processor has, and
    are part of Numba's cache key.
    """
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    has = set(features.split(","))
    if {"+avx512f", "+avx512vl", "+avx512bw", "+avx512dq"} <= has:
        return AVX512
    if {"+avx2", "+fma"} <= has:
        return AVX2
    return NEON if triple.startswith(("aarch64", "arm64")) else PORTABLE


class Element(NamedTuple):
    """An element type in LLVM's words."""

    short: str
    llvm: ir.Type
    size: int
    real: bool

    @property
    def lanes(self) -> int:
        """Elements of one of the host's vectors."""
        return host().width // self.size

    @property
    def vector(self) -> ir.VectorType:
        """The host's vector of these elements."""
        return ir.VectorType(self.llvm, self.lanes)


ELEMENTS = {
    types.float32: Element("f32", ir.FloatType(), 4, True),
    types.float64: Element("f64", ir.DoubleType(), 8, True),
    types.int32: Element("i32", I32, 4, False),
    types.int64: Element("i64", I64, 8, False),
}


def const(value: int) -> ir.Constant:
    """A 64-bit integer constant."""
    return ir.Constant(I64, value)


def splat(builder: ir.IRBuilder, vector: ir.VectorType, scalar: Any) -> Any:
    """A vector with `scalar` in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    lanes = ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, undefined, lanes)


def as_written(branch: Any) -> None:
    """Tell LLVM not to unroll the loop that this branch closes."""
    _mark(branch, "llvm.loop.unroll.disable")


def unrolled(branch: Any, times: int) -> None:
    """Tell LLVM to unroll the loop that this branch closes so often, and to write apart what is left over."""
    _mark(branch, "llvm.loop.unroll.count", ir.Constant(I32, times))


def _mark(branch: Any, name: str, *values: Any) -> None:
    module = branch.function.module
    mark = module.add_metadata([ir.MetaDataString(module, name), *values])
    loop = module.add_metadata([mark, ir.MetaDataString(module, str(len(module.metadata)))])
    loop.operands = (loop, mark)  # LLVM takes it for a loop's mark only if it begins with itself
    branch.set_metadata("llvm.loop", loop)


@contextmanager
def loop(builder: ir.IRBuilder, start: Any, stop: Any, step: Any = None) -> Iterator[Any]:
    """What is built inside runs for `start`, `start` + `step` ... below `stop`: at least once, and not unrolled."""
    before = builder.block
    body, after = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(I64)
    index.add_incoming(start, before)
    yield index
    following = builder.add(index, const(1) if step is None else step)
    index.add_incoming(following, builder.block)
    as_written(builder.cbranch(builder.icmp_signed("<", following, stop), body, after))
    builder.position_at_end(after)


def prefetch(builder: ir.IRBuilder, pointer: Any, ahead: Any, write: bool = False, level: int = 1) -> None:
    """Ask for the cache line `ahead` bytes behind `pointer`, even where there is no memory, to be read or written.

    It comes to the L1 cache, or to L2 where it is for later.
    """
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    words = [ir.Constant(I32, word) for word in (int(write), 4 - level, 1)]
    builder.call(function, [builder.gep(builder.bitcast(pointer, byte), [ahead]), *words])


def multiply_add(builder: ir.IRBuilder, e: Element, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once for floats and modulo 2**n for integers."""
    if not e.real:
        return builder.add(builder.mul(a, b), c)
    name = f"llvm.fma.v{e.lanes}{e.short}"
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(e.vector, [e.vector] * 3), name)
    return builder.call(fma, [a, b, c])


def masked_store(
    builder: ir.IRBuilder, e: Element, value: Any, pointer: Any, bits: Any, in_loop: bool = False
) -> None:
    """Store the lanes whose bits are set in an integer, and touch no other byte.

    Where a loop around it holds vectors in registers (`in_loop`), it is one instruction everywhere: a call would spill.
    """
    if not (host().masks or in_loop):
        _store_pieces(builder, e, value, pointer, bits)
        return
    mask = bits if isinstance(bits.type, ir.VectorType) else flags(builder, e, bits)
    address = builder.bitcast(pointer, e.vector.as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [e.vector, address.type, I32, mask.type])
    name = f"llvm.masked.store.v{e.lanes}{e.short}.p0"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    builder.call(function, [value, address, ir.Constant(I32, e.size), mask])


def blended_store(builder: ir.IRBuilder, e: Element, value: Any, pointer: Any, bits: Any) -> None:
    """Store the lanes whose bits are set, and the others as they are: in memory that nobody else writes meanwhile.

    It takes three instructions, where AVX2's masked store takes AMD's processors 12 cycles and more.
    """
    if host().masks:
        masked_store(builder, e, value, pointer, bits)
    else:
        store(builder, e, builder.select(flags(builder, e, bits), value, load(builder, e, pointer)), pointer)


def _store_pieces(builder: ir.IRBuilder, e: Element, value: Any, pointer: Any, bits: Any) -> None:
    """The same in halves, quarters and single lanes: AVX2's masked store takes AMD's processors 12 cycles and more."""

    def body(b: ir.IRBuilder, vector: Any, to: Any, wanted: Any) -> None:
        def piece(begin: int, count: int) -> None:
            every = const((1 << count) - 1 << begin)
            found = b.and_(wanted, every)
            with b.if_else(b.icmp_unsigned("==", found, every)) as (whole, part):
                with whole:
                    lanes = [ir.Constant(I32, begin + i) for i in range(count)]
                    some = b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, count), lanes))
                    at = b.bitcast(b.gep(to, [const(begin)]), some.type.as_pointer())
                    b.store(some, at).align = e.size
                with part:
                    if count > 1:
                        with b.if_then(b.icmp_unsigned("!=", found, const(0))):
                            piece(begin, count // 2)
                            piece(begin + count // 2, count // 2)

        piece(0, e.lanes)

    kinds = [e.vector, e.llvm.as_pointer(), I64]
    function = own_function(builder.module, f"store_pieces_{e.short}_{host().name}", kinds, body)
    word = bits if bits.type == I64 else builder.zext(bits, I64)
    builder.call(function, [value, builder.bitcast(pointer, e.llvm.as_pointer()), word])


def first_lanes(builder: ir.IRBuilder, e: Element, count: Any) -> Any:
    """Bits of the first `count` lanes (an i64); none below 0, all from the number of lanes on."""
    some = builder.icmp_signed(">", count, const(0))
    least = builder.icmp_signed("<", count, const(e.lanes))
    count = builder.select(some, builder.select(least, count, const(e.lanes)), const(0))
    return builder.sub(builder.shl(const(1), count), const(1))


def flags(builder: ir.IRBuilder, e: Element, mask: Any) -> Any:
    """The lowest bits of an integer as one flag for each lane."""
    if host().masks:
        return builder.bitcast(
            builder.trunc(mask, ir.IntType(e.lanes)), ir.VectorType(ir.IntType(1), e.lanes)
        )
    # Without registers for masks LLVM would take the bits out one by one, 40 instructions for 8 lanes; these are 3.
    # A word of 32 bits in memory is spread over the lanes from there.
    wide = ir.VectorType(I32 if mask.type == I32 else ir.IntType(8 * e.size), e.lanes)
    bits = ir.Constant(wide, [1 << lane for lane in range(e.lanes)])
    word = mask if mask.type.width >= e.lanes else builder.zext(mask, wide.element)
    resize = builder.trunc if word.type.width > wide.element.width else builder.zext
    word = word if word.type == wide.element else resize(word, wide.element)
    return builder.icmp_signed("==", builder.and_(splat(builder, wide, word), bits), bits)


def masked_load(builder: ir.IRBuilder, e: Element, pointer: Any, mask: Any, other: Any = None) -> Any:
    """A vector whose lanes are read where `mask` (flags) says so, else `other` (zero); no other byte is touched."""
    address = builder.bitcast(pointer, e.vector.as_pointer())
    signature = ir.FunctionType(e.vector, [address.type, I32, mask.type, e.vector])
    name = f"llvm.masked.load.v{e.lanes}{e.short}.p0"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    rest = ir.Constant(e.vector, None) if other is None else other
    return builder.call(function, [address, ir.Constant(I32, e.size), mask, rest])


def load(builder: ir.IRBuilder, e: Element, pointer: Any) -> Any:
    """A vector from any address."""
    value = builder.load(builder.bitcast(pointer, e.vector.as_pointer()))
    value.align = e.size
    return value


def store(builder: ir.IRBuilder, e: Element, value: Any, pointer: Any) -> None:
    """A vector to any address."""
    builder.store(value, builder.bitcast(pointer, e.vector.as_pointer())).align = e.size


def store_past(builder: ir.IRBuilder, e: Element, value: Any, pointer: Any) -> None:
    """A vector that fills a line, past the caches: the line is not fetched before, as it is for any other store.

    A locked addition, which taking the next task is, waits for it.
    """
    written = builder.store(value, builder.bitcast(pointer, e.vector.as_pointer()))
    written.align = LINE_BYTES
    written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))


def store_all(
    builder: ir.IRBuilder, e: Element, vectors: list[tuple[Any, Any]], past: Any, *parts: Any
) -> None:
    """Each vector to its place: past the caches where `past` is not 0 and no vector crosses a line.

    The `parts` are numbers that all places are sums of, in elements but for a pointer among them.
    """

    def all_by(put: Callable[[ir.IRBuilder, Element, Any, Any], None]) -> None:
        for value, place in vectors:
            put(builder, e, value, place)

    if host().width != LINE_BYTES:
        all_by(store)
        return
    offsets = [
        builder.ptrtoint(part, I64)
        if isinstance(part.type, ir.PointerType)
        else builder.mul(part, const(e.size))
        for part in parts
    ]
    within = builder.and_(reduce(builder.or_, offsets), const(LINE_BYTES - 1))
    whole = builder.icmp_unsigned("==", within, const(0))
    with builder.if_else(builder.and_(builder.icmp_unsigned("!=", past, const(0)), whole)) as (far, near):
        with far:
            all_by(store_past)
        with near:
            all_by(store)


def own_function(
    module: ir.Module, name: str, kinds: list[ir.Type], body: Callable[..., None]
) -> ir.Function:
    """An LLVM function of a module's own that is never inlined; ``body(builder, *arguments)`` writes it once."""
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        body(builder, *function.args)
        builder.ret_void()
    return function


def lane_range(builder: ir.IRBuilder, e: Element, low: Any, high: Any) -> Any:
    """Flags of the lanes from `low` (an i64) to `high`, which is left out; either may lie anywhere."""
    wide = ir.VectorType(I32, e.lanes)
    lane = ir.Constant(wide, list(range(e.lanes)))
    first, stop = (splat(builder, wide, builder.trunc(bound, I32)) for bound in (low, high))
    return builder.and_(builder.icmp_signed(">=", lane, first), builder.icmp_signed("<", lane, stop))


def halves(builder: ir.IRBuilder, a: Any, b: Any) -> tuple[Any, Any]:
    """The even and the odd lanes of two vectors."""
    count = a.type.count
    picks = ([ir.Constant(I32, 2 * i + odd) for i in range(count)] for odd in (0, 1))
    even, odd = (
        builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), lanes)) for lanes in picks
    )
    return even, odd


def woven(builder: ir.IRBuilder, a: Any, b: Any) -> list[Any]:
    """The lanes of two vectors in turn, as two vectors."""
    count = a.type.count
    index, made = ir.VectorType(I32, count), []
    for half in range(2):
        lanes = [ir.Constant(I32, (half * count + i) // 2 + i % 2 * count) for i in range(count)]
        made.append(builder.shuffle_vector(a, b, ir.Constant(index, lanes)))
    return made


def phases(builder: ir.IRBuilder, vectors: list[Any]) -> list[Any]:
    """S vectors, S a power of two: lane i of result r is element ``S * i + r`` of them all."""
    if len(vectors) == 1:
        return vectors
    pairs = [halves(builder, *vectors[i : i + 2]) for i in range(0, len(vectors), 2)]
    found = [phases(builder, [pair[odd] for pair in pairs]) for odd in (0, 1)]
    return [found[r % 2][r // 2] for r in range(len(vectors))]


def transpose(builder: ir.IRBuilder, vectors: list[Any]) -> list[Any]:
    """As many vectors as lanes: lane i of result j is lane j of vector i.

    log2(lanes) rounds, in which vectors i and i + step exchange every other block of `step` lanes: one or two
    instructions each.
    """
    count, step = len(vectors), 1
    index = ir.VectorType(I32, count)
    while step < count:
        picks = [
            ir.Constant(index, [lane - step + count if lane & step else lane for lane in range(count)]),
            ir.Constant(index, [lane + count if lane & step else lane + step for lane in range(count)]),
        ]
        vectors = [
            builder.shuffle_vector(vectors[i & ~step], vectors[i | step], picks[i & step > 0])
            for i in range(count)
        ]
        step *= 2
    return vectors


def sum_lanes(builder: ir.IRBuilder, e: Element, vector: Any) -> Any:
    """The sum of a vector's lanes, halves added to halves."""
    add = builder.fadd if e.real else builder.add
    step = e.lanes // 2
    while step:
        lanes = ir.Constant(
            ir.VectorType(I32, e.lanes), [ir.Constant(I32, (i + step) % e.lanes) for i in range(e.lanes)]
        )
        vector = add(vector, builder.shuffle_vector(vector, vector, lanes))
        step //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def out_of_line(name: str, kinds: str, skip: int, e: Element, body: Any) -> Any:
    """An intrinsic's code: a call of an LLVM function of its own, whose `body` is written once in a module.

    `kinds` has a letter for each argument after the first `skip`: p for a pointer to elements (given as an
    address), i for an integer.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arguments = [e.llvm.as_pointer() if kind == "p" else I64 for kind in kinds]
        function = own_function(builder.module, name, arguments, body)
        given = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[skip:], function.args, strict=True)
        ]
        builder.call(function, given)
        return context.get_dummy_value()

    return codegen


@intrinsic(prefer_literal=True)
def copy_phases(
    typing: Any, T: Any, S: Any, to: Any, step: Any, wanted: Any, source: Any, low: Any, high: Any
) -> Any:
    """One vector of each of S phases: lane i of phase r becomes ``source[S * i + r]``.

    Elements before `low` and from `high` on are taken for zero and not read. Phases whose bit in `wanted` is
    set are written, one after the other, `step` bytes apart. S is a power of two.
    """
    if not isinstance(S, types.IntegerLiteral):
        return None
    e, stride = ELEMENTS[T.instance_type], S.literal_value

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to, step, wanted, source, low, high = values[2:]
        element = e.llvm.as_pointer()
        begin = builder.inttoptr(source, element)
        places = [builder.gep(begin, [const(r * e.lanes)]) for r in range(stride)]
        inside = builder.and_(
            builder.icmp_signed("<=", low, const(0)),
            builder.icmp_signed(">=", high, const(stride * e.lanes)),
        )
        # Masks take three times as long as all the rest.
        with builder.if_else(inside, likely=True) as (whole, part):
            with whole:
                plain, from_whole = [load(builder, e, place) for place in places], builder.block
            with part:
                skips = [const(r * e.lanes) for r in range(stride)]
                masks = [
                    lane_range(builder, e, builder.sub(low, skip), builder.sub(high, skip)) for skip in skips
                ]
                masked = [
                    masked_load(builder, e, place, mask) for place, mask in zip(places, masks, strict=True)
                ]
                from_part = builder.block
        vectors = []
        for value, other in zip(plain, masked, strict=True):
            vectors.append(builder.phi(e.vector))
            vectors[-1].add_incoming(value, from_whole)
            vectors[-1].add_incoming(other, from_part)
        at = to
        for r, value in enumerate(phases(builder, vectors)):
            bit = builder.and_(builder.lshr(wanted, const(r)), const(1))
            with builder.if_then(builder.icmp_unsigned("!=", bit, const(0)), likely=True):
                store(builder, e, value, builder.inttoptr(at, element))
            at = builder.add(at, builder.mul(bit, step))
        return context.get_dummy_value()

    return types.void(T, S, *[types.int64] * 6), codegen


@intrinsic
def load_transposed(
    typing: Any, T: Any, to: Any, x: Any, step: Any, rows: Any, low: Any, high: Any
) -> Any:  # fmt: skip
    """A square block: vector j of `to` becomes ``x[i * step + j]`` over i; zero unless i < rows, low <= j < high."""
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, x: Any, step: Any, rows: Any, low: Any, high: Any) -> None:
        places = [b.gep(x, [b.mul(const(i), step)]) for i in range(e.lanes)]

        def turned(vectors: list[Any]) -> None:
            for j, vector in enumerate(transpose(b, vectors)):
                store(b, e, vector, b.gep(to, [const(j * e.lanes)]))

        # Masks take three times as long as all the rest.
        every = [b.icmp_signed(">=", bound, const(e.lanes)) for bound in (rows, high)]
        every.append(b.icmp_signed("<=", low, const(0)))
        with b.if_else(b.and_(b.and_(*every[:2]), every[2]), likely=True) as (whole, part):
            with whole:
                turned([load(b, e, place) for place in places])
            with part:
                stops = [b.select(b.icmp_signed("<", const(i), rows), high, low) for i in range(e.lanes)]
                masks = [lane_range(b, e, low, stop) for stop in stops]
                turned([masked_load(b, e, place, mask) for place, mask in zip(places, masks, strict=True)])

    name = f"load_transposed_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 6), out_of_line(name, "ppiiii", 1, e, body)


@intrinsic
def turn_block(typing: Any, T: Any, to: Any, to_step: Any, x: Any, step: Any) -> Any:
    """A square block: ``to[j * to_step + i]`` becomes ``x[i * step + j]``."""
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, to_step: Any, x: Any, step: Any) -> None:
        vectors = [load(b, e, b.gep(x, [b.mul(const(i), step)])) for i in range(e.lanes)]
        for j, vector in enumerate(transpose(b, vectors)):
            store(b, e, vector, b.gep(to, [b.mul(const(j), to_step)]))

    name = f"turn_block_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 4), out_of_line(name, "pipi", 1, e, body)


@intrinsic
def store_transposed(
    typing: Any, T: Any, y: Any, step: Any, d: Any, rows: Any, count: Any, past: Any
) -> Any:  # fmt: skip
    """A square block: ``y[i * step + j]`` becomes lane i of vector j of `d`, for i < rows and j < count."""
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, y: Any, step: Any, d: Any, rows: Any, count: Any, past: Any) -> None:
        vectors = transpose(b, [load(b, e, b.gep(d, [const(j * e.lanes)])) for j in range(e.lanes)])
        places = [b.gep(y, [b.mul(const(i), step)]) for i in range(e.lanes)]
        every = b.and_(*(b.icmp_signed(">=", bound, const(e.lanes)) for bound in (rows, count)))
        with b.if_else(every, likely=True) as (whole, part):
            with whole:
                store_all(b, e, list(zip(vectors, places, strict=True)), past, y, step)
            with part:
                for i, (vector, place) in enumerate(zip(vectors, places, strict=True)):
                    stop = b.select(b.icmp_signed("<", const(i), rows), count, const(0))
                    masked_store(b, e, vector, place, first_lanes(b, e, stop))

    name = f"store_transposed_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 6), out_of_line(name, "pipiii", 1, e, body)


@intrinsic
def pick(typing: Any, T: Any, to: Any, x: Any, offsets: Any, count: Any) -> Any:
    """``to[i] = x[offsets[i]]`` for i < count."""
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, x: Any, offsets: Any, count: Any) -> None:
        offsets = b.inttoptr(offsets, I32.as_pointer())

        def copy(i: Any) -> None:
            at = b.sext(b.load(b.gep(offsets, [i])), I64)
            b.store(b.load(b.gep(x, [at])), b.gep(to, [i]))

        whole = b.and_(count, const(-8))
        with b.if_then(b.icmp_signed(">", whole, const(0))), loop(b, const(0), whole, const(8)) as i:
            for n in range(8):
                copy(b.add(i, const(n)))
        with b.if_then(b.icmp_signed("<", whole, count)), loop(b, whole, count) as i:
            copy(i)

    name = f"pick_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 4), out_of_line(name, "ppii", 1, e, body)


@intrinsic
def pointer(typing: Any, address: Any, T: Any) -> Any:
    """The address as a pointer to elements of type `T`, for ``numba.carray``."""
    result = types.CPointer(T.instance_type)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return result(types.int64, T), codegen


@intrinsic
def element(typing: Any, address: Any, T: Any) -> Any:
    """The element at an address. An array's index would not do: Numba counts negative ones from the end."""
    e = ELEMENTS[T.instance_type]

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(builder.inttoptr(values[0], e.llvm.as_pointer()))

    return T.instance_type(types.int64, T), codegen


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """:func:`prefetch` of the line at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        prefetch(builder, builder.inttoptr(values[0], I64.as_pointer()), const(0))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def fetch_later(typing: Any, address: Any) -> Any:
    """The same, as far as L2."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        prefetch(builder, builder.inttoptr(values[0], I64.as_pointer()), const(0), level=2)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# Ranges of tasks (the next one, and where to stop) lie a line apart, in words; before the first stands how many there are.
LINE = 8
NONE_LEFT = 1 << 62


def _from_ranges(module: ir.Module) -> ir.Function:
    """Take a task of the worker's own range, or of the others' when none is left there."""
    name = "next_of_ranges"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(I64, [I64.as_pointer(), I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    ranges, worker = function.args
    entry, look, found, on, none = (
        function.append_basic_block(label) for label in ("entry", "look", "found", "on", "none")
    )
    b = ir.IRBuilder(entry)
    workers = b.load(ranges)
    b.branch(look)
    b = ir.IRBuilder(look)
    k = b.phi(I64)
    which = b.add(b.urem(b.add(worker, k), workers), const(1))
    own = b.gep(ranges, [b.mul(which, const(LINE))])
    task = b.atomic_rmw("add", own, const(1), "monotonic")
    b.cbranch(b.icmp_signed("<", task, b.load(b.gep(own, [const(1)]))), found, on)
    ir.IRBuilder(found).ret(task)
    b = ir.IRBuilder(on)
    following = b.add(k, const(1))
    k.add_incoming(const(0), entry)
    k.add_incoming(following, on)
    b.cbranch(b.icmp_signed("<", following, workers), look, none)
    ir.IRBuilder(none).ret(const(NONE_LEFT))
    return function


@intrinsic
def next_task(typing: Any, arguments: Any, worker: Any) -> Any:
    """The next task, which no other worker takes, or one beyond the last.

    The first of the arguments is its number where there is one worker, or else the address of ranges, negated: each begins
    with its own, and finds what it wrote before in its own cache.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arguments, worker = values
        first = builder.inttoptr(arguments, I64.as_pointer())
        ranges = builder.load(first)
        with builder.if_else(builder.icmp_signed("<", ranges, const(0))) as (several, alone):
            with several:
                at = builder.inttoptr(builder.neg(ranges), I64.as_pointer())
                taken, by_several = builder.call(_from_ranges(builder.module), [at, worker]), builder.block
            with alone:
                counted, by_one = builder.atomic_rmw("add", first, const(1), "monotonic"), builder.block
        task = builder.phi(I64)
        task.add_incoming(taken, by_several)
        task.add_incoming(counted, by_one)
        return task

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def call_kernel(typing: Any, kernel: Any, worker: Any, arguments: Any) -> Any:
    """Call the compiled kernel at address `kernel` with a worker's number and its arguments' address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kernel, worker, arguments = values
        function = ir.FunctionType(ir.VoidType(), [I64, I64])
        builder.call(builder.inttoptr(kernel, function.as_pointer()), [worker, arguments])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
