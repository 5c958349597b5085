"""``implicit_gemm_mma`` in its types, run on the CPU: ragged shapes, layouts, groups, parts of k, refusals, by warps and on
compute capability 9.0 by warpgroups; and float32 as
three products of tf32: how near it is, what is exact, infinities and NaN, bugs that must be seen.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv.backends import _BACKENDS, TF32_ERROR, Unsupported, _Row
from fastconv.backends.cupy import packing, product
from fastconv.backends.cupy.implicit_gemm_mma import SPLIT_ERROR
from fastconv.backends.cupy.launch import view
from fastconv.backends.cupy.product import WarpgroupTile, WarpTile
from fastconv.plan import MAX_ERROR, Plan, plan
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees, compare, operands, poisoned, reference, tolerance
from tests import emulator

# Modules that choose among tiles; a function of the package has the name of one.
PLANNERS = [sys.modules[f"fastconv.backends.cupy.{name}"] for name in ("implicit_gemm_mma", "gradients")]

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CuPy engine's planners for NumPy arrays."""
    monkeypatch.setitem(sys.modules, "emulated_cupy", emulator.backend())
    monkeypatch.setitem(_BACKENDS, "emulated", _Row("emulated_cupy", "numpy"))
    plan.cache_clear()
    yield
    plan.cache_clear()


# What is multiplied: the type of the operands, the precision asked for, the error stated.
ARITHMETIC = {
    "f16": ("f16", "default", 0.0),
    "bf16": ("bf16", "default", 0.0),
    "tf32": ("f32", "tf32", TF32_ERROR),
    "3xtf32": ("f32", "default", SPLIT_ERROR),
}


def made(problem: str, limit: int | None = None, op: Op = Op.CONV) -> Plan:
    """The plan of a problem that ends in one of these."""
    *fields, name = problem.split(" ")
    dtype, precision, _ = ARITHMETIC[name]
    spec = parse(" ".join((*fields, dtype)))
    return plan(spec, op, "emulated", "implicit_gemm_mma", precision, workspace_limit=limit)


def channels_last(x: Any) -> Any:
    return np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)


def off(x: Any) -> Any:
    """Channels last, but no vector of 16 bytes begins where the array does."""
    base = np.empty(x.size + 1, x.dtype)
    base[1:] = np.moveaxis(x, 1, -1).ravel()
    return np.moveaxis(base[1:].reshape(*x.shape[:1], *x.shape[2:], x.shape[1]), -1, 1)


# Out channels, positions and k are no multiples of a tile anywhere.
RAGGED = (
    "n1 c5x7x6 k9x3x3 s1 p1",  # nothing in vectors
    "n2 c32x5x4 k70x3x2 s2x1 p1 g2",  # whole vectors, packed weights, two tiles of m in each group
    "n3 c24x5x5 k17x1x1 s1 p0",  # whole vectors, weights as they lie
    "n1 c8x6x7 k3x3x3 s1 p2 d2 reflect",
    "n1 c8x9 k5x4 s3 p1",
    "n1 c4x3x4x5 k3x2x2x2 s1 p1 circular",
)


GRADIENTS = (
    *RAGGED,
    "n2 c20x4x8 k10x1x1 s1 p0",  # a weight gradient of whole vectors alone
    "n1 c5x9x8 k9x3x3 s1 p1",  # grad_output in whole vectors, the input gathered
    "n1 c5x6x7 k8x2x3 s1 p1 d2",  # the input gradient's weight in whole vectors of taps, grad_output gathered
    "n2 c7x9x11 k24x3x3 s2 p1",  # phases, with channels last whole vectors of them
    "n1 c70x5x6 k16x3x2 s3x1 p1 d2x1 g2",
)


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize(
    ("problem", "op"),
    [
        *((problem, Op.CONV) for problem in RAGGED),
        *((problem, op) for problem in GRADIENTS for op in (Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD)),
    ],
)
def test_agrees_with_the_definition(problem: str, op: Op, name: str) -> None:
    """Images, grad_output among them, in any order of axes."""
    given = made(f"{problem} {name}", op=op)
    assert given.run.error == ARITHMETIC[name][2]
    shapes = given.spec.shapes(op)
    for order in (np.asarray, channels_last, off):
        for kind in ("integers", "normal"):
            arrays = operands(given.spec, op, kind)
            result = poisoned(shapes[-1])
            moved = [
                array if shape.name == "weight" else order(array)
                for array, shape in zip(arrays, shapes, strict=False)
            ]
            given(*moved, out=result)
            # Small whole numbers are exact in tf32 too.
            allowed = 0.0 if kind == "integers" else tolerance(given, arrays)
            error, detail = compare(result, reference(given.spec, op, arrays), allowed)
            assert not detail, f"{order.__name__}, {kind}: off by {error}, {detail}"


