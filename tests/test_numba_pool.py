"""Pooling kernels of the Numba engine: any window, any strides, special values, any number of threads, no byte beyond."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import testing
from fastconv.backends import Unsupported, algorithms
from fastconv.plan import Plan, plan
from fastconv.spec import DTYPES, Op, PoolSpec, parse

Array = Any

ALGORITHMS = algorithms("numba", Op.POOL)

# Planes around every edge: fewer elements than lanes, two rows in a vector, a vector, strips and blocks of rows.
PLANES = (
    "1x1", "2x3", "3x3", "3x9", "5x5", "5x17", "7x7", "8x15", "9x16", "6x18", "4x29", "13x33", "5x34", "3x67", "40x66",
)  # fmt: skip
WINDOWS = (
    "k2x2 s2 p0", "k2x2 s1 p0", "k2x2 s2 p1", "k3x3 s1 p1", "k3x3 s2 p0", "k3x3 s2 p1", "k3x3 s2 p0 ceil",
    "k3x3 s1 p0", "k2x2 s2 p0 ceil", "k3x2 s2 p1", "k5x5 s1 p2", "k3x3 s3 p1", "k3x3 s2 p0:1x1:0",
)  # fmt: skip


def problems(dtype: str, planes: tuple[str, ...] = PLANES) -> Iterator[PoolSpec]:
    """Windows on planes they fit on, in every mode, and bins; many planes for kernels that take groups of them."""
    if planes is PLANES:
        for window in ("k3x3 s1 p1", "k3x3 s2 p1", "k2x2 s2 p0"):
            for mode, end in (("max", ""), ("max", "indices"), ("avg", "exclude_pad")):
                yield _parse(f"{mode} n3 c13x5x5 {window} {end} {dtype}")
                yield _parse(f"{mode} n2 c75x15x15 {window} ceil {end} {dtype}")
    for size in planes:
        for window in (*WINDOWS, "o1x1", "o2x2"):
            for mode, end in (("max", ""), ("max", "indices"), ("avg", ""), ("avg", "exclude_pad")):
                if window[0] == "o" and end == "exclude_pad":
                    continue
                with contextlib.suppress(ValueError):  # a window larger than the plane
                    yield _parse(f"{mode} n2 c3x{size} {window} {end} {dtype}")


def _parse(text: str) -> PoolSpec:
    spec = parse(text)
    assert isinstance(spec, PoolSpec)
    return spec


def plans(spec: PoolSpec) -> Iterator[Plan]:
    """The plan of every algorithm that takes the problem."""
    count = 0
    for algorithm in ALGORITHMS:
        try:
            found = plan(spec, Op.POOL, "numba", algorithm)
        except Unsupported:
            continue
        count += 1
        yield found
    assert count, str(spec)


def check(spec: PoolSpec, x: Array) -> None:
    """Every algorithm agrees with the definition on `x`: a maximum exactly, a sum within its rounding."""
    naive = plan(spec, Op.POOL, "naive")(x)
    for made in plans(spec):
        outs = tuple(testing.poisoned(shape) for shape in spec.shapes(Op.POOL)[1:])
        made(x, out=outs if len(outs) > 1 else outs[0])
        for result, expected in zip(outs, naive if isinstance(naive, tuple) else (naive,), strict=True):
            where = f"{spec} by {made.algorithm}"
            if spec.mode == "max" or DTYPES[spec.dtype].kind != "f":
                np.testing.assert_array_equal(result, expected, err_msg=where)
            else:
                allowed = 2 * testing.tolerance(made, (x,))
                wide: Array = result.astype("float64")
                np.testing.assert_allclose(wide, expected.astype("float64"), 0, allowed, err_msg=where)


def values(spec: PoolSpec, seed: int) -> Array:
    """Few different numbers, so that ties are everywhere, of either sign where there is one."""
    random = np.random.default_rng(seed)
    low = 0 if DTYPES[spec.dtype].kind == "u" else -4
    return random.integers(low, 5, spec.input_shape).astype(testing.numpy_dtype(spec.dtype))


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made with Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False], ids=["ends", "begins"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "s32", "s64"])
def test_pools_stay_inside_their_operands(dtype: str, at_end: bool) -> None:
    from tests.guard import Guarded

    memory = Guarded(at_end)
    outs: dict[Any, Array] = {}
    for number, spec in enumerate(problems(dtype)):
        x = memory.copy(values(spec, number))
        expected: Any = plan(spec, Op.POOL, "im2col")(x)
        for made in plans(spec):
            results = []
            for shape in spec.shapes(Op.POOL)[1:]:
                key = shape
                if key not in outs:
                    outs[key] = memory.copy(testing.poisoned(shape))
                outs[key][...] = testing.poisoned(shape)
                results.append(outs[key])
            made.run.call(x, *results)
            answers = expected if isinstance(expected, tuple) else (expected,)
            for result, answer in zip(results, answers, strict=True):
                np.testing.assert_allclose(result, answer, rtol=1e-5, atol=1e-6, err_msg=str(spec))


@pytest.mark.parametrize("dtype", [row.short for row in DTYPES.values()])
def test_random_pools_agree_with_the_definition(dtype: str) -> None:
    random = np.random.default_rng(sum(map(ord, dtype)))
    done = 0
    while done < 60:
        rank = int(random.choice([1, 2, 2, 2, 3]))
        size = tuple(int(n) for n in random.integers(1, (40, 18, 8)[rank - 1], rank))
        mode = str(random.choice(["max", "avg", "lp"]))
        fields: dict[str, Any] = {"mode": mode, "indices": mode == "max" and bool(random.integers(2))}
        if random.integers(5):
            kernel = (int(random.integers(1, 5)),) * rank
            if not random.integers(3):
                kernel = tuple(int(k) for k in random.integers(1, 5, rank))
            dilation = (int(random.choice([1, 1, 1, 2])),) * rank if mode == "max" else (1,) * rank
            fields |= {
                "kernel_size": kernel, "stride": (int(random.integers(1, 4)),) * rank, "dilation": dilation,
                "ceil_mode": bool(random.integers(2)),
            }  # fmt: skip
            if mode != "lp":
                fields["padding"] = tuple(
                    tuple(int(p) for p in random.integers(0, d * (k - 1) // 2 + 1, 2))
                    for k, d in zip(kernel, dilation, strict=True)
                )
            if mode == "avg":
                fields["count_include_pad"] = bool(random.integers(2))
                fields["divisor_override"] = int(random.choice([0, 0, 5]))
        elif mode != "lp":
            fields["output_size"] = tuple(int(n) for n in random.integers(1, 4, rank))
        try:
            name = next(name for name, row in DTYPES.items() if row.short == dtype)
            spec = PoolSpec(batch=2, channels=2, in_size=size, dtype=name, **fields)
        except ValueError:
            continue
        check(spec, values(spec, done))
        done += 1


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16"])
def test_one_nan_is_found_wherever_it_stands(dtype: str) -> None:
    for size, window in (
        ("6x18", "k2x2 s2 p0"),
        ("5x33", "k3x3 s2 p1"),
        ("7x16", "k3x3 s1 p1"),
        ("9x9", "o1x1"),
    ):
        for end in ("", "indices"):
            spec = _parse(f"max n1 c1x{size} {window} {end} {dtype}")
            x = values(spec, 3)
            for at in range(x.size):
                one = x.copy()
                one.flat[at] = np.nan
                one.flat[(at * 7 + 3) % x.size] = np.nan
                expected: Any = plan(spec, Op.POOL, "im2col")(one)
                for made in plans(spec):
                    np.testing.assert_equal(made(one), expected, err_msg=f"{spec} by {made.algorithm}: {at}")


@pytest.mark.parametrize("kind", ["nan", "-inf", "some -inf", "inf"])
def test_windows_of_nothing_but_one_special_value(kind: str) -> None:
    for spec in problems("f32", ("3x3", "5x17", "7x7", "9x33")):
        if spec.mode == "max":
            x = np.full(spec.input_shape, float(kind.split()[-1]), "float32")
            if kind == "some -inf":
                x[..., ::3] = 1
                x[..., 1::2, :] = -np.inf
            check(spec, x)


@pytest.mark.parametrize("dtype", ["s32", "s64", "u64", "s8", "u8"])
def test_the_ends_of_an_integers_range(dtype: str) -> None:
    for spec in problems(dtype, ("3x3", "5x17")):
        if spec.mode == "max":
            ends = np.iinfo(spec.dtype)
            check(spec, np.full(spec.input_shape, ends.min, spec.dtype))
            both = np.array([ends.min, ends.max], spec.dtype)
            check(spec, np.random.default_rng(1).choice(both, spec.input_shape))


def test_a_maximum_is_the_element_at_its_place() -> None:
    """Of 0.0 and -0.0 the first, where its place is asked for."""
    for window in ("k2x2 s2 p0", "k3x3 s2 p0", "k3x3 s1 p1"):
        spec = _parse(f"max n1 c2x8x34 {window} indices f32")
        x = np.random.default_rng(2).choice(np.array([0.0, -0.0, -1.0], "float32"), spec.input_shape)
        expected: Any = plan(spec, Op.POOL, "naive")(x)
        for made in plans(spec):
            result: Any = made(x)
            for got, wanted in zip(result, expected, strict=True):
                np.testing.assert_array_equal(
                    np.signbit(got), np.signbit(wanted), f"{spec} by {made.algorithm}"
                )
            at = np.take_along_axis(x.reshape(1, 2, -1), result[1].reshape(1, 2, -1), axis=2)
            np.testing.assert_array_equal(np.signbit(at.reshape(result[0].shape)), np.signbit(result[0]))


def layouts(x: Array) -> Iterator[tuple[str, Array]]:
    """The same numbers at other places."""
    yield "Fortran", np.asfortranarray(x)
    yield "channels last", np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    yield "channels first", np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    yield "reversed", np.ascontiguousarray(x[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
    wide = np.full(tuple(2 * n + 1 for n in x.shape), 99).astype(x.dtype)
    wide[::2, 1::2, 1::2, ::2][tuple(map(slice, x.shape))] = x
    yield "sliced", wide[::2, 1::2, 1::2, ::2][tuple(map(slice, x.shape))]
    rows = np.full((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3), 99).astype(x.dtype)
    rows[:, :, 1:-1, 2:-1] = x
    yield "cut out", rows[:, :, 1:-1, 2:-1]
    yield "broadcast", np.broadcast_to(x[:1, :1], x.shape)


@pytest.mark.parametrize("dtype", ["f32", "f64", "s32", "f16", "u64"])
def test_any_strides_give_the_same_bits(dtype: str) -> None:
    for number, few in enumerate(problems(dtype, ("3x3", "5x17", "7x7", "9x33"))):
        spec = replace(few, channels=(3, 17, 33)[number % 3])
        x = values(spec, 1) / testing.numpy_dtype(spec.dtype).type(3)
        x = x.astype(testing.numpy_dtype(spec.dtype))
        for name, laid in layouts(x):
            for made in plans(spec):
                expected: Any = made(np.ascontiguousarray(laid))
                np.testing.assert_equal(made(laid), expected, err_msg=f"{spec} by {made.algorithm}: {name}")


def test_a_channels_last_input_is_not_copied_whole() -> None:
    import tracemalloc

    x = np.ones((4, 56, 56, 64), "float32").transpose(0, 3, 1, 2)
    out = np.empty((4, 64, 28, 28), "float32")
    fc.max_pool2d(x, 2, backend="numba", out=out)
    tracemalloc.start()
    fc.max_pool2d(x, 2, backend="numba", out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 2


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_threads_give_the_same_bits(dtype: str) -> None:
    x = (
        np.random.default_rng(5)
        .standard_normal((3, 65, 33, 37))
        .astype({"f32": "float32", "f16": "float16"}[dtype])
    )
    x[1, 3, 5, 7] = np.nan
    before = fc.get_num_threads()
    for window in ("k3x3 s2 p1", "k3x3 s1 p1", "k2x2 s2 p0", "k5x5 s1 p2", "o1x1", "o3x4"):
        for mode, end in (("max", ""), ("max", "indices"), ("avg", "")):
            spec = _parse(f"{mode} n3 c65x33x37 {window} {end} {dtype}")
            for made in plans(spec):
                try:
                    fc.set_num_threads(1)
                    expected: Any = made(x)
                    for threads in (2, 5):
                        fc.set_num_threads(threads)
                        np.testing.assert_equal(made(x), expected, err_msg=f"{spec} by {made.algorithm}")
                finally:
                    fc.set_num_threads(before)


def test_no_images_give_no_results() -> None:
    for spec in problems("f32", ("7x7",)):
        for made in plans(spec.with_batch(0)):
            result: Any = made(np.empty((0, 3, 7, 7), "float32"))
            for part in result if isinstance(result, tuple) else (result,):
                assert part.shape == spec.with_batch(0).output_shape


@pytest.mark.parametrize("dtype", ["f16", "s8", "u64", "f32"])
def test_scratch_stays_under_its_limit(dtype: str) -> None:
    for text in ("max n4 c9x20x30 k3x3 s2 p1", "avg n4 c9x20x30 k2x2", "lp2 n4 c9x20x30 k2x2"):
        spec = _parse(f"{text} {dtype}")
        x = values(spec, 1)
        free = plan(spec, Op.POOL, "numba")
        if not free.workspace:
            continue
        with pytest.raises(Unsupported, match="workspace_limit") as refusal:
            plan(spec, Op.POOL, "numba", workspace_limit=100)
        need = refusal.value.workspace
        assert need is not None
        tight = plan(spec, Op.POOL, "numba", workspace_limit=need)
        assert tight.workspace <= need
        np.testing.assert_array_equal(tight(x), free(x))


@pytest.mark.skipif(
    not hasattr(os, "uname") or os.uname().machine != "x86_64", reason="reads x86-64 assembly"
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_loop_keeps_its_vectors_in_registers(dtype: str) -> None:
    from fastconv.backends.numba import pooling
    from fastconv.backends.numba.kernels.simd import host
    from tests.test_numba import assembly

    register = {"avx512": "zmm", "avx2": "ymm"}.get(host().name)
    if register is None:
        pytest.skip(f"no vectors to look for on {host().name}")
    found = 0
    for kernel in (*pooling.TAPS, *pooling.ROWS.values(), *pooling.FLAT, *pooling.PLANES, *pooling.CELLS[:2]):
        for body in re.findall(r"^pool_\w+:.*?\.size", assembly(kernel, dtype), re.MULTILINE | re.DOTALL):
            lines = body.splitlines()
            name, loops = lines[0], list(innermost(lines))
            assert any(f"%{register}" in line for loop in loops for line in loop), name
            spills = [
                line for loop in loops for line in loop if re.search(r"vmov\w+\s+%[xyz]mm\d+, .*\(%rsp", line)
            ]
            # An index beside its maximum takes twice the registers, of which AVX2 has half.
            assert not spills or ("argmax" in name and register == "ymm"), (name, spills)
            found += 1
    assert found == 12 + 12 + 3 + 2 + 2


def innermost(lines: list[str]) -> Iterator[list[str]]:
    """The loops of a function that hold no other."""
    labels = {line.rstrip(":"): at for at, line in enumerate(lines) if re.match(r"\.L\w+:", line)}
    jumps = [(at, re.match(r"\s+j\w+\s+(\.L\w+)", line)) for at, line in enumerate(lines)]
    loops = {(labels[jump[1]], at) for at, jump in jumps if jump and labels.get(jump[1], at) < at}
    for begin, end in loops:
        if not any((begin, end) != other and begin <= other[0] and other[1] <= end for other in loops):
            yield lines[begin : end + 1]
