"""Winograd's minimal filtering: products of transformed tiles instead of sums over taps.

With ``n = m + r - 1`` a tile of m outputs of an r-tap correlation takes n products instead of m * r (Winograd
1980; Lavin and Gray 2016 for the nested two-dimensional form)::

    y = A^T [ (G w G^T) * (B^T d B) ] A          summed over channels between the transforms

For each of the n x n places in a tile the sum over channels is a matrix product over tiles, done by the same
micro-kernel as everything else: vectors lie along the output channels, scalars along the tiles. So vectors are
full however small the image is, and transforms work on vectors of channels; to and from N, C, H, W blocks of
lanes x lanes elements are transposed in registers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic, register_jitable

from .simd import (
    ELEMENTS,
    Element,
    const,
    copy_phases,
    fetch,
    host,
    load,
    load_transposed,
    multiply_add,
    next_task,
    out_of_line,
    pick,
    pointer,
    splat,
    store,
    store_transposed,
)
from .tile import SLOT, VECTORS, scalars, tile_in_a_row

Matrix = tuple[tuple[Fraction, ...], ...]

# Points whose powers stay near 1 keep the rounding error small: with 0, 1, -1, 2, -2 it is four times as large
# (C = 256, float32: 1.1e-5 of max|y| against 2.9e-6).
POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))


class Form(NamedTuple):
    """One row of the table: m outputs of r taps, along the height and along the width."""

    mh: int
    rh: int
    mw: int
    rw: int

    @property
    def n(self) -> tuple[int, int]:
        """Sides of an input tile."""
        return self.mh + self.rh - 1, self.mw + self.rw - 1

    @property
    def products(self) -> int:
        """Places of a tile."""
        return self.n[0] * self.n[1]

    def __str__(self) -> str:
        if self.rh == 1:
            return f"F({self.mw},{self.rw})"
        return f"F({self.mh}x{self.mw},{self.rh}x{self.rw})"


FORMS = (
    Form(4, 3, 4, 3),
    Form(2, 3, 2, 3),
    Form(2, 5, 2, 5),
    Form(1, 1, 4, 3),
    Form(1, 1, 2, 3),
    Form(1, 1, 2, 5),
)


def _product(a: list[Fraction], b: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of two polynomials."""
    result = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] += x * y
    return result


def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (m, n), G (n, r) and B^T (n, n), exactly, by Toom and Cook's interpolation.

    The points are 0, 1, -1 for n = 4 and ``POINTS`` for n = 6, and infinity.
    """
    n = m + r - 1
    if n == 1:
        one = ((Fraction(1),),)
        return one, one, one
    points = POINTS if n == 6 else (Fraction(0), Fraction(1), Fraction(-1))
    assert len(points) == n - 1
    at = [(*(p**i for p in points), Fraction(i == m - 1)) for i in range(m)]
    g, bt = [], []
    everything = [Fraction(1)]
    for p in points:
        others, scale = [Fraction(1)], Fraction(1)
        for q in points:
            if q != p:
                others, scale = _product(others, [-q, Fraction(1)]), scale * (p - q)
        g.append(tuple(p**j / scale for j in range(r)))
        bt.append((*others, Fraction(0)))
        everything = _product(everything, [-p, Fraction(1)])
    g.append(tuple(Fraction(j == r - 1) for j in range(r)))
    bt.append(tuple(everything))
    return tuple(at), tuple(g), tuple(bt)


def transposed(matrix: Matrix) -> Matrix:
    """The transpose: a gradient's transforms are those of the convolution turned round."""
    return tuple(zip(*matrix, strict=True))


# ---------------------------------------------------------------------------- transforms, as LLVM IR


def _combine(b: ir.IRBuilder, e: Element, row: list[tuple[Fraction, Any]]) -> Any:
    """``sum of coefficient * vector``, or None for an empty sum."""
    total = None
    # Coefficients of 1 first: they begin the sum without a multiplication.
    for coefficient, vector in sorted(row, key=lambda term: term[0] != 1):
        if total is None and coefficient == 1:
            total = vector
        elif total is not None and coefficient in (1, -1):
            total = b.fadd(total, vector) if coefficient == 1 else b.fsub(total, vector)
        else:
            factor = splat(b, e.vector, ir.Constant(e.llvm, float(coefficient)))
            total = b.fmul(factor, vector) if total is None else multiply_add(b, e, factor, vector, total)
    return total


