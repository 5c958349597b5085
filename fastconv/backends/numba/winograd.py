"""Winograd convolution, planned: which form, how many tiles at a time, and what is kept of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, implicit_gemm, jit, slabs, threads
from fastconv.backends.numba.geometry import lift
from fastconv.backends.numba.kernels import winograd as kernels
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import VECTORS, scalars
from fastconv.backends.numba.operands import (
    ALIGNMENT,
    Array,
    address,
    begun,
    cast_images,
    contiguous,
    scratch,
    set_fields,
)
from fastconv.spec import DTYPES, ConvSpec

TILES = [jit.Kernel(kernels.tiles_in(f), jit.REAL) for f in range(len(kernels.FORMS))]
PRODUCTS = [jit.Kernel(kernels.products(f), jit.REAL) for f in range(len(kernels.FORMS))]
WEIGHTS = [jit.Kernel(kernels.weights(f), jit.REAL) for f in range(len(kernels.FORMS))]

# The largest max|error| / max|y| of float32, over channel counts from 16 to 1024 and data of every kind
# (tests/test_numba.py), with room; n = 6 loses more than n = 4 because its points are further apart. Sums over tiles, which weight
# gradients are, keep it too, if no sum has more than a few hundred.
ERRORS = {6: 5e-6, 4: 1e-6}

# Transformed tiles that are made, used and overwritten: a share of the last level of the cache.
TILE_BYTES = 4 << 20

# Products of one block, which are summed and transformed back: half a core's L2.
PRODUCT_BYTES = 448 << 10

# Cycles to transform one vector of channels of a tile, for each place in it; measured with the transposes. With 16
# registers it is more, but so is a tile's time: 5 chooses what is faster for 148 of 150 layers and ways on a Zen 3,
# twice as much for 139.
INPUT_CYCLES, OUTPUT_CYCLES, WEIGHT_CYCLES = 5.0, 5.0, 5.0

# One core reading what no cache holds.
MEMORY_BYTES = 1.5e10
CACHE_BYTES = 24 << 20

# Enough tasks that threads end together.
TASKS = 12

# A second thread finds half of the transformed tiles in the first one's cache: it is woken for twice as much work. 48 channels of
# 14 x 14 by 5 x 5 took 26 us on one thread, 25 to 54 on two.
SHARED = 0.5


class Layout(NamedTuple):
    """How a form cuts a problem."""

    form: int
    tiles_h: int
    tiles_w: int
    c_round: int
    block: int  # output channels of a task
    blocks: int
    rows: int  # tile rows that are transformed at a time
    part: int
    itemsize: int

    @property
    def places(self) -> int:
        """Products of a tile."""
        return kernels.FORMS[self.form].products

    @property
    def tiles(self) -> int:
        """Tiles that are transformed at a time."""
        return self.rows * self.tiles_w

    # Places lie apart by an odd number of cache lines: by a multiple of 4096 bytes they would share a few.
    @property
    def v_step(self) -> int:
        """Elements from one place of the transformed tiles to the next."""
        return self.tiles * self.c_round + 64 // self.itemsize

    @property
    def u_step(self) -> int:
        """Elements from one place of the transformed weights to the next."""
        return (self.c_round * VECTORS * host().width + 64) // self.itemsize

    @property
    def m_step(self) -> int:
        """Elements from one place of the products to the next."""
        return self.part * self.block + 64 // self.itemsize

    @property
    def u_bytes(self) -> int:
        """Bytes of a block's transformed weights."""
        return self.places * self.u_step * self.itemsize

    def scratch(self, packed: bool) -> int:
        """Bytes of a worker."""
        form, lanes = kernels.FORMS[self.form], host().width // self.itemsize
        columns = self.tiles_w * form.mw + form.rw - 1
        slab = form.n[0] * (columns + lanes) * host().width
        stage = max(form.rh * form.rw, form.mh) * lanes * host().width
        products = 128 + VECTORS * host().width + 64 + stage + self.places * self.m_step * self.itemsize
        return -(-max(slab, products + (0 if packed else self.u_bytes)) // 64) * 64


def ceil(a: int, b: int) -> int:
    """How many b hold a."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The first multiple of b from a on."""
    return -(-a // b) * b


def layout(spec: ConvSpec, f: int) -> Layout:
    """The cut of `spec` by form `f`."""
    form, itemsize = kernels.FORMS[f], DTYPES[spec.dtype].itemsize
    lanes, NS = cost.lanes(spec.dtype), scalars(host())
    oh, ow = lift(spec.out_size, 1)[1:]
    tiles_h, tiles_w = -(-oh // form.mh), -(-ow // form.mw)
    c_round = -(-spec.in_channels // lanes) * lanes
    vectors = -(-spec.out_channels // lanes)
    blocks = -(-vectors // VECTORS)
    block = -(-vectors // blocks) * lanes
    all_rows = max(spec.batch, 1) * tiles_h
    row_bytes = form.products * tiles_w * c_round * itemsize
    rounds = -(-all_rows // max(TILE_BYTES // row_bytes, 1))
    rows = -(-all_rows // rounds)
    most = max(PRODUCT_BYTES // (form.products * block * itemsize) // NS, 1) * NS
    tiles = rows * tiles_w
    part = round_up(ceil(tiles, ceil(tiles, most)), NS)
    return Layout(f, tiles_h, tiles_w, c_round, block, -(-vectors // (block // lanes)), rows, part, itemsize)


def seconds(spec: ConvSpec, cut: Layout, packed: bool) -> float:
    """The estimate: products at the micro-kernel's rate, transforms by their cycles, and traffic."""
    lanes = cost.lanes(spec.dtype)
    tiles = spec.batch * cut.tiles_h * cut.tiles_w
    c_vectors, o_vectors = cut.c_round // lanes, -(-spec.out_channels // lanes)
    per_block = cut.block // lanes
    full, rest = divmod(o_vectors, per_block)
    work = cut.places * sum(
        count * cost.tiles(spec.dtype, vectors, tiles, cut.c_round)
        for count, vectors in ((full, per_block), (1, rest))
        if vectors and count
    )
    cycles = tiles * cut.places * (c_vectors * INPUT_CYCLES + o_vectors * OUTPUT_CYCLES)
    rounds = -(-spec.batch * cut.tiles_h // cut.rows)
    if not packed:
        cycles += rounds * cut.places * cut.c_round * o_vectors * WEIGHT_CYCLES
    held = cut.u_bytes * cut.blocks
    rate = cost.BYTES if held < CACHE_BYTES or not packed else MEMORY_BYTES
    read = rounds * held if packed else rounds * 4 * math.prod(spec.weight_shape)
    return work + cycles * cost.CYCLE + cost.EXPOSED * read / rate + rounds * 2 * cost.TASK_SECONDS * TASKS


def check(spec: ConvSpec) -> list[int]:
    """The forms that fit, or a refusal."""
    if DTYPES[spec.dtype].kind != "f":
        raise Unsupported(f"its matrices hold fractions, {spec.dtype} does not")
    if spec.groups != 1:
        raise Unsupported(f"it sums over all channels, got groups {spec.groups}")
    if set(spec.stride) != {1} or set(spec.dilation) != {1}:
        raise Unsupported("needs stride 1 and dilation 1")
    if spec.padding_mode != "zeros":
        raise Unsupported(f"pads with zeros only, got {spec.padding_mode}")
    kernel = (1, *spec.kernel_size)[-2:]
    forms = [f for f, form in enumerate(kernels.FORMS) if (form.rh, form.rw) == kernel and spec.rank <= 2]
    if not forms:
        raise Unsupported("needs a kernel of 3 or 5 in 1-D, or 3x3 or 5x5 in 2-D")
    return forms


FIELD = {name: at for at, name in enumerate(kernels.ARGUMENTS.names or ())}
STRIDES = slice(FIELD["x_n"], FIELD["x_w"] + 1)


def error(form: kernels.Form, dtype: str) -> float:
    """The bound on a form's error, of the largest result."""
    return ERRORS[max(form.n)] * float(np.finfo(dtype).eps / np.finfo("float32").eps)


def readable(x: Array) -> Array:
    """An array whose tiles the kernels read: in C order, or with channels last."""
    return x if slabs.channels_last(x) else np.ascontiguousarray(x)


def set_strides(a: Array, x: Array) -> None:
    """Let tiles be read from a `readable` array."""
    if slabs.channels_last(x):
        n, _, *rest = (step // x.itemsize for step in x.strides)
        a[STRIDES] = n, 1, *lift(tuple(rest), 0)[1:]


# What turns weights: the gradient of an input is a convolution with them.
Turn = Callable[[Array], Array]


def plan_form(spec: ConvSpec, cut: Layout, packed: bool, limit: int | None, turn: Turn | None = None) -> Run:
    """A form's run, of weights as they are given or transformed; `turn` turns them for what needs no transform.

    Weights that are to be turned are read so: turned ahead, 512 x 512 of them would come back from memory.
    """
    form = kernels.FORMS[cut.form]
    NS = scalars(host())
    size, out = lift(spec.in_size, 1), lift(spec.out_size, 1)
    before = lift(tuple(before for before, _ in spec.padding), 0)
    lanes = cost.lanes(spec.dtype)
    K = spec.in_channels * form.rh * form.rw
    c_tasks = cut.c_round // lanes
    all_rows = spec.batch * cut.tiles_h
    rows_step = max(min(cut.rows, -(-cut.rows * c_tasks // 64)), 1)
    tiles = cut.tiles
    t_tasks = max(min(-(-TASKS // cut.blocks), tiles // (2 * NS)), 1)
    t_step = round_up(ceil(tiles, t_tasks), NS)
    t_tasks = -(-tiles // t_step)
    taps = form.rh * form.rw
    places = np.arange(lanes, dtype=np.int32) * taps + np.arange(taps, dtype=np.int32)[::-1, None]
    template = np.zeros(1, kernels.ARGUMENTS)
    nbytes = cut.scratch(packed)
    shared = cut.places * cut.v_step * cut.itemsize + ALIGNMENT
    values = {
        "scratch_size": nbytes,
        "x_n": spec.in_channels * math.prod(size), "x_c": math.prod(size), "x_h": size[2], "x_w": 1,
        "y_n": spec.out_channels * math.prod(out), "y_c": math.prod(out),
        "c": spec.in_channels, "o": spec.out_channels, "K": K, "c_round": cut.c_round,
        "size_h": size[1], "size_w": size[2], "before_h": before[1], "before_w": before[2], "oh": out[1], "ow": out[2],
        "tiles_w": cut.tiles_w, "tiles": cut.tiles_h * cut.tiles_w,
        "v_step": cut.v_step, "u_step": cut.u_step, "m_step": cut.m_step, "pitch": cut.c_round, "room": tiles,
        "rows_step": rows_step, "c_tasks": c_tasks, "t_step": t_step, "t_tasks": t_tasks, "part": cut.part,
        "block": cut.block, "past": cost.is_past(math.prod(spec.output_shape), out[2], spec.out_dtype), "packed": packed, "turned": address(places) if turn else 0,
    }  # fmt: skip
    set_fields(template, **values)
    fields = template.view(np.int64)
    estimate = seconds(spec, cut, packed)
    if limit is not None and (need := nbytes + shared) > limit:
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    exact = implicit_gemm.run_gemm(spec, limit, packed=False)
    rounds = -(-all_rows // cut.rows)
    row_seconds = cut.tiles_w * cut.places * c_tasks * INPUT_CYCLES * cost.CYCLE
    at_once = max(cut.blocks * t_tasks, c_tasks * -(-cut.rows // rows_step))
    if limit is not None:
        at_once = max(min(at_once, (limit - shared) // nbytes), 1)

    def call(x: Array, w: Any, bias: Array | None, y: Array) -> None:
        if turn and not packed:
            w = np.ascontiguousarray(w)
        given = w.given if packed else w
        if not spec.batch:
            return
        x, bias = readable(x), contiguous(bias)
        workers = threads.workers(at_once)
        _held, at = scratch(workers * nbytes + shared)
        at_w, at_work = address(w.transformed if packed else w), at + -(-shared // 64) * 64 - 64
        a = begun(fields, address(x), at_w, address(bias), address(y), at_work, at)
        set_strides(a, x)
        for row in range(0, all_rows, cut.rows):
            rows = min(cut.rows, all_rows - row)
            a[FIELD["first"]], a[FIELD["count"]] = row * cut.tiles_w, rows * cut.tiles_w
            threads.launch(
                TILES[cut.form].address(spec.dtype),
                a,
                -(-rows // rows_step) * c_tasks,
                workers,
                rows * row_seconds,
            )
            threads.launch(
                PRODUCTS[cut.form].address(spec.dtype),
                a,
                cut.blocks * t_tasks,
                workers,
                SHARED * estimate / rounds,
            )
        if a[FIELD["spoiled"]]:
            exact.call(x, turn(given) if turn else given, bias, y)

    def pack(weight: Array) -> Transformed:
        weight = np.ascontiguousarray(weight) if turn else weight
        held, at = scratch(cut.blocks * cut.u_bytes)
        workers = threads.workers(cut.blocks)
        _work, at_work = scratch(workers * nbytes)
        a = begun(fields, 0, address(weight), 0, 0, at_work, at)
        threads.launch(WEIGHTS[cut.form].address(spec.dtype), a, cut.blocks, workers, 0)
        return Transformed(weight, held[at - address(held) :])

    call.tables = places  # type: ignore[attr-defined]
    return Run(
        call=call,
        seconds=estimate + cost.CALL_SECONDS,
        workspace=nbytes,
        at_once=at_once,
        shared=shared,
        note=f"{form}, {tiles} tiles at a time",
        error=error(form, spec.dtype),
        pack=pack if packed else None,
        packing=("winograd", cut.form, cut.block, cut.u_step, turn is not None) if packed else None,
    )


class Transformed(NamedTuple):
    """Weights as they were given, for what must be computed again without a transform, and transformed."""

    given: Array
    transformed: Array


def best(spec: ConvSpec, packed: bool, limit: int | None, turn: Turn | None = None) -> Run:
    """The run of the cheapest form."""
    forms = check(spec)
    cuts = [layout(spec, f) for f in forms]
    return plan_form(spec, min(cuts, key=lambda cut: seconds(spec, cut, packed)), packed, limit, turn)


@cast_images
def winograd(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Minimal filtering of 3 or 5 taps at stride 1."""
    return replace(best(spec, False, workspace_limit), prepared=best(spec, True, workspace_limit))


def turned(spec: ConvSpec, turn: Turn) -> Run:
    """The same of weights (in_channels, out_channels, taps) that are to be turned."""
    return replace(best(spec, False, None, turn), prepared=best(spec, True, None, turn))
