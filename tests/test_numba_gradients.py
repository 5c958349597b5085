"""The engine's gradients: inside their operands, bit-equal for any number of threads, right where it is awkward."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import testing
from fastconv.backends import Unsupported, algorithms
from fastconv.plan import plan
from fastconv.spec import ConvSpec, Op, PoolSpec, parse

OPS = (Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD)
MOVING = (Op.UNFOLD, Op.FOLD, Op.POOL_INPUT_GRAD, Op.UNPOOL, Op.UNPOOL_INPUT_GRAD)

# Every edge of vectors, tiles, phases and crops.
EDGES = [
    *(f"n2 c{c}x{h}x{w} k{o}x3x3 s1 p1" for c, h, w, o in ((1, 1, 1, 1), (3, 2, 7, 9), (17, 7, 7, 8), (5, 9, 33, 24))),
    *(f"n1 c{c}x{h}x{w} k{o}x3x3 s2 p1" for c, h, w, o in ((3, 3, 3, 4), (18, 7, 15, 7), (2, 8, 16, 17), (9, 9, 47, 3))),
    *(f"n3 c{c}x1x{w} k{o}x1x1 s1 p0" for c, w, o in ((5, 17, 9), (16, 49, 16), (33, 15, 7))),
    *(f"n2 c3x{h}x{w} k3x3x3 s2 p{p} g3" for h, w, p in ((3, 3, 0), (14, 14, 1), (9, 33, 1), (8, 17, 2), (3, 66, 0), (5, 7, 3))),
    *(f"n2 c3x{h}x{w} k3x3x3 s1 p{p} g3" for h, w, p in ((3, 3, 0), (9, 14, 1), (1, 16, 1), (2, 33, 1), (7, 9, 2))),
    *(f"n2 c{c}x{h}x{w} k{c}x3x3 s{s} p1 g{c}" for c, h, w, s in ((8, 7, 7, 1), (9, 3, 8, 1), (17, 9, 6, 2), (33, 1, 1, 1))),
    "n2 c19x3x3 k17x1x1 s1 p0", "n1 c8x2x2 k16x1x1 s1 p0",
    "n2 c7x9x8 k5x1x1 s2 p0", "n1 c3x23x25 k8x11x11 s4 p2", "n1 c2x7x9 k3x2x2 s3 p0", "n2 c4x8x9 k4x3x3 s2 p1 g4",
    "n2 c4x5x9 k8x3x3 s1 p1 g4", "n3 c3x6x37 k3x3x5 s2 p2 d1x2 g3", "n2 c2x4x5x19 k4x2x3x4 s1x2x1 p1 g2", "n2 c6x6x7 k4x3x3 s2 p2 d3 g2", "n1 c2x6x6 k3x2x2 s1 p4", "n1 c2x5x6 k3x2x2 s2 p3:0",
    "n1 c3x9 k4x5 s2 p2", "n1 c2x40 k3x3 s1 p1", "n1 c3x5x6x7 k4x3x2x3 s2x1x3 p1", "n2 c3x4x4 k2x4x4 s1 p0", "n1 c1x1x3x1 k1x1x2x1 s1x2x2 p0",
    "n2 c5x9x11 k3x5x5 s1 p2", "n1 c9x23 k17x3 s1 p1", "n2 c7x19 k3x5 s1 p0", "n1 c26x5x70 k6x3x3 s1 p0:2x1",
    "n1 c2x4x5 k3x3x3 s2 p1 reflect", "n2 c1x3x3 k1x2x2 s1 p2 replicate", "n1 c2x2 k3x5 s2 p0:19 d5",
]  # fmt: skip


# Windows and planes around every edge of what moves and adds: rows of fewer elements than lanes, of one more, planes that
# are taken together, that are cut into blocks, that are cleared in several pieces.
POOLS = [
    *(
        f"{mode} n2 c3x{size} {window}"
        for size in ("3x3", "5x17", "7x7", "16x9", "13x34", "40x66")
        for window in ("k2x2 s2 p0", "k2x2 s2 p1", "k3x3 s2 p0 ceil", "k3x3 s2 p1", "k3x3 s1 p1", "k2x3 s3x1 p0")
        for mode in ("max", "avg")
    ),
    "avg n1 c2x9x8 o4x3", "avg n1 c2x9x8 o1x1", "avg n1 c70x2x2 o1x1", "avg n2 c2x4x5x6 k2 s1 p0", "avg n1 c2x5x6x7 k3x2x3 s2x1x2 p1 exclude_pad",
    "avg n1 c2x33 k5 s2 p2", "avg n1 c2x33 k3 s4 p0", "avg n1 c1x1x1 k1x1 s1 p0", "avg n1 c3x9x9 k9x9 s1 p0", "avg n1 c1x8x9 k3x2 s1 p1 d2x3 divisor5",
    "max n1 c2x9 k3 s2 p1", "max n1 c1x4x5x6 k2x2x2 s1 p0", "max n1 c3x9x9 k9x9 s1 p0", "max n1 c40x6x5 o3x2", "max n1 c2x9x11 k3x2 s4x3 p1 d2",
    "lp2 n1 c3x9x10 k2x2 s2 p0", "lp3 n1 c2x7x9 k3x3 s2 p0 ceil", "lp1.5 n1 c2x17 k4 s3 p0",
]  # fmt: skip


def moving(dtype: str) -> list[tuple[Any, Op]]:
    """Pools with and without indices, and columns; each with the ops that move or add."""
    found = []
    for problem in POOLS:
        if problem[:2] == "lp" and dtype[0] in "su":
            continue
        texts = [problem, f"{problem} indices"] if problem[:3] == "max" else [problem]
        found += [parse(f"{text} {dtype}") for text in texts]
    found += [parse(f"{text} {dtype}") for text in EDGES]
    return [(spec, op) for spec in found for op in spec.ops if op in MOVING]


def plans(problem: str, op: Op) -> list[Any]:
    made = []
    for algorithm in algorithms("numba", op):
        try:
            made.append(plan(parse(problem), op, "numba", algorithm))
        except Unsupported:
            continue
    assert made, f"no algorithm takes {op} of {problem}"
    return made


def test_rounds_of_images_leave_few_to_be_computed_twice() -> None:
    from fastconv.backends.numba import input_grad

    for batch in range(1, 40):
        spec = parse(f"n{batch} c1x4x4 k1x3x3 s2 p1 f32")
        assert isinstance(spec, ConvSpec)
        for most in (1, 2, 3, 5, 11):
            some = input_grad.images_of(spec, input_grad.PHASE_BYTES // most, None)
            assert 1 <= some <= min(most, batch)
            assert -(-batch // some) * some <= 1.1 * batch + 1, (batch, most, some)
        assert input_grad.images_of(spec, 1 << 40, None) == input_grad.images_of(spec, 1, 10) == 1
    sixteen = parse("n16 c1x4x4 k1x3x3 s2 p1 f32")
    assert isinstance(sixteen, ConvSpec)
    assert input_grad.images_of(sixteen, input_grad.PHASE_BYTES // 5, None) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["ends", "begins"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "s32", "s64"])
@pytest.mark.parametrize("op", OPS, ids=str)
def test_kernels_stay_inside_their_operands(op: Op, dtype: str, at_end: bool) -> None:
    from tests.guard import Guarded

    for problem in EDGES:
        for made in plans(f"{problem} {dtype}", op):
            memory = Guarded(at_end)
            given = testing.operands(made.spec, op, "integers")
            expected = testing.reference(made.spec, op, given)
            result = memory.copy(testing.poisoned(made.spec.shapes(op)[-1]))
            made(*map(memory.copy, given), out=result)
            _, detail = testing.compare(result, expected, testing.tolerance(made, given))
            assert not detail, (made.algorithm, str(made.spec), detail)


@pytest.mark.parametrize("dtype", ["f32", "f64", "s64"])
@pytest.mark.parametrize("window", ["1x1 s1 p0", "3x3 s1 p1", "3x3 s2 p1", "2x3 s1x2 p0:1x1"])
@pytest.mark.parametrize("algorithm", ["implicit_gemm", "direct"])
def test_tasks_turn_weights_at_every_edge_of_a_block(
    algorithm: str, window: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows beside blocks of scalars, terms beside those that fill a line, taps of several phases, groups."""
    from fastconv.backends.numba import FORWARD, input_grad, positions

    monkeypatch.setattr(positions, "panel_from", lambda g, flat: 1)  # of implicit_gemm panels turn weights
    (run_turned,) = (input_grad.RUN_TURNED[made] for made in FORWARD if made.__name__ == algorithm)
    for c, o, groups in ((32, 1, 1), (33, 5, 1), (39, 3, 1), (320, 4, 1), (72, 6, 2), (257, 130, 1)):
        spec = parse(f"n2 c{c}x9x8 k{o}x{window} g{groups} {dtype}")
        assert isinstance(spec, ConvSpec)
        given = testing.operands(spec, Op.CONV_INPUT_GRAD, "integers")
        parts = input_grad.parts_of(spec, [input_grad.phases(spec, axis) for axis in range(2)], 2)
        read = [np.ascontiguousarray(given[0][(..., *part.read)]) for part in parts]
        found = testing.reference(spec, Op.CONV_INPUT_GRAD, given, backend="im2col")
        for part, dy in zip(parts, read, strict=True):
            run = run_turned(part.spec, positions.Turned(part.taps, len(given[1][0, 0].ravel())))
            y = testing.poisoned(part.spec.shapes(Op.CONV)[-1])
            run.call(dy, given[1], None, y)
            turned = np.swapaxes(given[1].reshape(groups, o // groups, c // groups, -1)[..., part.taps], 1, 2)
            rows = turned.reshape(part.spec.weight_shape)
            expected = testing.reference(part.spec, Op.CONV, (dy, rows), backend="im2col")
            assert np.array_equal(y, expected), str(part.spec)
        made = plan.__wrapped__(spec, Op.CONV_INPUT_GRAD, "numba", algorithm)
        assert np.array_equal(made(*given), found), str(spec)


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["ends", "begins"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "s32", "s64"])
def test_what_moves_and_adds_stays_inside_its_operands(dtype: str, at_end: bool) -> None:
    from tests.guard import Guarded

    for spec, op in moving(dtype):
        given = testing.operands(spec, op, "integers")
        expected = testing.reference(spec, op, given, backend="im2col")
        for made in plans(str(spec), op):
            memory = Guarded(at_end)
            result = memory.copy(testing.poisoned(spec.shapes(op)[-1]))
            made.run.call(*map(memory.copy, given), result)
            _, detail = testing.compare(result, expected, testing.tolerance(made, given))
            assert not detail, (made.algorithm, str(op), str(spec), detail)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_threads_and_strides_do_not_change_a_bit_of_what_moves_and_adds(dtype: str) -> None:
    problems = ("max n3 c40x33x37 k3x3 s2 p1 indices", "max n3 c140x33x37 k3x3 s1 p1 indices", "max n3 c340x14x14 k2x2 s2 p0 indices", "max n3 c40x33x37 k3x3 s1 p1", "avg n3 c40x33x37 k3x3 s2 p1", "lp3 n2 c9x20x21 k2x2 s2 p0",
                "avg n3 c65x14x14 k2x2 s2 p0", "avg n2 c65x7x7 o1x1", "avg n2 c20x9x8 o4x3", "n3 c9x20x21 k4x3x3 s2 p1", "n3 c9x20x21 k4x3x3 s1 p1 reflect")  # fmt: skip
    before = fc.get_num_threads()
    try:
        for problem in problems:
            spec = parse(f"{problem} {dtype}")
            for op in set(spec.ops) & set(MOVING):
                given = testing.operands(spec, op)
                turned = [np.asfortranarray(array) for array in given]
                for made in plans(str(spec), op):
                    answers = set()
                    for threads in (1, 2, 5):
                        fc.set_num_threads(threads)
                        answers |= {made(*given).tobytes(), made(*turned).tobytes()}
                    assert len(answers) == 1, (problem, str(op), made.algorithm)
    finally:
        fc.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["f32", "f16", "s8"])