def apply(b: ir.IRBuilder, e: Element, matrix: Matrix, vectors: list[Any]) -> list[Any]:
    """``matrix @ vectors``. Rows of opposite points share their even and their odd part."""
    results: list[Any] = [None] * len(matrix)
    for i, row in enumerate(matrix):
        if results[i] is not None:
            continue
        # The row of -p is the row of p with every second sign turned, or that negated.
        for sign in (1, -1):
            turned = tuple(sign * (-c if j % 2 else c) for j, c in enumerate(row))
            twin = next((k for k in range(i + 1, len(matrix)) if matrix[k] == turned and turned != row), None)
            if twin is not None:
                break
        terms = [[(c, vectors[j]) for j, c in enumerate(row) if c and j % 2 == odd] for odd in (0, 1)]
        even, odd = (_combine(b, e, part) for part in terms)
        if twin is None or even is None or odd is None:
            results[i] = _combine(b, e, [(c, vectors[j]) for j, c in enumerate(row) if c])
        else:
            results[i] = b.fadd(even, odd)
            results[twin] = b.fsub(even, odd) if sign == 1 else b.fsub(odd, even)
    return results


def nested(
    b: ir.IRBuilder, e: Element, rows: Matrix, columns: Matrix, grid: list[list[Any]]
) -> list[list[Any]]:
    """``rows @ grid @ columns^T`` of a grid of vectors."""
    down = [apply(b, e, rows, [line[j] for line in grid]) for j in range(len(grid[0]))]
    return [apply(b, e, columns, [line[i] for line in down]) for i in range(len(rows))]


def _literals(*values: Any) -> bool:
    return all(isinstance(value, types.IntegerLiteral) for value in values)


def _at(b: ir.IRBuilder, e: Element, base: Any, *steps: tuple[int, Any]) -> Any:
    """The address of ``base[sum of count * step]``."""
    offset = const(0)
    for count, step in steps:
        offset = b.add(offset, b.mul(const(count), step))
    return b.gep(base, [offset])


Grid = list[list[Any]]


def _transform(
    b: ir.IRBuilder,
    e: Element,
    form: Form,
    rows: Matrix,
    columns: Matrix,
    to: Any,
    step: Any,
    d: Any,
    row: Any,
) -> None:
    """``rows @ d @ columns^T``: vectors in lines `row` apart become a tile's places, `step` apart."""
    lanes = const(e.lanes)
    grid = [
        [load(b, e, _at(b, e, d, (i, row), (j, lanes))) for j in range(len(columns[0]))]
        for i in range(len(rows[0]))
    ]
    for i, line in enumerate(nested(b, e, rows, columns, grid)):
        for j, value in enumerate(line):
            store(b, e, value, _at(b, e, to, (i * form.n[1] + j, step)))


def _places(b: ir.IRBuilder, e: Element, form: Form, m: Any, step: Any) -> Grid:
    """The vectors of a tile's places."""
    nh, nw = form.n
    return [[load(b, e, _at(b, e, m, (i * nw + j, step))) for j in range(nw)] for i in range(nh)]


def _store_checked(b: ir.IRBuilder, e: Element, results: Grid, to: Any, row: Any, check: Any) -> None:
    """Store lines of vectors `row` elements apart. The vector at `check` becomes NaN where a result is not finite.

    A transform spreads one NaN or Inf over its tile and may overflow where the plain sum does not, so such a result must
    be computed again.
    """
    checked, zero = load(b, e, check), ir.Constant(e.vector, None)
    for i, line in enumerate(results):
        for j, value in enumerate(line):
            checked = multiply_add(b, e, value, zero, checked)
            store(b, e, value, _at(b, e, to, (i, row), (j, const(e.lanes))))
    store(b, e, checked, check)


def _each(form: Form, which: int, turned: bool = False) -> tuple[Matrix, Matrix]:
    """A^T, G or B^T along the height and along the width, or their transposes."""
    rows, columns = matrices(form.mh, form.rh)[which], matrices(form.mw, form.rw)[which]
    return (transposed(rows), transposed(columns)) if turned else (rows, columns)


@intrinsic(prefer_literal=True)
def transform_input(typing: Any, F: Any, T: Any, to: Any, step: Any, d: Any, row: Any) -> Any:
    """``B^T d B`` of one tile and a vector of channels: places `step` elements apart, rows of `d` `row`."""
    if not _literals(F):
        return None
    form, e = FORMS[F.literal_value], ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, *arguments: Any) -> None:
        _transform(b, e, form, *_each(form, 2), *arguments)

    name = f"winograd_input_{e.short}_{F.literal_value}_{host().name}"
    return types.void(F, T, *[types.int64] * 4), out_of_line(name, "pipi", 2, e, body)


