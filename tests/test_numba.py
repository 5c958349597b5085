"""The compiled kernels: nothing is read or written out of bounds, vectors stay in registers, no thread can hurt."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import testing
from fastconv.backends import Run, Unsupported, algorithms
from fastconv.backends.numba import threads
from fastconv.backends.numba.kernels.simd import host
from fastconv.plan import plan
from fastconv.spec import ConvSpec, Op, parse

Array = Any

# Sizes around every edge of a vector, of a tile of three and of a block of channels.
EDGES = [
    *(f"n1 c3x1x{w} k9x1x1 s1 p0" for w in (1, 2, 7, 8, 15, 16, 17, 31, 33, 48, 49, 53, 97)),
    *(f"n2 c5x{h}x{w} k{o}x3x3 s1 p1" for h, w, o in ((1, 1, 1), (2, 3, 7), (4, 4, 8), (7, 7, 9), (5, 17, 17), (9, 16, 24))),
    *(f"n1 c2x{h}x{w} k10x3x3 s2 p1" for h, w in ((3, 3), (7, 15), (8, 16), (9, 33), (15, 47))),
    *(f"n1 c3x{h}x{w} k5x5x5 s1 p2" for h, w in ((5, 5), (6, 18), (11, 31))),
    *(f"n1 c2x{w} k3x3 s1 p1" for w in (3, 16, 17, 40)),
    *(f"n1 c4x{h}x{w} k4x3x3 s{s} p1 g4" for h, w in ((3, 3), (7, 7), (9, 16), (6, 33), (14, 14), (19, 8)) for s in (1, 2)),
    *(f"n1 c2x{h}x{w} k3x4x4 s4 p2" for h, w in ((9, 9), (17, 35))),
    "n1 c3x9x8x7 k4x3x2x3 s1 p1", "n1 c2x6x9 k3x3x3 s3 p2 d2", "n2 c6x5x9 k4x3x2 s1 p0 g2", "n1 c3x12x11 k7x3x3 s1 p2 circular",
    *(f"n2 c{c}x{h}x{w} k{o}x3x3 s{s} p1" for c, h, w, o, s in ((16, 4, 4, 9, 1), (17, 7, 9, 8, 1), (35, 9, 17, 5, 2))),
    "n2 c18x7x7 k18x3x3 s1 p1 g18", "n2 c33x5x7 k9x1x1 s1 p0", "n3 c9x5x5 k34x1x1 s1 p0", "n2 c9x7x7 k40x1x1 s1 p0", "max n2 c17x7x9 k3x3 s2 p1", "avg n1 c40x6x6 k2x2 s2 p0",
    *(f"max n1 c2x{h}x{w} k{k}x{k} s{s} p{k // 2}" for h, w in ((3, 3), (7, 9), (9, 33)) for k, s in ((2, 2), (3, 2), (3, 1), (4, 3))),
    *(f"avg n1 c2x{h}x{w} k3x3 s2 p1 ceil" for h, w in ((4, 4), (9, 33))),
    "n5 c3x4x5 k7x4x5 s1 p0", "n2 c1x2x2 k19x2x2 s1 p0", "n33 c40x1x1 k9x1x1 s1 p0", "n4 c2x3x2x3 k25x3x2x3 s1 p0",
    *(f"n2 c{c}x{h}x{w} k{o}x1x1 s1 p0" for c, h, w, o in ((130, 5, 5, 8), (9, 3, 7, 17), (257, 2, 3, 25), (5, 7, 29, 33), (8, 1, 4, 60))),
    "n2 c30x5x6 k20x3x3 s2 p0", "n1 c6x14x14 k16x5x5 s1 p0", "n1 c8x9x9 k10x3x3 s2 p0 g2",
    "max n1 c2x9x18 k3x3 s2 p1 indices", "max n1 c2x7x8 k3x3 s3 p0 indices", "avg n1 c3x7x7 o1x1", "max n1 c2x9x20 o4x3",
]  # fmt: skip
DTYPES = ("f32", "f64", "s32", "s64")

# Rows that fill cache lines, whatever their elements.
PAST = [
    "n2 c5x4x16 k9x1x1 s1 p0", "n2 c70x5x32 k40x1x1 s1 p0", "n1 c3x5x32 k17x3x3 s1 p1", "n2 c4x6x64 k10x3x3 s2 p1",
    "n1 c17x8x16 k9x3x3 s1 p1", "n2 c5x9x48 k5x3x3 s1 p1 g5", "n2 c3x12x64 k3x3x3 s2 p1 g3", "n2 c4x9x32 k6x1x1 s2 p0",
    "n1 c2x3x4x16 k3x3x3x3 s1 p1", "max n2 c3x40x64 k2x2 s2 p0 indices", "max n2 c3x24x32 k3x3 s2 p1 indices",
    "avg n2 c3x24x64 k2x2 s2 p0",
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["ends", "begins"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
def test_kernels_stay_inside_their_operands(channels_last: bool, dtype: str, at_end: bool) -> None:
    from tests.guard import Guarded

    for problem in EDGES:
        spec = parse(f"{problem} {dtype}")
        op = spec.ops[0]
        given = testing.operands(spec, op, "integers")
        expected = testing.reference(spec, op, given)
        for algorithm in algorithms("numba", op):
            try:
                made = plan(spec, op, "numba", algorithm)
            except Unsupported:
                continue
            memory = Guarded(at_end)
            results = [memory.copy(testing.poisoned(shape)) for shape in spec.shapes(op)[len(given) :]]
            operands = [memory.copy(array) for array in given]
            if channels_last:
                operands[0] = np.moveaxis(memory.copy(np.moveaxis(given[0], 1, -1)), -1, 1)
            if op is Op.CONV:
                made.run.call(operands[0], operands[1], None, results[0])
            else:
                made.run.call(operands[0], *results)
            answers = expected if isinstance(expected, tuple) else (expected,)
            scale = max(float(np.abs(answers[0].astype(float)).max(initial=0)), 1.0)
            exact = spec.dtype[0] in "iu" or not made.run.error
            for result, answer in zip(results, answers, strict=True):
                allowed = 1e-6 * scale if exact else 2 * made.run.error * scale
                difference = np.abs(result.astype(float) - answer.astype(float)).max(initial=0)
                assert difference <= allowed, (str(spec), algorithm, difference)


@pytest.mark.parametrize("beyond", [0, 1], ids=["lines", "across"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PAST)
def test_results_past_the_caches_are_the_same(
    problem: str, dtype: str, beyond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results whose rows fill cache lines, and lie so or not, as if they were large."""
    from fastconv.backends.numba import cost

    monkeypatch.setattr(cost, "SHARED_CACHE", 0)
    assert cost.is_past(16, 16, "float32") == (host().width == 64)
    assert not cost.is_past(16, 24, "float32")
    spec = parse(f"{problem} {dtype}")
    for op in spec.ops:
        given = testing.operands(spec, op, "integers")
        expected = testing.reference(spec, op, given)
        shapes = spec.shapes(op)[len(given) :]
        for algorithm in algorithms("numba", op):
            try:
                made = plan.__wrapped__(spec, op, "numba", algorithm)  # planned anew
            except Unsupported:
                continue
            results = []
            for shape in shapes:
                like = testing.poisoned(shape)
                room = testing.poisoned(shape._replace(shape=(like.size + 64,)))
                begin = -room.ctypes.data % 64 // room.itemsize + beyond
                results.append(room[begin : begin + like.size].reshape(like.shape))
            made(*given, out=results[0] if len(results) == 1 else tuple(results))
            answers = expected if isinstance(expected, tuple) else (expected,)
            for result, answer in zip(results, answers, strict=True):
                _, detail = testing.compare(result, answer, testing.tolerance(made, given))
                assert not detail, (algorithm, op, detail)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["f32", "f64", "s64"])  # smaller integers are cast before they come here