def test_what_moves_and_adds_keeps_its_limit(dtype: str) -> None:
    for problem in ("max n3 c9x20x30 k3x3 s2 p1 indices", "max n3 c9x20x30 k3x3 s2 p1", "avg n3 c9x20x30 k3x3 s2 p1", "lp3 n3 c9x20x30 k3x3 s2 p0", "n2 c5x20x30 k4x3x3 s1 p1"):  # fmt: skip
        spec = parse(f"{problem} {dtype}")
        for op in set(spec.ops) & set(MOVING):
            given = testing.operands(spec, op)
            for free in plans(str(spec), op):
                if not free.workspace:
                    continue
                with pytest.raises(Unsupported, match="workspace_limit") as refused:
                    plan(spec, op, "numba", free.algorithm, "default", 0)
                least = refused.value.workspace or 0
                tight = plan(spec, op, "numba", free.algorithm, "default", least)
                assert tight.workspace <= least
                np.testing.assert_array_equal(tight(*given), free(*given))


@pytest.mark.parametrize("op", [Op.POOL_INPUT_GRAD, Op.UNPOOL, Op.UNPOOL_INPUT_GRAD], ids=str)
@pytest.mark.parametrize("bad", [-1, 60, 2**31, 2**32 + 3, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("size", ["6x10", "60x100"])
def test_an_index_outside_its_plane_is_refused_and_nothing_written(size: str, bad: int, op: Op) -> None:
    """Wherever it stands: small planes are looked at together, large ones in pieces."""
    bad = 6000 if bad == 60 and size == "60x100" else bad
    made = plan(parse(f"max n2 c3x{size} k2x2 indices f32"), op, "numba")
    values, indices = testing.operands(made.spec, op)
    for at in (0, indices.size // 2, indices.size - 1):
        broken = indices.copy()
        broken.flat[at] = bad
        out = np.full(made.spec.shapes(op)[-1].shape, 7, "float32")
        for given in (None, out):
            with pytest.raises(ValueError, match=rf"indices: got values .*{bad}.*, expected 0 to"):
                made(values, broken, out=given)
        assert (out == 7).all()
    # Indices of another pool, which point anywhere in the plane, are as good as any.
    anywhere = np.random.default_rng(3).integers(0, np.prod(made.spec.in_size), indices.shape)
    np.testing.assert_array_equal(
        made(np.rint(values), anywhere), plan(made.spec, op, "im2col")(np.rint(values), anywhere)
    )


def matched() -> list[PoolSpec]:
    """Windows of every kernel that compares, on planes around its edges: half a vector, one and more, by all parities."""
    from fastconv.backends.numba.kernels.match import SHAPES, STRIDE

    windows = [
        f"k{k}x{k} s{STRIDE} p{rows}:{end}x{columns}:{end} {ceil}"
        for k, columns in SHAPES
        for rows, end in ((0, 0), (columns, columns), (k // 3, 0))
        for ceil in ("", "ceil")
    ]
    found = []
    for size in ("4x8", "8x8", "9x10", "6x14", "13x13", "15x16", "9x31", "16x32", "17x33", "5x67", "40x66"):
        for window in (*dict.fromkeys(windows), "k3x3 s1 p1"):
            for channels in (1, 3, 40):
                spec = parse(f"max n1 c{channels}x{size} {window} indices f32")
                assert isinstance(spec, PoolSpec)
                found.append(spec)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["ends", "begins"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_what_is_compared_is_what_is_scattered(dtype: str, at_end: bool) -> None:
    """Bit by bit, whatever the gradient and wherever indices point, with nothing read or written beyond."""
    from tests.guard import Guarded

    random = np.random.default_rng(5)
    done = 0
    for few in matched():
        spec = replace(few, dtype=dtype)
        memory = Guarded(at_end)
        try:
            made = plan(spec, Op.POOL_INPUT_GRAD, "numba", "match")
        except Unsupported:
            continue
        scatter = plan(spec, Op.POOL_INPUT_GRAD, "numba", "scatter")
        x = random.integers(-3, 4, spec.input_shape).astype(dtype)
        y, own = plan(spec, Op.POOL, "im2col")(x)
        dy = random.standard_normal(y.shape).astype("float32")
        dy[random.random(y.shape) < 0.3] = -0.0
        for special in (np.inf, -np.inf, np.nan, 1e-45):
            dy[random.random(y.shape) < 0.02] = special
        dy = dy if dtype == "float32" else random.integers(-(2**31), 2**31, y.shape).astype(dtype)
        plane = math.prod(spec.in_size)
        strange = own.copy()
        strange.flat[random.integers(own.size)] = random.integers(plane)
        gradient, result, indices = (
            memory.copy(array) for array in (dy, testing.poisoned(spec.shapes(Op.POOL_INPUT_GRAD)[-1]), own)
        )
        for case in (own, strange, random.integers(0, plane, own.shape)):
            indices[...] = case
            expected = np.empty_like(result)
            scatter.run.call(gradient, indices, expected)
            made.run.call(gradient, indices, result)
            np.testing.assert_array_equal(result, expected, str(spec))
            numbers = result == result  # of two NaN either may be the sum
            np.testing.assert_array_equal(
                np.signbit(result[numbers]), np.signbit(expected[numbers]), str(spec)
            )
        done += 1
    assert done > 300


@pytest.mark.parametrize(
    "problem", ["n1 c3x20x36 k2x2 s2 p0", "n1 c3x20x36 k3x3 s2 p1", "n1 c3x20x36 k3x3 s1 p1"]
)
def test_every_index_that_no_window_has_is_found(problem: str) -> None:
    """The whole plane for one output after the other, those at its edges first, among three planes."""
    spec = parse(f"max {problem} indices f32")
    assert isinstance(spec, PoolSpec)
    made, scatter = (plan(spec, Op.POOL_INPUT_GRAD, "numba", algorithm) for algorithm in ("match", "scatter"))
    x = np.zeros(spec.input_shape, "float32")
    y, own = plan(spec, Op.POOL, "im2col")(x)
    dy = np.arange(1, y.size + 1, dtype="float32").reshape(y.shape)
    last = y[0, 0].size - 1
    for output in (0, 1, spec.out_size[1] - 1, spec.out_size[1], last // 2, last - 1, last):
        for plane in range(3):
            indices = own.copy()
            for place in range(math.prod(spec.in_size)):
                indices[0, plane].flat[output] = place
                np.testing.assert_array_equal(made(dy, indices), scatter(dy, indices))


@pytest.mark.skipif(
    not hasattr(os, "uname") or os.uname().machine != "x86_64", reason="reads x86-64 assembly"
)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_comparing_loops_keep_their_vectors_in_registers(dtype: str) -> None:
    from fastconv.backends.numba import matching
    from fastconv.backends.numba.kernels.simd import host
    from tests.test_numba import assembly
    from tests.test_numba_pool import innermost

    register = {"avx512": "zmm", "avx2": "ymm"}.get(host().name)
    if register is None:
        pytest.skip(f"no vectors to look for on {host().name}")
    found = 0
    for kernel in (*matching.PAIRS.values(), matching.FLAT):
        text = assembly(kernel, dtype)
        for body in re.findall(r"^match_\w+:.*?\.size", text, re.MULTILINE | re.DOTALL):
            lines = body.splitlines()
            loops = ["\n".join(loop) for loop in innermost(lines)]
            compares = [loop for loop in loops if re.search(rf"vpcmpeqd.*%{register}", loop)]
            assert compares, lines[0]
            for loop in compares if register == "zmm" else ():  # AVX2 has half the registers
                assert not re.search(r"vmov\w+\s+%[xyz]mm\d+, -?\d*\(%rsp\)", loop), (lines[0], loop)
            found += 1
    assert found == 4 * len(matching.PAIRS) + 1  # near, far, past the caches, careful


@pytest.mark.skipif(
    not hasattr(os, "uname") or os.uname().machine != "x86_64", reason="reads x86-64 assembly"
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spread_rows_keep_their_vectors_in_registers(dtype: str) -> None:
    from fastconv.backends.numba import pool_grad
    from fastconv.backends.numba.kernels.simd import host
    from fastconv.backends.numba.kernels.spread import SHAPES
    from tests.test_numba import assembly
    from tests.test_numba_pool import innermost

    register = {"avx512": "zmm", "avx2": "ymm"}.get(host().name)
    if register is None:
        pytest.skip(f"no vectors to look for on {host().name}")
    found = 0
    for shape in SHAPES:
        text = assembly(pool_grad.SPREAD[shape], dtype)
        for body in re.findall(r"^(?:gather|stage)_rows\w+:.*?\.size", text, re.MULTILINE | re.DOTALL):
            lines = body.splitlines()
            loops = list(innermost(lines))
            assert any(f"%{register}" in line for loop in loops for line in loop), lines[0]
            spills = [
                line for loop in loops for line in loop if re.search(r"vmov\w+\s+%[xyz]mm\d+, .*\(%rsp", line)
            ]
            assert not spills, (lines[0], spills)
            found += 1
    assert found == 2 * len(SHAPES)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_threads_do_not_change_a_bit(op: Op) -> None:
    problems = ("n3 c32x28x28 k40x3x3 s1 p1 f32", "n5 c64x14x14 k64x1x1 s1 p0 f32", "n3 c16x30x30 k24x3x3 s2 p1 f32",
                "n2 c32x30x30 k32x3x3 s1 p1 g32 f32", "n9 c3x32x32 k6x5x5 s1 p0 f32", "n7 c64x7x7 k64x1x1 s2 p0 f64", "n9 c3x22x22 k24x3x3 s1 p1 f32")  # fmt: skip
    before = fc.get_num_threads()
    try:
        for problem in problems:
            for made in plans(problem, op):
                given = testing.operands(made.spec, op)
                answers = set()
                for threads in (1, 2, 3, 7):
                    fc.set_num_threads(threads)
                    answers.add(made(*given).tobytes())
                assert len(answers) == 1, (problem, made.algorithm)
    finally:
        fc.set_num_threads(before)


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize(
    "problem",
    [
        "n5 c32x30x30 k32x3x3 s1 p1 f32", "n5 c16x41x40 k24x3x3 s2 p1 f32", "n3 c8x9x11 k8x3x3 s1 p1 reflect f32",
        "n4 c8x20x20 k8x3x3 s1 p1 g8 f32", "n4 c8x20x20 k8x3x3 s2 p1 f16", "n2 c3x10x10 k4x3x3 s1 p5 f32",
    ],
)  # fmt: skip
def test_a_limit_is_kept_and_named(problem: str, op: Op) -> None:
    for free in plans(problem, op):
        given = testing.operands(free.spec, op, "integers")
        least = 0
        if free.workspace:
            with pytest.raises(Unsupported) as refused:
                plan(free.spec, op, "numba", free.algorithm, "default", 0)
            least = refused.value.workspace or 0
        tight = plan(free.spec, op, "numba", free.algorithm, "default", least)
        assert tight.workspace <= least
        error = testing.tolerance(tight, given) + testing.tolerance(free, given)
        _, detail = testing.compare(tight(*given), free(*given), error)
        assert not detail, (free.algorithm, detail)


@pytest.mark.parametrize("problem", EDGES)
def test_prepared_weights_give_the_same_gradient(problem: str) -> None:
    """A transposed convolution with its weights turned, or transformed, ahead."""
    for algorithm in algorithms("numba", Op.CONV_INPUT_GRAD):
        try:
            made = plan(parse(f"{problem} f32"), Op.CONV_INPUT_GRAD, "numba", algorithm, prepared=True)
        except Unsupported:
            continue
        testing.assert_agrees(made, "integers")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-45])
def test_special_values_reach_the_elements_they_meet(value: float, stride: int) -> None:
    """By every algorithm that may be chosen; zeros of the padding, or of no phase, meet nothing."""
    spec = parse(f"n1 c4x9x9 k4x3x3 s{stride} p1 f32")
    dy, w = testing.operands(spec, Op.CONV_INPUT_GRAD, "integers")
    dy[...] = 0
    dy[0, 1, 1, 2] = value
    w[...] = 1
    for made in plans(str(spec), Op.CONV_INPUT_GRAD):
        if made.run.finite_only or (made.run.error and np.isfinite(value)):
            continue  # a transform rounds what is as small as this
        dx = made(dy, w)
        inside = np.zeros((9, 9), bool)
        row, column = stride - 1, 2 * stride - 1
        inside[max(row, 0) : row + 3, column : column + 3] = True
        np.testing.assert_array_equal(dx[0, :, inside], np.float32(value))
        assert not dx[0, :, ~inside].any(), made.algorithm


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-45])
def test_special_values_reach_the_weights_they_meet(value: float) -> None:
    for problem in (
        "n2 c4x9x9 k4x3x3 s1 p1 f32",
        "n3 c40x5x5 k9x3x3 s2 p1 f32",
        "n1 c2x4x9 k2x3x3 s1 p0 f32",
    ):
        for made in plans(problem, Op.CONV_WEIGHT_GRAD):
            if made.run.error and np.isfinite(value):
                continue  # a transform rounds what is as small as this
            x, dy = testing.operands(made.spec, Op.CONV_WEIGHT_GRAD, "integers")
            x[...], dy[...] = 1, 0
            dy[0, 1, 1, 1] = value
            dw = made(x, dy)
            np.testing.assert_array_equal(dw[1], np.float32(value))
            assert not np.delete(dw, 1, axis=0).any()