@intrinsic(prefer_literal=True)
def transform_gradient(typing: Any, F: Any, T: Any, to: Any, step: Any, d: Any, row: Any) -> Any:
    """``A d A^T`` of the output's gradient, likewise."""
    if not _literals(F):
        return None
    form, e = FORMS[F.literal_value], ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, *arguments: Any) -> None:
        _transform(b, e, form, *_each(form, 0, turned=True), *arguments)

    name = f"winograd_gradient_{e.short}_{F.literal_value}_{host().name}"
    return types.void(F, T, *[types.int64] * 4), out_of_line(name, "pipi", 2, e, body)


@intrinsic(prefer_literal=True)
def transform_weights(typing: Any, F: Any, T: Any, to: Any, step: Any, w: Any) -> Any:
    """``G w G^T`` of one input channel and a vector of output channels; the taps of `w` are vectors in a row."""
    if not _literals(F):
        return None
    form, e = FORMS[F.literal_value], ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, step: Any, w: Any) -> None:
        _transform(b, e, form, *_each(form, 1), to, step, w, const(form.rw * e.lanes))

    name = f"winograd_weights_{e.short}_{F.literal_value}_{host().name}"
    return types.void(F, T, *[types.int64] * 3), out_of_line(name, "pip", 2, e, body)


@intrinsic(prefer_literal=True)
def transform_output(
    typing: Any, F: Any, T: Any, to: Any, row: Any, m: Any, step: Any, bias: Any, check: Any
) -> Any:  # fmt: skip
    """``A^T m A + bias`` of one tile and a vector of channels, into rows of vectors `row` elements apart, checked."""
    if not _literals(F):
        return None
    form, e = FORMS[F.literal_value], ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, row: Any, m: Any, step: Any, bias: Any, check: Any) -> None:
        offset = load(b, e, bias)
        made = nested(b, e, *_each(form, 0), _places(b, e, form, m, step))
        _store_checked(b, e, [[b.fadd(value, offset) for value in line] for line in made], to, row, check)

    name = f"winograd_output_{e.short}_{F.literal_value}_{host().name}"
    return types.void(F, T, *[types.int64] * 6), out_of_line(name, "pipipp", 2, e, body)


@intrinsic(prefer_literal=True)
def transform_sums(typing: Any, F: Any, T: Any, to: Any, s: Any, step: Any, check: Any) -> Any:
    """``G^T s G`` of one output channel and a vector of input channels: a vector for each tap, in a row, checked."""
    if not _literals(F):
        return None
    form, e = FORMS[F.literal_value], ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, s: Any, step: Any, check: Any) -> None:
        made = nested(b, e, *_each(form, 1, turned=True), _places(b, e, form, s, step))
        _store_checked(b, e, made, to, const(form.rw * e.lanes), check)

    name = f"winograd_sums_{e.short}_{F.literal_value}_{host().name}"
    return types.void(F, T, *[types.int64] * 4), out_of_line(name, "ppip", 2, e, body)


# ---------------------------------------------------------------------------- tasks

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x w bias y scratch "  # addresses; no bias is 0
    "v "  # address of the transformed tiles
    "scratch_size "  # bytes of a worker's scratch
    "x_n x_c x_h x_w y_n y_c "  # strides: of the input, 1 along rows or along channels, and of the output
    "c o K c_round "  # input and output channels, elements of a kernel; channels in whole vectors
    "size_h size_w before_h before_w oh ow "  # sizes and padding
    "tiles_w tiles first count "  # tiles along a row, in an image; the first and how many, of all images
    "v_step u_step m_step "  # elements from one place of a tile to the next
    "pitch room "  # of transformed tiles: channels that lie together, and for how many tiles there is room
    "rows_step c_tasks "  # input: tile rows of a task, tasks along channels
    "t_step t_tasks part "  # products: tiles of a task, tasks along them, tiles worked on at a time
    "block "  # output channels of a task
    "packed "  # whether the weights are transformed already
    "turned "  # of weights that are to be turned: where a vector of each tap lies among those of an input channel, else 0
    "past "  # whether results go past the caches, which they would fill
    "spoiled"  # set where a result is not finite
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


@register_jitable
def fill_whole_slots(slots, lanes):  # type: ignore[no-untyped-def]
    """Vectors of products that lie side by side, all of them written whole."""
    for v in range(VECTORS):
        slots[v, 1], slots[v, 2] = v * lanes, (1 << lanes) - 1
        slots[v, 3], slots[v, 4] = 0, 0


