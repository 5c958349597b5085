"""Moving numbers to where indices point, and back: gradients of max pools, unpooling and its gradient.

``scatter`` writes each plane once, while it lies in a core's cache: outputs are taken a chunk at a time, and the plane
is cleared as far as the chunk's largest index just before the chunk is put there. Nothing is assumed of the indices, but
those of a pool run along with its windows, and so does what is cleared. Within a plane numbers are added (``add``), or
put one over the other (``put``), in the order of the outputs.

Indices are read once for their largest, which is what must be cleared, and again from the L1 cache. One that points
outside its plane is the largest too, as an unsigned number: the plane is left alone, and the call told (``wrong``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .simd import I64, const, loop, next_task, pointer

ADD, PUT, GET = range(3)
NAMES = ("add", "put", "get")

# Outputs of a chunk: with their indices and what they are scattered over 14 to 28 KB, the L1 cache's.
CHUNK = 512

# Small planes are filled together, up to a chunk of outputs and as many bytes.
TOGETHER_BYTES = 16 << 10

# Outputs that are moved before the loop's end is looked at.
UNROLLED = 4

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x y indices "  # addresses: planes, what is moved to or from them, and where
    "plane outputs planes planes_step "  # elements of a plane, indices of one; planes in all, of a task
    "group "  # planes that are filled together
    "wrong"  # whether an index pointed outside its plane
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)
FIELD = {name: at for at, name in enumerate(FIELDS.split())}
WRONG = FIELD["wrong"]


def _moved(T: Any) -> tuple[ir.Type, bool]:
    """LLVM's type of what is moved, and whether it is a float."""
    if isinstance(T, types.Float):
        return (ir.FloatType() if T.bitwidth == 32 else ir.DoubleType()), True
    return ir.IntType(T.bitwidth), False


@intrinsic
def _largest(typing: Any, indices: Any, count: Any) -> Any:
    """The largest of some int64 numbers, read as unsigned ones."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        name = "largest_index"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(I64, [I64.as_pointer(), I64]), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            _emit_largest(function)
        at, count = values
        return builder.call(function, [builder.inttoptr(at, I64.as_pointer()), count])

    return types.uint64(types.int64, types.int64), codegen


def _emit_largest(function: ir.Function) -> None:
    at, count = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    best = cgutils.alloca_once_value(b, const(0))
    with cgutils.for_range(b, count) as loop:  # which LLVM makes vectors of
        value, so_far = b.load(b.gep(at, [loop.index])), b.load(best)
        b.store(b.select(b.icmp_unsigned(">", value, so_far), value, so_far), best)
    b.ret(b.load(best))


@intrinsic(prefer_literal=True)
def _move(
    typing: Any, OP: Any, T: Any, x: Any, y: Any, indices: Any, count: Any, planes: Any, plane: Any
) -> Any:  # fmt: skip
    """``x[indices[i]] += y[i]``, or ``= y[i]``, or ``y[i] = x[indices[i]]``, for i below `count`, of some planes."""
    if not isinstance(OP, types.IntegerLiteral):
        return None
    op, (element, real) = OP.literal_value, _moved(T.instance_type)
    name = f"scatter_{NAMES[op]}_{T.instance_type.name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.module.globals.get(name)
        if function is None:
            elements = element.as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [elements, elements, I64.as_pointer(), I64, I64, I64])
            function = ir.Function(builder.module, kind, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            _emit_move(function, op, real)
        given = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(values[2:], function.args, strict=True)
        ]
        builder.call(function, given)
        return context.get_dummy_value()

    return types.void(OP, T, *[types.int64] * 6), codegen


def _emit_move(function: ir.Function, op: int, real: bool) -> None:
    x0, y0, indices0, count, planes, plane = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    whole = b.and_(count, const(-UNROLLED))
    with loop(b, const(0), planes) as p:
        skip = b.mul(p, count)
        x, y, indices = b.gep(x0, [b.mul(p, plane)]), b.gep(y0, [skip]), b.gep(indices0, [skip])

        def one(i: Any) -> None:
            place = b.gep(x, [b.load(b.gep(indices, [i]))])
            if op == GET:
                b.store(b.load(place), b.gep(y, [i]))
                return
            value = b.load(b.gep(y, [i]))
            if op == ADD:
                before = b.load(place)
                value = b.fadd(before, value) if real else b.add(before, value)
            b.store(value, place)

        with b.if_then(b.icmp_signed(">", whole, const(0))), loop(b, const(0), whole, const(UNROLLED)) as i:
            for u in range(UNROLLED):
                one(b.add(i, const(u)))
        with b.if_then(b.icmp_signed("<", whole, count)), loop(b, whole, count) as i:
            one(i)
    b.ret_void()


@register_jitable
def _clear(T, x, size, begin, end):  # type: ignore[no-untyped-def]
    """Zeros from `begin` to `end`."""
    some = carray(pointer(x + size * begin, T), end - begin)
    some[:] = 0


@register_jitable
def fill(op, T, size, x, y, indices, plane, outputs):  # type: ignore[no-untyped-def]
    """Fill one plane; 1 if an index points outside it, else 0."""
    line = 64 // size
    cleared = 0
    for begin in range(0, outputs, CHUNK):
        count = min(CHUNK, outputs - begin)
        largest = _largest(indices + 8 * begin, count)
        if largest >= types.uint64(plane):
            return 1
        if types.int64(largest) >= cleared:
            until = min((types.int64(largest) // line + 1) * line, plane)
            _clear(T, x, size, cleared, until)
            cleared = until
        _move(op, T, x, y + size * begin, indices + 8 * begin, count, 1, plane)
    if cleared < plane:
        _clear(T, x, size, cleared, plane)
    return 0


@register_jitable
def _fill_together(op, T, size, x, y, indices, plane, outputs, planes):  # type: ignore[no-untyped-def]
    """Fill some small planes; 1 if an index points outside its own, else 0."""
    if _largest(indices, planes * outputs) >= types.uint64(plane):
        return 1
    _clear(T, x, size, 0, planes * plane)
    _move(op, T, x, y, indices, outputs, planes, plane)
    return 0


def scatter(op: int) -> Any:
    """A factory of tasks that fill some planes."""

    def scatter_(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            wrong = carray(pointer(arguments + 8 * WRONG, types.int64), 1)
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                stop = min((task + 1) * a.planes_step, a.planes)
                for p in range(task * a.planes_step, stop, a.group):
                    x, y = a.x + size * p * a.plane, a.y + size * p * a.outputs
                    indices = a.indices + 8 * p * a.outputs
                    if a.group > 1:
                        planes = min(a.group, stop - p)
                        wrong[0] |= _fill_together(op, T, size, x, y, indices, a.plane, a.outputs, planes)
                    else:
                        wrong[0] |= fill(op, T, size, x, y, indices, a.plane, a.outputs)

        return work

    scatter_.__name__ = f"scatter_{NAMES[op]}"
    return scatter_


def gather(T: Any) -> Any:
    """Tasks of reading what indices point to: some planes."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        wrong = carray(pointer(arguments + 8 * WRONG, types.int64), 1)
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                x, y = a.x + size * p * a.plane, a.y + size * p * a.outputs
                indices = a.indices + 8 * p * a.outputs
                for begin in range(0, a.outputs, CHUNK):
                    count = min(CHUNK, a.outputs - begin)
                    if _largest(indices + 8 * begin, count) >= types.uint64(a.plane):
                        wrong[0] = 1
                        break
                    _move(GET, T, x, y + size * begin, indices + 8 * begin, count, 1, a.plane)

    return work