TURNED = "of images in C order a copy with channels last"


def reversed_columns(x: Any) -> Any:
    return x[..., ::-1].copy()[..., ::-1]


@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize(
    "problem",
    [
        "n2 c8x6x7 k8x3x3 s1 p1",  # positions by fours, in whole squares none
        "n3 c16x7x5 k32x3x2 s2x1 p1 g2",  # one by one, images that begin anywhere
        "n1 c72x8x9 k72x1x1 s1 p0",  # by eights; two squares of channels, two of positions
        "n2 c8x3x4x5 k8x2x3x2 s1 p1x0x1",
        "n2 c16x17 k8x3 s2 p1 d2",
        "n1 c8x6x7 k8x3x3 s1 p1 reflect",
    ],
)
def test_images_in_c_order_are_turned(problem: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they may be: what the estimates say is another matter. Vectors end where they like."""
    monkeypatch.setattr(packing, "GATHERED", math.inf)
    for op in (Op.CONV, Op.CONV_INPUT_GRAD):
        given = made(f"{problem} {name}", op=op)
        turns = op is Op.CONV or "reflect" not in problem
        assert (TURNED in given.run.note) == turns
        images, *_ = shapes = given.spec.shapes(op)
        assert given.workspace >= turns * 2 * math.prod(images.shape)
        for kind in ("integers", "normal"):
            first, w = operands(given.spec, op, kind)
            for order in (np.asarray, reversed_columns, channels_last):
                result = poisoned(shapes[-1])
                given(order(first), w, out=result)
                allowed = 0.0 if kind == "integers" else tolerance(given, (first, w))
                error, detail = compare(result, reference(given.spec, op, (first, w)), allowed)
                assert not detail, f"{order.__name__}, {kind}: off by {error}, {detail}"


@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD])
def test_without_room_for_the_copy_images_are_gathered(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight is still packed where there is room for that."""
    monkeypatch.setattr(packing, "GATHERED", math.inf)
    problem = "n1 c16x5x5 k16x3x3 s1 p1 f16"
    free, weight = made(problem, op=op).workspace, 16 * 9 * 16 * 2
    assert free == weight + 16 * 25 * 2
    for limit, taken in ((free, free), (free - 1, weight), (weight - 1, 0)):
        given = made(problem, limit, op)
        assert given.workspace == taken
        assert (TURNED in given.run.note) == (taken == free)
        assert_agrees(given)


def test_images_are_turned_where_that_is_estimated_to_pay() -> None:
    for problem, turns in (
        ("n32 c256x56x56 k256x3x3 s1 p1 f16", True),
        ("n32 c64x56x56 k64x1x1 s1 p0 f16", False),  # a copy takes longer than the product
        ("n32 c3x224x224 k64x7x7 s2 p3 f16", False),  # no vectors of channels
        ("n32 c256x56x56 k256x3x3 s1 p1 tf32", False),
    ):
        assert (TURNED in made(problem).run.note) == turns, problem


@pytest.mark.parametrize("name", ["bf16", "tf32", "3xtf32"])
@pytest.mark.parametrize(
    ("problem", "op"),
    [("n1 c160x2x3 k3x3x3 s1 p1", Op.CONV), ("n3 c3x19x24 k5x3x3 s1 p1", Op.CONV_WEIGHT_GRAD)],
)
def test_k_is_cut_into_parts(problem: str, op: Op, name: str) -> None:
    """Long k and few tiles: parts are added in a fixed order, the bias once."""
    given = made(f"{problem} {name}", op=op)
    assert "parts" in given.run.note
    assert_agrees(given)
    x, other = operands(given.spec, op)
    assert given(channels_last(x), other).tobytes() == given(channels_last(x), other).tobytes()


@pytest.mark.parametrize(
    ("problem", "op"),
    [("n1 c16x5x5 k9x3x3 s1 p1 f16", Op.CONV), ("n1 c9x5x5 k16x3x3 s1 p1 f16", Op.CONV_INPUT_GRAD)],
)
def test_without_room_for_it_the_weight_is_read_as_it_lies(problem: str, op: Op) -> None:
    weight = 9 * 16 * 9 * 2
    assert made(problem, weight, op).workspace == weight
    given = made(problem, limit=100, op=op)
    assert given.workspace == 0
    x, w = operands(given.spec, op, "integers")
    assert compare(given(channels_last(x), w), reference(given.spec, op, (x, w)), 0.0) == (0.0, "")


WARPS = product.warp_tiles_of("float16")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has compute capability 9.0."""
    monkeypatch.setitem(sys.modules, "emulated_cupy", emulator.backend(emulator.Build(hopper=True)))


def kernels(given: Plan, *operands: Any) -> list[str]:
    """The kernels a call of the plan launches."""
    views = [view(array.strides, array.itemsize, array.ctypes.data % 16 == 0) for array in operands]
    c_order = np.empty(given.spec.shapes(given.op)[-1].shape, operands[0].dtype)
    program = given.run.call.build(*views, None, view(c_order.strides, c_order.itemsize, True))  # type: ignore[attr-defined]
    return [launch.kernel.name for launch in program.launches]


@pytest.mark.parametrize("tile", product.warpgroup_tiles(), ids=str)
@pytest.mark.parametrize("name", ["f16", "bf16"])
@pytest.mark.parametrize(
    "problem",
    [
        "n1 c72x5x6 k72x1x2 s1 p0",  # two tiles of 64 rows, k ends within a row of shared memory
        "n2 c16x5x4 k80x3x2 s2x1 p1 g2",
        "n3 c24x5x5 k16x1x1 s1 p0",
        "n2 c40x11x12 k72x3x3 s1 p1",  # more steps of k than stages, two tiles of columns and more
        "n1 c8x6 k8x3 s1 p2 d2",
    ],
)
def test_warpgroups_agree_with_the_definition(
    problem: str, name: str, tile: WarpgroupTile, hopper: None
) -> None:
    """Of images that lie channels last, and of such that are turned; beside im2col, as the definition takes seconds."""
    for op in (Op.CONV, Op.CONV_INPUT_GRAD):
        with emulator.at_any_cost(tile):
            agrees_by_warpgroups(made(f"{problem} {name}", op=op))


def agrees_by_warpgroups(given: Plan) -> None:
    for kind in ("integers", "normal"):
        arrays = operands(given.spec, given.op, kind)
        expected = reference(given.spec, given.op, arrays, backend="im2col")
        allowed = 0.0 if kind == "integers" else tolerance(given, arrays)
        for order in (channels_last, np.asarray):
            first, w = order(arrays[0]), arrays[1]
            assert "implicit_gemm_wgmma" in kernels(given, first, w)
            result = poisoned(given.spec.shapes(given.op)[-1])
            given(first, w, out=result)
            error, detail = compare(result, expected, allowed)
            assert not detail, f"{order.__name__}, {kind}: off by {error}, {detail}"


def test_warpgroups_cut_k_into_parts(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = product.warpgroup_tiles()[-1:]
    for module in PLANNERS:
        monkeypatch.setattr(
            module, "warp_tiles_of", lambda *args: tuple(t._replace(speed=1e6) for t in WARPS)
        )
        monkeypatch.setattr(module, "warpgroup_tiles", lambda: tiles)
    given = made("n1 c256x2x3 k9x3x3 s1 p1 bf16")
    x, w = operands(given.spec, Op.CONV)
    assert kernels(given, channels_last(x), w) == ["pack_weight", "implicit_gemm_wgmma", "sum_parts"]
    assert_agrees(given)
    assert given(channels_last(x), w).tobytes() == given(channels_last(x), w).tobytes()


@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD])
def test_what_warpgroups_do_not_take(op: Op, hopper: None) -> None:
    """Vectors that begin anywhere, no room for a packed weight, few channels, 32 bits, padding that shows the image."""
    plain = "n2 c40x6x7 k40x3x3 s1 p1"
    for problem, order, limit in (
        (f"{plain} f16", off, None),
        (f"{plain} f16", channels_last, 100),
        (f"{plain} f16", np.asarray, 40 * 9 * 40 * 2),
        ("n2 c5x6x7 k5x3x3 s1 p1 f16", channels_last, None),
        (f"{plain} tf32", channels_last, None),
        (f"{plain} reflect f16", channels_last, None),
    ):
        given = made(problem, limit, op)
        first, w = operands(given.spec, op, "integers")
        names = kernels(given, order(first), w)
        assert "implicit_gemm_mma" in names
        assert "implicit_gemm_wgmma" not in names, problem
        result = given(order(first), w)
        assert compare(result, reference(given.spec, op, (first, w)), 0.0) == (0.0, "")


def test_no_other_device_is_given_warpgroups() -> None:
    """They stand in the plan all the same: its estimates are an H200's."""
    for op in (Op.CONV, Op.CONV_INPUT_GRAD):
        given = made("n32 c256x56x56 k256x3x3 s1 p1 f16", op=op)
        first, w = (np.empty(shape.shape, "f2") for shape in given.spec.shapes(op)[:2])
        assert kernels(given, first, w) == ["channels_last", "pack_weight", "implicit_gemm_mma"]
    assert "of warpgroups" in made("n32 c256x56x56 k256x3x3 s1 p1 f16").run.note


def test_tf32_is_as_far_off_as_its_rounding() -> None:
    """Not the float32 that was given: the error is above float32's, and below the bound."""
    given = made("n1 c16x8x8 k8x3x3 s1 p1 tf32")
    x, w = operands(given.spec, Op.CONV)
    exact = reference(given.spec, Op.CONV, (x, w))
    error = np.abs(given(x, w) - exact).max() / np.abs(exact).max()
    assert 2.0**-20 < error < TF32_ERROR


@pytest.mark.parametrize(
    ("dtype", "precision", "words"),
    [
        ("f32", "highest", "a sum of tf32 products, and precision='highest' asks for the plain sum"),
        ("f64", "default", "float64 is no type of tensor cores here"),
        ("f64", "tf32", "float64 is no type of tensor cores here"),
    ],
)
def test_declines_in_words(dtype: str, precision: str, words: str) -> None:
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        with pytest.raises(Unsupported, match=words):
            plan(parse(f"n1 c8x5x5 k8x3x3 s1 p1 {dtype}"), op, "emulated", "implicit_gemm_mma", precision)


def test_auto_takes_tensor_cores_where_they_are_allowed() -> None:
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        for dtype, precision, there in (
            ("f16", "default", True),
            ("bf16", "default", True),
            ("f32", "tf32", True),
            ("f32", "highest", False),
        ):
            spec = parse(f"n8 c64x28x28 k64x3x3 s1 p1 {dtype}")
            made = plan(spec, op, "emulated", "auto", precision)
            assert (made.algorithm == "implicit_gemm_mma") == there, made.estimates


def test_the_estimates_decide_about_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else stands in their way: at another rate they are what "auto" takes, and "highest" does not."""
    spec = parse("n8 c64x28x28 k64x3x3 s1 p1 f32")
    assert 0 < SPLIT_ERROR < MAX_ERROR
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        split, single = (plan(spec, op, "emulated", precision=precision) for precision in ("default", "tf32"))
        name = "implicit_gemm_mma"
        assert split.estimates[name] > single.estimates[name]
        assert split.estimates["implicit_gemm"] == single.estimates["implicit_gemm"]
        with monkeypatch.context() as faster:
            for module in PLANNERS:
                faster.setattr(module, "warp_tiles_of", lambda *args: (WarpTile(64, 128, 4, 1e15),))
            plan.cache_clear()
            assert plan(spec, op, "emulated").algorithm == name
            assert plan(spec, op, "emulated", precision="highest").algorithm != name
        plan.cache_clear()


@pytest.mark.parametrize("name", ARITHMETIC)
def test_large_tiles(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first of those that a planner chooses among."""
    for module in PLANNERS:
        monkeypatch.setattr(module, "warp_tiles_of", lambda *args: product.warp_tiles_of(*args)[:1])
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        given = made(f"n1 c72x5x6 k70x1x2 s1 p0 {name}", op=op)
        if op is not Op.CONV_INPUT_GRAD:
            assert f"{'64' if name == '3xtf32' else '128'}x128" in given.run.note
        for kind in ("integers", "normal"):
            assert_agrees(given, kind)


def multiplied(a: Any, b: Any) -> Any:
    """The product of two float32 matrices, by a convolution along one axis."""
    problem = f"n1 c{a.shape[1]}x{b.shape[1]} k{a.shape[0]}x1 s1 p0 3xtf32"
    return made(problem, limit=0)(b[None], np.ascontiguousarray(a[:, :, None]))[0]


def matrices(k: int, *values: Callable[[np.random.Generator, tuple[int, int]], Any]) -> tuple[Any, Any]:
    """Two float32 matrices, k numbers of each in a sum, of the one kind of numbers or of one kind each."""
    rng = np.random.default_rng(k)
    a, b = (kind(rng, shape) for kind, shape in zip((values * 2)[:2], ((20, k), (k, 18)), strict=True))
    return a.astype("f4"), b.astype("f4")


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    return np.abs(rng.standard_normal(shape))


def halfway(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    """In the middle between two tf32 numbers, or a bit beside it: low parts are as large, and lose as much, as they can."""
    high = 2**23 + rng.integers(0, 2**4, shape) * 2**13
    return (high + 2**12 + rng.integers(-2, 3, shape)) * 2.0**-23


def alike(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    """Low parts never cancel."""
    return np.full(shape, 1 + 2.0**-11 - 2.0**-23)


def mixed(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
    return rng.standard_normal(shape) * 2.0 ** rng.integers(-50, 51, shape)


def near() -> None:
    """Three products are as near as they say, of random operands and of the worst, in short sums and long."""
    for kind in (normal, positive, halfway, alike, mixed):
        for k in (1, 2, 8, 9, 50):
            a, b = matrices(k, kind)
            exact = a.astype("f8") @ b.astype("f8")
            bound = k * float(np.abs(a).max()) * float(np.abs(b).max())
            # A sum of up to 8 is rounded once, when its low parts are added; then every 8 of k are a rounding more.
            allowed = (SPLIT_ERROR + math.ceil(k / 8) * 2.0**-24) * bound
            assert np.abs(multiplied(a, b) - exact).max() <= allowed, f"{kind.__name__}, {k}"


def long() -> None:
    """Tensor cores cut off, always towards zero, which 512 numbers of one sign would show: they are added elsewhere."""
    a, b = matrices(512, positive)
    exact = a.astype("f8") @ b.astype("f8")
    assert np.abs(multiplied(a, b) / exact - 1).max() < SPLIT_ERROR / 2


def whole() -> None:
    """Whole numbers are exact where one of two factors has 11 bits and the other 23, and float32 holds the sums."""
    for k, bits, others in ((1, 0, 23), (2, 11, 12), (8, 1, 20), (8, 10, 11), (50, 2, 16)):

        def few(rng: np.random.Generator, shape: tuple[int, int], top: int = 2**bits) -> Any:
            return rng.integers(-top, top + 1, shape)

        def many(rng: np.random.Generator, shape: tuple[int, int], top: int = 2**others) -> Any:
            return rng.integers(-top, top + 1, shape)

        for a, b in (matrices(k, few, many), matrices(k, many, few)):
            exact = a.astype("f8") @ b.astype("f8")
            np.testing.assert_array_equal(multiplied(a, b), exact, f"{k} of {bits} and {others} bits")


TINY, LARGEST = 2.0**-149, float(np.finfo("f4").max)

SPECIAL = (
    *(0.0, -0.0, 1.0, -1.0, 3.0, 1 + 2.0**-23, -1 - 2.0**-12, 1e30, -1e20, 2.0**-126, -(2.0**-120)),
    *(LARGEST, -LARGEST, LARGEST * (1 - 2.0**-12), LARGEST * (1 - 2.0**-11), LARGEST / 3),
    *(math.inf, -math.inf, math.nan, TINY, -(2.0**-130), 2.0**-136),
)


def special() -> None:
    """Every number times every other, alone and beside ordinary products, is finite, infinite or NaN as in float32."""
    a = np.array(SPECIAL, "f4")
    left, right = a[:, None], a[None]
    size, ones = np.abs(a), np.ones((a.size, 11), "f4")
    for added in (0, 11):
        found = multiplied(np.hstack([left, ones[:, :added]]), np.vstack([right, ones.T[:added]]))
        with np.errstate(all="ignore"):
            exact = left.astype("f8") * right + added
            expected = exact.astype("f4")
            # The high part of the smallest number is 0; of others just below the largest, the product may pass it.
            lost = (size[:, None] == math.inf) & (size == TINY)
            edge = (np.abs(np.abs(exact) / LARGEST - 1) < 2.0**-10) & (size != 1) & (size[:, None] != 1)
            # A number below 2**-113 is off by up to the last bit of the smallest tf32 numbers, 2**-136.
            gap = np.abs(found - exact) - (SPLIT_ERROR + 2.0**-24) * (np.abs(exact) + 2 * added)
            near_enough = gap <= 2.0**-136 * np.maximum(size[:, None], size) + TINY
            same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        assert (np.where(np.isfinite(expected), near_enough, same) | lost | lost.T | edge).all()


CHECKS = (near, long, whole, special)


@pytest.mark.parametrize("check", CHECKS)
def test_three_products_of_tf32(check: Callable[[], None]) -> None:
    check()


def test_what_three_products_do_not_hold() -> None:
    """The fourth, of two low parts: it is what two factors of 12 bits lack."""
    a = np.array([[2049.0]], "f4")
    assert multiplied(a, a)[0, 0] == 2049**2 - 1
    assert abs(multiplied(a, a)[0, 0] / 2049**2 - 1) < SPLIT_ERROR


BUGS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "no low by high": ("multiply(IN(), crossing, low_left[i], column);", "", near),
    "no high by low": ("multiply(IN(), crossing, left[i], low_right[j / 2] + j % 2 * 2);", "", near),
    "another column's low part": ("low_right[j / 2] + j % 2 * 2", "low_right[j / 2]", near),
    "added by tensor cores": ("multiply(IN(), products, left", "multiply(IN(), sums[i][j], left", long),
    "what crosses is not added at the end": ("    }\n    settle();", "    }", near),
    "what crosses is added twice": ("            more = 0;\n", "", long),
    "low parts of infinities": ("if (is_finite(more)) sum", "sum", special),
    "rounded to infinity": ("< 0x7f7ff000", "< 0x7f800000", special),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_in_three_products_is_caught(
    bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line, changed, check = BUGS[bug]
    folder = tmp_path / "kernels"
    shutil.copytree(emulator.KERNELS, folder)
    source = folder / "implicit_gemm_mma.cu"
    text = source.read_text()
    assert text.count(line) == 1, f"the line to break is no longer there: {line}"
    source.write_text(text.replace(line, changed))
    monkeypatch.setitem(sys.modules, "emulated_cupy", emulator.backend(emulator.Build(folder)))
    with pytest.raises(AssertionError) as caught:
        check()
    assert "error:" not in str(caught.value), "it does not compile"