@register_jitable
def note_spoiled(a, check, lanes):  # type: ignore[no-untyped-def]
    """Say so if a result was not finite."""
    for i in range(lanes):
        if check[i] != 0:
            a.spoiled = 1


def tiles_in(F: int, of_gradient: bool = False) -> Any:
    """A factory of tasks that transform tiles: some rows of them, a vector of channels.

    Those of an input overlap, those of an output's gradient do not.
    """
    form = FORMS[F]
    mh, mw = form.mh, form.mw
    nh, nw = (mh, mw) if of_gradient else form.n
    transform = transform_gradient if of_gradient else transform_input

    def winograd_tiles(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            slab = a.scratch + worker * a.scratch_size
            columns = a.tiles_w * mw + nw - mw
            row_bytes = (columns + lanes) * lanes * size
            tile_rows = a.tiles // a.tiles_w
            first_row = a.first // a.tiles_w
            stop_row = (a.first + a.count + a.tiles_w - 1) // a.tiles_w
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                row, c0 = divmod(task, a.c_tasks)
                c0 *= lanes
                row = first_row + row * a.rows_step
                for r in range(row, min(row + a.rows_step, stop_row)):
                    n, th = divmod(r, tile_rows)
                    at_x = a.x + size * (n * a.x_n + c0 * a.x_c)
                    # Rows that the tile row above has read already are read again: half of them, from L2.
                    for i in range(nh):
                        h = th * mh + i - a.before_h
                        outside = h < 0 or h >= a.size_h
                        to = slab + i * row_bytes
                        if a.x_w != 1:  # channels are neighbours: a vector of them for each pixel
                            for q in range(columns):
                                w = q - a.before_w
                                there = 0 if outside or w < 0 or w >= a.size_w else min(a.c - c0, lanes)
                                pixel = at_x + size * (h * a.x_h + w * a.x_w)
                                copy_phases(T, 1, to + q * lanes * size, 0, 1, pixel, 0, there)
                            continue
                        for q in range(0, columns, lanes):
                            low, high = a.before_w - q, a.before_w + a.size_w - q
                            below = at_x + size * ((h + mh) * a.x_h + q - a.before_w)
                            for _ in range(lanes):
                                fetch(below)
                                below += size * a.x_c
                            load_transposed(
                                T, to + q * lanes * size, at_x + size * (h * a.x_h + q - a.before_w),
                                a.x_c, a.c - c0, low, low if outside else high,
                            )  # fmt: skip
                    to = c0 // a.pitch * a.pitch * a.room + c0 % a.pitch
                    for tw in range(a.tiles_w):
                        t = r * a.tiles_w + tw - a.first
                        if 0 <= t < a.count:
                            transform(
                                F, T, a.v + size * (to + t * a.pitch), a.v_step,
                                slab + tw * mw * lanes * size, row_bytes // size,
                            )  # fmt: skip

        return work

    winograd_tiles.__name__ = f"winograd_{'gradient' if of_gradient else 'tiles'}_{F}"
    return winograd_tiles


@register_jitable
def turn_taps(taps, T, size, lanes, a, stage, o, rows, c0):  # type: ignore[no-untyped-def]
    """Vectors of `rows` output channels for each tap of some input channels, from weights (c, o, taps in reverse)."""
    for c in range(lanes):
        to, x = stage + size * c * taps * lanes, a.w + size * ((c0 + c) * a.o + o) * taps
        if rows >= lanes and c0 + c < a.c:
            pick(T, to, x, a.turned, taps * lanes)
            continue
        vectors = carray(pointer(to, T), taps * lanes)
        for i in range(taps * lanes):
            vectors[i] = 0
        for k in range(taps if rows > 0 and c0 + c < a.c else 0):
            pick(T, to + size * k * lanes, x, a.turned + 4 * k * lanes, rows)


@register_jitable
def transform_block(F, taps, T, size, lanes, a, to, stage, o0):  # type: ignore[no-untyped-def]
    """Weights of a block of output channels: (places, c_round, ``VECTORS`` vectors), zero beyond the last channel."""
    for v in range(a.block // lanes):
        rows = min(a.o - o0 - v * lanes, lanes)
        for c0 in range(0, a.c_round, lanes):
            stop = min(a.c - c0, lanes) * taps if rows > 0 else 0
            if a.turned:
                turn_taps(taps, T, size, lanes, a, stage, o0 + v * lanes, rows, c0)
            for k in range(0, 0 if a.turned else lanes * taps, lanes):
                load_transposed(
                    T, stage + k * lanes * size, a.w + size * ((o0 + v * lanes) * a.K + c0 * taps + k), a.K,
                    rows, 0, stop - k,
                )  # fmt: skip
            for c in range(lanes):
                transform_weights(
                    F,
                    T,
                    to + size * ((c0 + c) * VECTORS + v) * lanes,
                    a.u_step,
                    stage + c * taps * lanes * size,
                )


def products(F: int) -> Any:
    """A factory of tasks that multiply and transform back: a block of output channels, some tiles."""
    form = FORMS[F]
    nn = form.products
    mh, mw, taps = form.mh, form.mw, form.rh * form.rw

    def winograd_products(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size
        NS = scalars(host())
        most = VECTORS * lanes
        # Tiles side by side that are written as one vector of pixels.
        together = lanes // mw

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            at_slots = a.scratch + worker * a.scratch_size
            slots = carray(pointer(at_slots, types.int64), (VECTORS, SLOT))
            fill_whole_slots(slots, lanes)
            at_bias = at_slots + 128
            at_check = at_bias + most * size
            at_stage = at_check + 64
            at_m = at_stage + max(lanes * taps, mh * lanes) * lanes * size
            at_own = at_m + nn * a.m_step * size
            bias = carray(pointer(at_bias, T), most)
            block = a.block
            check = carray(pointer(at_check, T), lanes)
            given = carray(pointer(a.bias, T), 1 << 40)
            for i in range(lanes):
                check[i] = 0
            made = -1
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    break
                ob, t0 = divmod(task, a.t_tasks)
                o0 = ob * block
                t1 = min((t0 + 1) * a.t_step, a.count)
                t0 *= a.t_step
                vectors = min((a.o - o0 + lanes - 1) // lanes, block // lanes)
                u = a.w + size * ob * nn * a.u_step
                if not a.packed:
                    u = at_own
                    if made != ob:
                        transform_block(F, taps, T, size, lanes, a, u, at_stage, o0)
                        made = ob
                for i in range(block):
                    bias[i] = given[o0 + i] if a.bias and o0 + i < a.o else 0
                for p0 in range(t0, t1, a.part):
                    p1 = min(p0 + a.part, t1)
                    for f in range(nn):
                        for t in range(p0, p1, NS):
                            tile_in_a_row(
                                NS, 1, T, vectors, a.c_round, u + size * f * a.u_step, at_slots,
                                a.v + size * (f * a.v_step + t * a.c_round), a.c_round,
                                at_m + size * (f * a.m_step + (t - p0) * block), block, min(NS, p1 - t), 0, 0, 0,
                            )  # fmt: skip
                    t = p0
                    while t < p1:
                        n, at = divmod(a.first + t, a.tiles)
                        th, tw = divmod(at, a.tiles_w)
                        run = min(together, p1 - t, a.tiles_w - tw)
                        for v in range(vectors):
                            for i in range(run):
                                transform_output(
                                    F, T, at_stage + i * mw * lanes * size, lanes * lanes,
                                    at_m + size * ((t + i - p0) * block + v * lanes), a.m_step,
                                    at_bias + v * lanes * size, at_check,
                                )  # fmt: skip
                            channels = a.o - o0 - v * lanes
                            to = n * a.y_n + (o0 + v * lanes) * a.y_c + tw * mw
                            for i in range(min(mh, a.oh - th * mh)):
                                store_transposed(
                                    T, a.y + size * (to + (th * mh + i) * a.ow), a.y_c,
                                    at_stage + i * lanes * lanes * size, channels, min(run * mw, a.ow - tw * mw), a.past,
                                )  # fmt: skip
                        t += run
            note_spoiled(a, check, lanes)

        return work

    winograd_products.__name__ = f"winograd_products_{F}"
    return winograd_products


def weights(F: int) -> Any:
    """A factory of tasks that transform weights ahead: a block of output channels."""
    form = FORMS[F]
    nn, taps = form.products, form.rh * form.rw

    def winograd_weights(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            stage = a.scratch + worker * a.scratch_size
            while True:
                ob = next_task(arguments, worker)
                if ob >= a.stop:
                    return
                transform_block(
                    F, taps, T, size, lanes, a, a.v + size * ob * nn * a.u_step, stage, ob * a.block
                )

        return work

    winograd_weights.__name__ = f"winograd_weights_{F}"
    return winograd_weights