def test_images_that_would_leave_lanes_empty_are_one_row(
    dtype: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With panels, which make one row of the end of an image and the beginning of the next."""
    from fastconv.backends.numba import positions
    from fastconv.backends.numba.geometry import geometry

    monkeypatch.setattr(positions, "panel_from", lambda g, flat: 1)
    lanes = 8 * host().width // int(dtype[1:])
    size = rows, -(-(3 * lanes + lanes // 2 + 1) // rows)  # three full vectors, and one that is half empty
    spec = parse("n{} c90x{}x{} k100x1x1 s1 p0 {}".format(16, *size, dtype))
    assert isinstance(spec, ConvSpec)
    planned = positions.plan_flat(spec, geometry(spec), packed=False, limit=None)
    assert planned.arguments["batch"] == 1
    assert planned.arguments["positions"] == 16 * math.prod(size)
    given = testing.operands(spec, Op.CONV, "integers")
    y = testing.poisoned(spec.shapes(Op.CONV)[-1])
    positions.caller(positions.FLAT, planned, spec)(*given, None, y)
    assert np.array_equal(y, testing.reference(spec, Op.CONV, given, backend="im2col"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", ["1x1 s1 p0", "3x3 s2 p1"])
def test_weights_are_packed_ahead_as_a_call_packs_them(window: str, dtype: str) -> None:
    """Every cut of channels into tiles, the last one with lanes left over, in groups: to the same bits."""
    for c, o, groups in ((3, 5, 1), (9, 16, 1), (40, 31, 1), (7, 32, 1), (16, 66, 2), (150, 57, 1)):
        spec = parse(f"n2 c{c}x9x8 k{o}x{window} g{groups} {dtype}")
        made = plan(spec, Op.CONV, "numba", "direct")
        x, w = testing.operands(spec, Op.CONV, "integers")
        ahead = plan(spec, Op.CONV, "numba", "direct", prepared=True)
        packed = ahead.run_packed(x, ahead.pack(w))
        np.testing.assert_array_equal(made(x, w), packed)
        np.testing.assert_array_equal(packed, testing.reference(spec, Op.CONV, (x, w)))


@pytest.mark.parametrize(
    "problem", ["n2 c70x5x5 k75x3x3 s2 p1", "n5 c66x4x4 k130x1x1 s1 p0", "n3 c40x6x5 k36x3x3 s1 p1 g2"]
)
def test_weights_of_a_call_are_packed_some_at_a_time(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many vectors of channels as may be, of each round of images: to the bits of all at once."""
    from fastconv.backends.numba import direct, slabs

    spec = parse(f"{problem} f32")
    assert isinstance(spec, ConvSpec)
    x, w = testing.operands(spec, Op.CONV, "integers")
    expected = testing.reference(spec, Op.CONV, (x, w))
    for nbytes in (1, 20_000, 60_000, 1 << 20):
        monkeypatch.setattr(direct, "PACKED_BYTES", nbytes)
        for copied in (6 << 10, 2 << 20):
            monkeypatch.setattr(slabs, "COPIED_BYTES", copied)
            y = testing.poisoned(spec.shapes(Op.CONV)[-1])
            direct.run(spec, None, False).call(x, w, None, y)
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("o", [1, 2, 9, 64])
@pytest.mark.parametrize("k", [1, 3])
def test_no_task_begins_with_the_last_vector(o: int, k: int) -> None:
    from fastconv.backends.numba import positions
    from fastconv.backends.numba.geometry import geometry

    lanes = host().width // 4
    for vectors in (4, 7, 10, 13, 25, 31):
        spec = parse(f"n1 c256x1x{vectors * lanes - 3} k{o}x1x{k} s1 p0 f32")
        assert isinstance(spec, ConvSpec)
        spec = replace(spec, padding=((0, 0), (k // 2, k // 2)))
        v_step = int(
            positions.plan_flat(spec, geometry(spec), packed=False, limit=None).arguments["v_step"][0]
        )
        assert v_step >= vectors or vectors % v_step != 1
        given = testing.operands(spec, Op.CONV, "integers")
        y = testing.poisoned(spec.shapes(Op.CONV)[-1])
        plan(spec, Op.CONV, "numba", "implicit_gemm").run.call(*given, None, y)
        assert np.array_equal(y, testing.reference(spec, Op.CONV, given))


# ---------------------------------------------------------------------------- machine code


@cache
def assembly(kernel: Any, dtype: str) -> str:
    """What LLVM made of a kernel for this machine."""
    from numba.core import types
    from numba.core.ccallback import CFunc

    from fastconv.backends.numba import jit

    work = kernel.make(getattr(types, dtype))
    function: Any = CFunc(work, ((types.int64, types.int64), types.void), {}, dict(jit.OPTIONS))
    function.compile()
    text: str = function._library.get_asm_str()
    return text


def loop_of(text: str, name: str, instruction: str, least: int = 1) -> list[str]:
    """The lines of the shortest loop of function `name` that holds an instruction so often."""
    body = text[text.index(f"\n{name}:") :]
    lines = body[: body.index(".size")].splitlines()
    labels = {line.rstrip(":"): at for at, line in enumerate(lines) if re.match(r"\.L\w+:", line)}
    loops = []
    for at, line in enumerate(lines):
        jump = re.match(r"\s+j\w+\s+(\.L\w+)", line)
        if jump and labels.get(jump[1], at) < at:
            loops.append(lines[labels[jump[1]] : at + 1])
    innermost = [loop for loop in loops if sum(instruction in line for line in loop) >= least]
    return min(innermost, key=len)


def check_tiles(dtype: str) -> None:
    from fastconv.backends.numba import direct, positions, weight_grad
    from fastconv.backends.numba.kernels.direct import MICROKERNELS as OF_CHANNELS
    from fastconv.backends.numba.kernels.direct import WIDTHS
    from fastconv.backends.numba.kernels.simd import host
    from fastconv.backends.numba.kernels.tile import MICROKERNELS, VECTORS, scalars

    isa = host()
    register = {"avx512": "%zmm", "avx2": "%ymm"}[isa.name]
    suffix = "ps" if dtype == "float32" else "pd"
    kernels = (positions.FLAT, weight_grad.PRODUCTS, *direct.DIRECT.values())
    texts = [assembly(kernel, dtype) for kernel in kernels]
    checked = 0
    for kernel in (*MICROKERNELS, *OF_CHANNELS):
        if kernel.dtype == dtype:
            products = kernel.mv * kernel.ns * kernel.terms
            text = next(text for text in texts if f"\n{kernel.name}:" in text)
            loop = loop_of(text, kernel.name, "vfmadd", products)
            fmas = [line for line in loop if re.search(rf"vfmadd\d+{suffix}\b", line) and register in line]
            assert len(fmas) == products, (kernel.name, len(fmas))
            spills = [line for line in loop if re.search(r"vmov\w+\s+%[xyz]mm\d+, .*\(%r[sb]p\)", line)]
            assert not spills, (kernel.name, spills)
            checked += 1
    lanes = {"float32": isa.width // 4, "float64": isa.width // 8}[dtype]
    assert checked == VECTORS * ((2 if isa.masks else 1) + len({1, scalars(isa), lanes}) + len(WIDTHS))


on_x86 = pytest.mark.skipif(
    os.uname().machine != "x86_64" if hasattr(os, "uname") else True, reason="reads x86-64 assembly"
)


@on_x86
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_tile_is_vector_fmas_without_spills(dtype: str) -> None:
    from fastconv.backends.numba.kernels.simd import host

    if host().name not in ("avx512", "avx2"):
        pytest.skip(f"no vectors to look for on {host().name}")
    check_tiles(dtype)


@on_x86
def test_lines_are_filled_past_the_caches() -> None:
    """By every kernel that writes large results: LLVM may make one plain store of two in the branches of a choice."""
    from fastconv.backends.numba import depthwise, direct, input_grad, matching, pairs, positions, winograd

    if host().width != 64:
        pytest.skip(f"no vector of {host().name} fills a line")
    kernels = (
        positions.FLAT, positions.SLAB, *direct.DIRECT.values(), winograd.PRODUCTS[0], depthwise.KERNEL,
        input_grad.WEAVE, *pairs.KERNELS.values(), *matching.PAIRS.values(),
    )  # fmt: skip
    for kernel in kernels:
        assert re.search(r"vmovnt\w+\s+%zmm", assembly(kernel, "float32")), kernel.__name__


@on_x86
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_depthwise_taps_keep_their_vectors_in_registers(dtype: str) -> None:
    from fastconv.backends.numba import depthwise
    from fastconv.backends.numba.kernels.depthwise import ROWS, TOGETHER
    from fastconv.backends.numba.kernels.simd import host

    if not host().masks:
        pytest.skip(f"nine weights, four sums and three columns leave {host().name} no register")
    text = assembly(depthwise.KERNEL, dtype)
    bodies = re.findall(r"^depthwise_\w+:.*?\.size", text, re.MULTILINE | re.DOTALL)
    assert len(bodies) == 2 * (2 + 3)  # strides; any taps, masked or not, and 3 x 3, masked, not or in pairs
    for body in bodies:
        name, *lines = body.splitlines()
        fmas = sum(bool(re.search(r"vfmadd\d+p[sd]\b.*%zmm", line)) for line in lines)
        assert fmas == (9 * ROWS if "_3x3_" in name else TOGETHER), name
        assert not [line for line in lines if re.search(r"vmov\w+\s+%[xyz]mm\d+, .*\(%r[sb]p\)", line)], name


@on_x86
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_depthwise_layers_keep_their_vectors_in_registers(dtype: str) -> None:
    from numba import types

    from fastconv.backends.numba import pairs, weight_grad
    from fastconv.backends.numba.kernels.simd import ELEMENTS, host

    if host().name not in ("avx512", "avx2"):
        pytest.skip(f"no vectors to look for on {host().name}")
    register = {"avx512": "%zmm", "avx2": "%ymm"}[host().name]
    short = ELEMENTS[getattr(types, dtype)].short
    looked = {
        weight_grad.DEPTHWISE: [f"nine_sums_{short}_s{stride}" for stride in (1, 2)],
        weight_grad.CHANNELS: [f"nine_sums_of_channels_{short}_s{stride}" for stride in (1, 2)],
        pairs.KERNELS[3, True]: [f"pair_rows_{short}_3{odd}" for odd in ("", "_odd")],
    }
    for kernel, names in looked.items():
        text = assembly(kernel, dtype)
        for name in names:
            loop = loop_of(text, f"{name}_{host().name}", "vfmadd", least=9)
            fmas = [line for line in loop if re.search(r"vfmadd\d+p[sd]\b", line) and register in line]
            assert len(fmas) == 9, (name, len(fmas))
            assert not [line for line in loop if re.search(r"vmov\w+\s+%[xyz]mm\d+, .*\(%r[sb]p\)", line)], (
                name
            )


# ---------------------------------------------------------------------------- other processes


def run(code: str, **variables: str) -> str:
    """Run a program in a process of its own; its output, and the test fails if it does."""
    environment = {**os.environ, **variables}
    program = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SSE = "-avx,-avx2,-fma,-avx512f,-avx512vl,-avx512bw,-avx512dq"


@on_x86
@pytest.mark.parametrize(
    ("name", "cpu", "features"), [("avx2", "haswell", "+avx,+avx2,+fma"), ("portable", "x86-64", SSE)]
)
def test_narrower_vectors_give_the_same_answers(name: str, cpu: str, features: str, tmp_path: Path) -> None:
    if name == host().name:
        pytest.skip("what all tests here compute with")
    code = """
        import numpy as np
        from fastconv import testing
        from fastconv.backends import Unsupported, algorithms
        from fastconv.backends.numba.kernels.simd import host
        from fastconv.plan import plan
        from fastconv.spec import Op, parse
        from tests import test_numba
        print(host().name, end=" ")
        if host().name == "avx2":
            test_numba.check_tiles("float32")
        for problem in ("n2 c5x9x17 k10x3x3 s1 p1 f32", "n1 c3x13x9 k5x3x3 s2 p1 f32", "n1 c9x5x5 k9x1x1 s1 p0 f32",
                        "n1 c4x9x9 k4x3x3 s1 p1 g4 f32", "n2 c3x11x4 k6x3x3 s1 p1 g3 f32", "n2 c3x19x19 k3x3x3 s2 p1 g3 f32",
                        "n2 c3x19x6 k3x3x3 s2 p1 g3 f32", "max n1 c2x9x9 k3x3 s2 p1 f32", "avg n1 c2x9x9 o1x1 f32", "max n1 c2x9x33 k3x3 s2 p1 indices f32",
                        "max n2 c9x5x7 k3x3 s1 p1 indices f32", "avg n2 c9x5x7 k3x3 s1 p1 exclude_pad f32",
                        "max n2 c3x5x7 k2x2 s2 p1 indices f64", "avg n2 c3x5x9 k2x2 s2 p1 f32"):
            spec = parse(problem)
            for name in algorithms("numba", spec.ops[0]):
                try:
                    testing.assert_agrees(plan(spec, spec.ops[0], "numba", name))
                except Unsupported:
                    pass
        for window in ("k2x2 s2 p0", "k3x3 s2 p0", "k3x3 s2 p1", "k3x3 s1 p1"):
            spec = parse(f"max n2 c9x13x37 {window} indices f32")
            testing.assert_agrees(plan(spec, Op.POOL_INPUT_GRAD, "numba", "match"))
        print("agree")
    """
    made = run(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=str(tmp_path))
    assert made.split() == [name, "agree"]


LAYER = """
    import numpy as np, fastconv as fc
    from fastconv.backends.numba import threads
    threads.SHARE_SECONDS = 1e-9  # small as it is, on all of them
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 16, 30, 30)).astype("f4"), rng.standard_normal((24, 16, 3, 3)).astype("f4")
    fc.set_num_threads(2)
    def layer(_=0):
        return fc.max_pool2d(fc.conv2d(x, w, padding=1, backend="numba"), 2, backend="numba")
"""


def test_short_work_is_done_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """And longer work by several; plans say how long it takes."""
    counts: list[int] = []
    monkeypatch.setattr(threads, "_python_threads", lambda kernel, workers, at: counts.append(workers))
    monkeypatch.setattr(threads, "_parallel", lambda: None)
    monkeypatch.setattr(threads, "SHARE_SECONDS", 25e-6)
    arguments = np.zeros(2, np.int64)
    monkeypatch.setattr(threads, "_serial", lambda: lambda *_: counts.append(1))
    for seconds in (0, 1e-6, 24e-6, 26e-6, 51e-6, 1e-3):
        threads.launch(0, arguments, 8, 4, seconds)
    assert counts == [4, 1, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100])
def test_each_task_is_taken_once_whoever_comes(tasks: int, workers: int) -> None:
    """By all workers, and by one alone, whose range ends before the others' do."""
    from numba import carray, cfunc, types

    from fastconv.backends.numba.kernels.simd import next_task, pointer
    from fastconv.backends.numba.operands import address

    @cfunc(types.void(types.int64, types.int64))
    def count(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, types.int64), 3)
        taken = carray(pointer(a[2], types.int64), a[1])
        while True:
            task = next_task(arguments, worker)
            if task >= a[1]:
                return
            taken[task] += 1

    taken = np.zeros(tasks + 1, np.int64)
    arguments = np.array([0, 0, address(taken)])
    threads.launch(count.address, arguments, tasks, workers, 0)
    assert taken.tolist() == [1] * tasks + [0]
    ranges = threads._ranges(0, tasks, 3).copy()
    arguments[:2] = -address(ranges), tasks
    count.ctypes(workers - 1, address(arguments))
    assert taken.tolist() == [2] * tasks + [0]


def test_many_python_threads_may_call_at_once() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 16, 30, 30)).astype("f4"), rng.standard_normal((24, 16, 3, 3)).astype("f4")
    expected = fc.conv2d(x, w, padding=1, backend="numba")
    with ThreadPoolExecutor(16) as pool:
        for made in pool.map(lambda _: fc.conv2d(x, w, padding=1, backend="numba"), range(200)):
            np.testing.assert_array_equal(made, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes() -> None:
    run(f"""{LAYER}
    import os, warnings
    warnings.simplefilter("ignore")
    expected = layer()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(layer(), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(layer(), expected)
    """)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pools_compute(method: str, tmp_path: Path) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    program = tmp_path / "program.py"
    main = """
    if __name__ == "__main__":
        import concurrent.futures, multiprocessing, sys, warnings
        warnings.simplefilter("ignore")
        expected = layer()
        context = multiprocessing.get_context(sys.argv[1])
        with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
            assert all(np.array_equal(made, expected) for made in pool.map(layer, range(4)))
        with context.Pool(2) as pool:
            assert all(np.array_equal(made, expected) for made in pool.map(layer, range(4)))
    """
    program.write_text(textwrap.dedent(LAYER) + textwrap.dedent(main))
    done = subprocess.run(
        [sys.executable, str(program), method], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_tbb_python_threads_do_the_work() -> None:
    run(f"""{LAYER}
    from fastconv.backends.numba import threads
    expected = layer()
    threads._parallel = lambda: None
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(made, expected) for made in pool.map(layer, range(32)))
    """)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_heard(threads: int) -> None:
    """A convolution of several seconds ends within one of the signal, and the next call works."""
    made = run(f"""
    import os, signal, threading, time
    import numpy as np, fastconv as fc
    fc.set_num_threads({threads})
    x, w = np.ones((16, 512, 112, 112), "f4"), np.ones((512, 512, 3, 3), "f4")
    fc.conv2d(x[:1, :, :8, :8], w[:8], backend="numba", precision="highest")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.perf_counter()
    try:
        fc.conv2d(x, w, padding=1, backend="numba", precision="highest")
        print("not interrupted", time.perf_counter() - begin)
    except KeyboardInterrupt:
        print("interrupted", time.perf_counter() - begin)
    assert fc.conv2d(x[:1, :, :8, :8], w[:8], backend="numba").shape == (1, 8, 6, 6)
    """)
    word, seconds = made.rsplit(" ", 1)
    assert word == "interrupted"
    assert float(seconds) < 4  # 0.6 to 0.9 alone; a machine busy with other tests takes its time


SMALL = """
    import numpy as np, fastconv as fc
    fc.set_num_threads(1)
    y = fc.max_pool2d(np.arange(16, dtype="f4").reshape(1, 1, 4, 4), 2, backend="numba")
    assert y.ravel().tolist() == [5, 7, 13, 15]
"""


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.bin"))


def test_compiled_code_is_kept_and_damage_is_repaired(tmp_path: Path) -> None:
    run(SMALL, NUMBA_CACHE_DIR=str(tmp_path))
    kept = files(tmp_path)
    assert kept
    stamps = [path.stat().st_mtime_ns for path in kept]
    run(SMALL, NUMBA_CACHE_DIR=str(tmp_path))
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == stamps, "compiled again"
    for path, damage in zip(kept, (b"", b"not machine code at all" * 10, None), strict=False):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    run(SMALL, NUMBA_CACHE_DIR=str(tmp_path))
    assert not list(tmp_path.rglob("*.tmp"))


def test_every_kernel_loads_where_nothing_was_compiled() -> None:
    """Machine code is loaded into a bare runtime: a symbol that only compiling brings would abort the process."""
    code = """
        import sys
        from fastconv.backends import get
        get("numba")
        from fastconv.backends.numba import jit, threads
        print(len(list(threads.warm(jit.COMPUTED))), "numba.np.linalg" in sys.modules)
    """
    run(code)
    count, compiled = run(code).split()
    assert int(count) > 100
    assert compiled == "False"


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    run(SMALL, NUMBA_CACHE_DIR=str(blocked))
    assert blocked.read_text() == ""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    program = textwrap.dedent(SMALL)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(3)]
    assert [process.wait(timeout=240) for process in running] == [0, 0, 0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_old_versions_are_deleted(tmp_path: Path) -> None:
    for number in range(5):
        old = tmp_path / f"fastconv-{number:016x}"
        old.mkdir()
        os.utime(old, (number, number))
    run(SMALL, NUMBA_CACHE_DIR=str(tmp_path))
    from fastconv.backends.numba.jit import KEPT_VERSIONS

    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == KEPT_VERSIONS
    assert "fastconv-0000000000000000" not in left


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's here")
def test_the_notice_is_one_line_and_only_when_compiling(tmp_path: Path) -> None:
    assert signal.SIGINT
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    words = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SMALL)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        words.append(done.stderr)
    assert words[0].count("\n") == 1
    assert "compiling" in words[0]
    assert words[1] == ""


# ---------------------------------------------------------------------------- numbers


DATA = ("normal", "large mean", "wide range", "denormals", "positive", "zeros and ones")


def adversarial(spec: ConvSpec, op: Op, data: str) -> tuple[Array, Array]:
    """Two operands that are hard on a transform."""
    rng = np.random.default_rng(spec.in_channels)
    x, w = (rng.standard_normal(shape.shape) for shape in spec.shapes(op)[:2])
    if data == "large mean":
        x, w = x + 100, w + 1
    elif data == "wide range":
        x = x * 10.0 ** rng.integers(-6, 7, (1, spec.in_channels) + (1,) * spec.rank)
    elif data == "denormals":
        x = x * 1e-40
    elif data == "positive":
        x, w = np.abs(x), np.abs(w)
    elif data == "zeros and ones":
        x, w = (x > 0).astype(float), np.sign(w)
    return x.astype("f4"), w.astype("f4")


def assert_within(run: Run, result: Array, answer: Array, terms: float) -> None:
    """Where terms cancel, no method's error is small beside the result: it is measured by what was added up."""
    difference = float(np.abs(result - answer).max())
    allowed = 2 * run.error * float(np.abs(answer).max()) + 100 * terms * 2.0**-149
    assert difference <= allowed, (run.note, difference)


@pytest.mark.parametrize(
    "problem",
    [
        "n1 c{c}x24x24 k16x3x3 s1 p1 f32",
        "n1 c{c}x24x24 k16x5x5 s1 p2 f32",
        "n1 c{c}x90 k16x3 s1 p1 f32",
        "n1 c{c}x90 k16x5 s1 p2 f32",
    ],
)
@pytest.mark.parametrize("channels", [3, 64, 512])
@pytest.mark.parametrize("data", DATA)
def test_transforms_keep_their_bound(problem: str, channels: int, data: str) -> None:
    """The error of every form, beyond the plain sum's, against the largest result (and what sums to it)."""
    from fastconv.backends.numba import winograd

    spec = parse(problem.format(c=channels))
    assert isinstance(spec, ConvSpec)
    x, w = adversarial(spec, Op.CONV, data)
    answer = testing.reference(spec, Op.CONV, (x, w), backend="im2col")
    for f in winograd.check(spec):
        run = winograd.plan_form(spec, winograd.layout(spec, f), False, None)
        y = np.full(spec.output_shape, np.nan, "f4")
        run.call(x, w, None, y)
        assert_within(run, y, answer, spec.dot_length(Op.CONV))


@pytest.mark.parametrize(
    "problem",
    [
        "n1 c{c}x24x24 k16x3x3 s1 p1 f32",
        "n4 c{c}x48x72 k9x3x3 s1 p1 f32",
        "n2 c{c}x24x24 k16x5x5 s1 p2 f32",
        "n3 c{c}x1200 k16x3 s1 p1 f32",
        "n1 c{c}x90 k16x5 s1 p2 f32",
    ],
)
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("data", DATA)
def test_gradient_transforms_keep_their_bound(problem: str, channels: int, data: str) -> None:
    """The same of weight gradients: one round of tiles, and several whose sums are added."""
    from fastconv.backends.numba import winograd, winograd_grad

    spec, op = parse(problem.format(c=channels)), Op.CONV_WEIGHT_GRAD
    assert isinstance(spec, ConvSpec)
    given = adversarial(spec, op, data)
    answer = testing.reference(spec, op, given, backend="im2col")
    for f in winograd.check(spec):
        run = winograd_grad.plan_form(spec, winograd_grad.layout(spec, f, None), None)
        dw = np.full(spec.weight_shape, np.nan, "f4")
        run.call(*given, dw)
        assert_within(run, dw, answer, spec.dot_length(op))


def test_a_result_that_is_not_finite_is_the_plain_sums() -> None:
    x = np.ones((1, 32, 20, 20), "f4")
    x[0, 3, 10, 10] = np.nan
    x[0, 5, 2, 2] = np.inf
    w = np.ones((32, 32, 3, 3), "f4")
    made = fc.conv2d(x, w, padding=1, backend="numba", algorithm="winograd")
    np.testing.assert_array_equal(
        made, fc.conv2d(x, w, padding=1, backend="numba", algorithm="implicit_gemm")
    )
    assert int(np.isnan(made[0, 0]).sum()) == 9
    big = np.full((1, 8, 12, 12), 1e37, "f4")
    weight = np.full((8, 8, 3, 3), 0.4, "f4")
    assert np.isfinite(fc.conv2d(big, weight, backend="numba", algorithm="winograd")).all()
    dy = np.ones((1, 32, 20, 20), "f4")
    x[0, 5, 2, 2] = 1
    dw, plain = (
        fc.grad.conv2d_weight(x, w.shape, dy, padding=1, backend="numba", algorithm=algorithm)
        for algorithm in ("winograd", "implicit_gemm")
    )
    np.testing.assert_array_equal(dw, plain)
    assert int(np.isnan(dw).sum()) == 32 * 9
    x = np.full((1, 8, 12, 12), 1e37, "f4")
    dy = np.full((1, 8, 12, 12), 0.2, "f4")
    dw = fc.grad.conv2d_weight(x, (8, 8, 3, 3), dy, padding=1, backend="numba", algorithm="winograd")
    assert np.isfinite(dw).all()


def test_threads_do_not_change_a_bit() -> None:
    problems = ("n2 c32x28x28 k40x3x3 s1 p1 f32", "n1 c64x14x14 k64x1x1 s1 p0 f32", "n1 c16x30x30 k24x3x3 s2 p1 f32",
                "n1 c32x30x30 k32x3x3 s1 p1 g32 f32", "max n2 c16x30x30 k3x3 s2 p1 f32", "avg n2 c64x7x7 o1x1 f32")  # fmt: skip
    before = fc.get_num_threads()
    try:
        for problem in problems:
            spec = parse(problem)
            op = spec.ops[0]
            given = testing.operands(spec, op)
            for algorithm in algorithms("numba", op):
                try:
                    made = plan(spec, op, "numba", algorithm)
                except Unsupported:
                    continue
                answers = set()
                for threads in (1, 2, 3, 7):
                    fc.set_num_threads(threads)
                    answers.add(made(*given).tobytes())
                assert len(answers) == 1, (problem, algorithm)
    finally:
        fc.set_num_threads(before)


@pytest.mark.large
def test_arrays_over_two_gibibytes() -> None:
    """Index arithmetic: offsets beyond 2**31 bytes, and beyond 2**31 elements between images."""
    x = np.zeros((3, 1, 27000, 27000), "f4")  # 8.7 GB of addresses, of which few are touched
    x[2, 0, -3:, -3:] = np.arange(9).reshape(3, 3)
    w = np.ones((1, 1, 3, 3), "f4")
    y = fc.conv2d(x, w, stride=3, backend="numba")
    assert y[2, 0, -1, -1] == 36
    assert np.count_nonzero(y) == 1
    pooled = fc.max_pool2d(x, 3, backend="numba")
    assert pooled[2, 0, -1, -1] == 8
    assert np.count_nonzero(pooled) == 1


@pytest.mark.large
@pytest.mark.parametrize(
    "problem",
    [
        "n1 c16x6800x6800 k16x3x3 s1 p1 f32",
        "n1 c8192x300x300 k8192x3x3 s1 p1 g8192 f32",
        "n1 c2x19000x19000 k1x1x1 s1 p0 f32",
        "max n1 c8192x300x300 k3x3 s2 p1 f32",
        "max n1 c8192x300x300 k2x2 s2 p0 indices f32",
        "avg n1 c8192x300x300 k3x3 s2 p1 f32",
    ],
)
def test_every_algorithm_counts_beyond_31_bits(problem: str) -> None:
    """The far corner of 2.9 GB, where an offset that lost bits would read zeros or write elsewhere."""
    spec = parse(problem)
    op = spec.ops[0]
    small = replace(spec, in_size=(50, 50))
    near = testing.operands(small, op, "integers")
    answer = testing.reference(small, op, near, backend="im2col")
    x = np.zeros(spec.shapes(op)[0].shape, "f4")
    x[..., -50:, -50:] = near[0]
    ran = set()
    for algorithm in set(algorithms("numba", op)) - {"fft"}:  # NumPy's slices, not offsets of ours
        try:
            made = plan(spec, op, "numba", algorithm)
        except Unsupported:
            continue
        results = made(x, *near[1:])
        for result, expected in zip(
            results if isinstance(results, tuple) else (results,),
            answer if isinstance(answer, tuple) else (answer,),
            strict=True,
        ):
            if result.dtype == np.int64:  # where the maximum stands, counted in its own image
                rows, columns = np.divmod(expected, 50)
                expected = (rows + x.shape[2] - 50) * x.shape[3] + columns + x.shape[3] - 50
            far = result[..., -20:, -20:].astype(float)
            allowed = testing.tolerance(made, near)
            assert np.abs(far - expected[..., -20:, -20:]).max() <= allowed, algorithm
        values = results[0] if isinstance(results, tuple) else results
        assert not values[..., :-60, :].any(), algorithm
        ran.add(algorithm)
    assert len(ran) > 1


def test_large_results_begin_with_a_cache_line() -> None:
    """Also where a call like an earlier one goes straight to its kernel."""
    x, w = np.ones((1, 1, 160, 160), "f4"), np.ones((1, 1, 3, 3), "f4")
    prepared = fc.prepare_conv2d(w, backend="numba")
    results = [prepared(x) for _ in range(9)]
    assert {result.ctypes.data % 64 for result in results} == {0}
