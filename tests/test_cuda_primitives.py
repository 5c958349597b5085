"""Each instruction of ``ptx.cuh``: its C++ body means what NumPy says here, and on a GPU its PTX body the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastconv import gpu
from fastconv.backends.cupy import compile as compiler
from fastconv.backends.cupy import run as device
from fastconv.backends.cupy.geometry import fill
from fastconv.backends.cupy.launch import Address, Kernel, Launch, Program
from tests import cuda_budget, emulator

LANES, READ, WRITTEN = 32, 32, 23
SOURCE = emulator.HERE / "primitives.cu"
PRIMITIVES = np.dtype([("words", "u8"), ("results", "u8")])
KERNEL = Kernel(str(SOURCE), "primitives", ())
PROGRAM = Program(
    steps=(
        Launch(
            kernel=KERNEL,
            grid=1,
            block=LANES,
            params=fill(PRIMITIVES),
            addresses=(Address("words", 0), Address("results", 1)),
        ),
    )
)

# The instructions of compute capability 9.0, by the four warps of a warpgroup.
GROUP, TILE_K, LEFT, RIGHT = 128, 64, 64, 128
GROUP_SOURCE = emulator.HERE / "warpgroup.cu"
WARPGROUP = np.dtype([("left", "u8"), ("right", "u8"), ("results", "u8")])
GROUP_KERNEL = Kernel(str(GROUP_SOURCE), "warpgroup", ())
GROUP_PROGRAM = Program(
    steps=(
        Launch(
            kernel=GROUP_KERNEL,
            grid=1,
            block=GROUP,
            shared=2 * (LEFT + RIGHT) * 2 * TILE_K,
            params=fill(WARPGROUP),
            addresses=(Address("left", 0), Address("right", 1), Address("results", 2)),
        ),
    )
)

lane = np.arange(LANES)


def words_of(matrix: Any, word: Any) -> Any:
    """Rows of a matrix, whose numbers lie side by side in 32-bit words, taken word by word."""
    return np.ascontiguousarray(matrix).view("u4")[word]


class Multiplied:
    """Small whole numbers in two matrices, 16 x k and k x 8, and how PTX spreads them over a warp."""

    def __init__(self, rng: np.random.Generator, dtype: Any, k: int) -> None:
        self.left, self.right = rng.integers(-8, 9, (16, k)), rng.integers(-8, 9, (k, 8))
        left, right = self.left.astype(dtype), self.right.T.astype(dtype)
        self.fragments = [
            words_of(left, (lane // 4 + 8 * (i % 2), lane % 4 + 4 * (i // 2))) for i in range(4)
        ] + [words_of(right, (lane // 4, lane % 4 + 4 * i)) for i in range(2)]

    def sums(self, added: Any) -> Any:
        """What every lane holds at the end."""
        product = self.left @ self.right
        return np.stack(
            [
                product[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2].astype("f4") + added[:, i]
                for i in range(4)
            ],
            axis=1,
        )


def rounded_to_tf32(bits: Any) -> Any:
    """Eleven significant bits: the numbers of the grid around each, and the nearer; ties go away from zero."""
    values = bits.view("f4").astype("f8")
    fraction, exponent = np.frexp(np.abs(values))
    nearest = np.ldexp(np.floor(fraction * 2**11 + 0.5), exponent - 11)
    return np.copysign(nearest, values).astype("f4").view("u4")


def case() -> tuple[Any, Any]:
    """What one warp reads, and what it is to write."""
    rng = np.random.default_rng(5)
    words = rng.integers(0, 2**32, (LANES, READ), "u4")
    words[:, 0] = rng.normal(size=LANES).astype("f2").view("u2")
    words[:, 1] = (rng.normal(size=LANES) * 100).astype("f4").view("u4")
    words[0, 1], words[1, 1], words[2, 1] = (
        0x3F801000,
        0xBF801000,
        0x3F803000,
    )  # half a place of tf32, and of float16
    added = rng.integers(-99, 100, (LANES, 4)).astype("f4")
    words[:, 27:31] = added.view("u4")
    types = Multiplied(rng, "f2", 16), Multiplied(rng, ml_dtypes.bfloat16, 16), Multiplied(rng, "f4", 8)
    for i, each in enumerate(types):
        words[:, 9 + 6 * i : 15 + 6 * i] = np.stack(each.fragments, axis=1)
    words[:, 21:27] |= rng.integers(0, 2**13, (LANES, 6), "u4")  # which tf32 does not see
    expected = np.empty((LANES, WRITTEN), "u4")
    expected[:, 0] = words[:, 0].astype("u2").view("f2").astype("f4").view("u4")
    expected[:, 1] = words[:, 1].view("f4").astype("f2").view("u2")
    expected[:, 2] = words[:, 2].astype("u8") * words[:, 3] >> np.uint64(32)
    expected[:, 3] = rounded_to_tf32(np.ascontiguousarray(words[:, 1]))
    there = (lane % 3 != 0)[:, None]
    vectors = np.where(there, words[:, 4:8], 0)
    for i in range(4):
        expected[:, 4 + i] = vectors[8 * i + lane // 4, lane % 4]
    expected[:, 8] = np.where(there[:, 0], words[:, 8], 0)[(lane + 1) % LANES]
    for i, each in enumerate(types):
        expected[:, 9 + 4 * i : 13 + 4 * i] = each.sums(added).view("u4")
    product = words[:, 2].view("i4").astype("i8") * words[:, 3].view("i4")
    expected[:, 21:] = np.stack([product & 0xFFFFFFFF, product >> 32 & 0xFFFFFFFF], axis=1)
    return words, expected


def group_case() -> tuple[Any, Any, Any]:
    """Two tiles of either type, and the sums of every thread."""
    rng, types = np.random.default_rng(6), (np.float16, ml_dtypes.bfloat16)
    left, right = (rng.integers(-8, 9, (2, rows, TILE_K)) for rows in (LEFT, RIGHT))
    product = left @ right.transpose(0, 2, 1)
    thread, fragment, at = np.ogrid[:GROUP, : RIGHT // 8, :4]
    row, column = thread // 32 * 16 + thread % 32 // 4 + at // 2 * 8, fragment * 8 + thread % 4 * 2 + at % 2
    expected = (product[:, row, column] + thread).astype("f4", order="C")
    bits = [
        np.stack([each[i].astype(dtype).view("u2") for i, dtype in enumerate(types)])
        for each in (left, right)
    ]
    return bits[0], bits[1], expected


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
def test_the_cpp_bodies_of_a_warpgroup_mean_what_numpy_says() -> None:
    left, right, expected = group_case()
    for seed in range(3):
        results = np.full_like(expected, np.nan)
        emulator.run(GROUP_PROGRAM, (left, right, results), seed)
        np.testing.assert_array_equal(results, expected)


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
def test_the_cpp_bodies_mean_what_numpy_says() -> None:
    words, expected = case()
    for seed in range(3):
        results = np.full((LANES, WRITTEN), 0xDEADBEEF, "u4")
        emulator.run(PROGRAM, (words, results), seed)
        np.testing.assert_array_equal(results, expected)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], cuda_budget.Cost]:
    for source in (SOURCE, GROUP_SOURCE):
        monkeypatch.setitem(compiler.sources(), str(source), source.read_text())
    return lambda arch: cuda_budget.cost(KERNEL, arch)


@pytest.mark.skipif(cuda_budget.missing() is not None, reason=str(cuda_budget.missing()))
def test_the_ptx_bodies_compile_to_the_instructions(compiled: Callable[[str], cuda_budget.Cost]) -> None:
    found = compiled("sm_90a").opcodes
    for opcode in ("HMMA", "LDSM", "LDGSTS"):
        assert any(each.startswith(opcode) for each in found), f"{opcode} is not among {found}"


@pytest.mark.skipif(cuda_budget.missing() is not None, reason=str(cuda_budget.missing()))
def test_the_ptx_bodies_of_a_warpgroup_compile_to_its_instructions(
    compiled: Callable[[str], cuda_budget.Cost],
) -> None:
    found = cuda_budget.cost(GROUP_KERNEL, "sm_90a")
    assert "HGMMA" in found.opcodes
    assert not found.local + found.stack


@pytest.mark.gpu
@pytest.mark.skipif(gpu.missing() is not None, reason=str(gpu.missing()))
def test_the_ptx_bodies_of_a_warpgroup_mean_the_same(compiled: Callable[[str], cuda_budget.Cost]) -> None:
    import cupy

    if cupy.cuda.Device().compute_capability != "90":
        pytest.skip("compute capability 9.0 alone has these instructions")
    left, right, expected = group_case()
    results = cupy.full(expected.shape, np.nan, "f4")
    device.OnDevice(lambda *views: GROUP_PROGRAM)(cupy.asarray(left), cupy.asarray(right), results)
    np.testing.assert_array_equal(cupy.asnumpy(results), expected)


@pytest.mark.gpu
@pytest.mark.skipif(gpu.missing() is not None, reason=str(gpu.missing()))
def test_the_ptx_bodies_mean_the_same(compiled: Callable[[str], cuda_budget.Cost]) -> None:
    import cupy

    words, expected = case()
    results = cupy.full((LANES, WRITTEN), 0xDEADBEEF, "u4")
    device.OnDevice(lambda *views: PROGRAM)(cupy.asarray(words), results)
    np.testing.assert_array_equal(cupy.asnumpy(results), expected)
