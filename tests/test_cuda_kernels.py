"""The CUDA kernels as machine code: what they cost, and whether Python and C++ mean the same structs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import disk, gpu
from fastconv.backends import cupy
from fastconv.backends.cupy import (
    columns,
    depthwise,
    geometry,
    gradients,
    pooling,
    product,
)
from fastconv.backends.cupy import compile as compiler
from fastconv.backends.cupy.launch import Kernel
from fastconv.backends.cupy.packing import PACKED_WEIGHT, TURNED_IMAGES
from fastconv.spec import parse
from tests import cuda_budget, emulator

SMALL = Kernel("sum_parts.cu", "sum_parts", (("SUM", "float32"), ("OUT", "float32")))

needs_tools = pytest.mark.skipif(cuda_budget.missing() is not None, reason=str(cuda_budget.missing()))
needs_nvrtc = pytest.mark.skipif(
    gpu.nvrtc() is None, reason="NVRTC is not installed: pip install 'fastconv[cubin]'"
)
needs_gxx = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


def check(arch: str, chosen: tuple[Kernel, ...]) -> None:
    allowed = cuda_budget.budget()
    for name, row in cuda_budget.costs((arch,), chosen).items():
        cost = row[arch]
        assert not cost.local + cost.stack, f"{name} on {arch} spills: {cost!r}"
        assert str(cost) == allowed[name][arch], (
            f"{name} on {arch}: run python -m tests.cuda_budget, read the diff"
        )


def test_the_budget_lists_every_kernel() -> None:
    assert list(cuda_budget.budget()) == [str(kernel) for kernel in cuda_budget.kernels()]


@needs_tools
def test_plain_kernels_keep_the_budget() -> None:
    chosen = cuda_budget.plain()
    assert {kernel.source for kernel in chosen} == {kernel.source for kernel in cuda_budget.kernels()} - {
        "fold_padding.cu",  # has nothing to do where padding is zeros
        "implicit_gemm_wgmma.cu",  # knows 16 bits alone
    }
    check("sm_90a", chosen)


@needs_tools
@pytest.mark.cubin
@pytest.mark.parametrize("arch", cuda_budget.ARCHITECTURES)
def test_kernels_keep_the_budget(arch: str) -> None:
    check(arch, cuda_budget.kernels())


@needs_tools
def test_the_budget_sees_a_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that holds more than its registers do is found out."""
    source = """
    extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* x) {
        float kept[64];
    #pragma unroll
        for (int i = 0; i < 64; ++i) kept[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
    #pragma unroll
        for (int i = 0; i < 64; ++i) x[threadIdx.x * 64 + i] = kept[63 - i] * kept[i];
    }
    """
    monkeypatch.setitem(compiler.sources(), "spills.cu", source)
    found = cuda_budget.cost(Kernel("spills.cu", "spills", ()), "sm_90a")
    assert found.stack or found.local


LAYOUTS = [
    (geometry.DIVISOR, "geometry.cuh", "Divisor"),
    (geometry.DIGIT, "geometry.cuh", "Digit"),
    (geometry.BOX, "elements.cuh", "Box"),
    (pooling.WINDOW, "windows.cuh", "Window"),
    (product.GATHERED_PRODUCT, "product.cuh", "GatheredProduct"),
    (PACKED_WEIGHT, "pack_weight.cu", "PackedWeight"),
    (TURNED_IMAGES, "channels_last.cu", "TurnedImages"),
    (product.PARTIAL_SUMS, "sum_parts.cu", "PartialSums"),
    (gradients.PADDED, "fold_padding.cu", "Padded"),
    (columns.COLUMNS, "unfold.cu", "Columns"),
    (depthwise.CORRELATED, "depthwise.cu", "Correlated"),
    (depthwise.DEPTHWISE, "depthwise.cu", "Depthwise"),
    (pooling.POOL, "pool.cu", "Pool"),
    (pooling.POOL_GRADIENT, "pool_grad.cu", "PoolGradient"),
    (pooling.UNPOOL, "unpool.cu", "Unpool"),
]


def test_every_struct_is_compared() -> None:
    """Whatever dtype a launch takes is in the list."""
    listed = [dtype for dtype, _, _ in LAYOUTS]
    for *_, program in cuda_budget.programs():
        for launch in program.launches:
            assert launch.params.dtype in listed, f"{launch.kernel}: add its struct to LAYOUTS"


@needs_gxx
@pytest.mark.parametrize(("dtype", "file", "struct"), LAYOUTS, ids=[struct for *_, struct in LAYOUTS])
def test_structs_lie_alike_in_python_and_in_cuda(dtype: Any, file: str, struct: str, tmp_path: Path) -> None:
    """Sizes and offsets, by a compiler that keeps the same rules for these types as NVRTC does."""
    assert dtype.fields is not None
    checks = [f"static_assert(sizeof({struct}) == {dtype.itemsize});"]
    checks += [
        f"static_assert(__builtin_offsetof({struct}, {name}) == {field[1]}); "
        f"static_assert(sizeof((({struct}*)0)->{name}) == {field[0].itemsize});"
        for name, field in dtype.fields.items()
    ]
    defines = [f"-D{name}={value}" for name, value in compiled_in(file)]
    program = tmp_path / "layout.cpp"
    program.write_text("\n".join([f'#include "{emulator.HERE / "shim.h"}"', f'#include "{file}"', *checks]))
    command = ["g++", "-std=c++17", "-fsyntax-only", "-w", *defines, f"-I{emulator.KERNELS}", str(program)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def compiled_in(file: str) -> tuple[tuple[str, str | int], ...]:
    """What any kernel of this file is compiled with; headers need nothing."""
    return next((kernel.defines for kernel in cuda_budget.kernels() if kernel.source == file), ())


@pytest.mark.parametrize(
    "number", [1, 2, 3, 5, 6, 7, 9, 49, 641, 3136, 65535, 65536, 65537, 2**30 + 1, 2**31 - 1]
)
def test_division_by_multiplication_is_exact(number: int) -> None:
    divisor, magic, shift = geometry.divisor(number)
    assert divisor == number
    assert magic < 2**32
    rng = np.random.default_rng(number)
    multiples = np.arange(1, 2000) * number
    numerators = np.concatenate(
        [np.arange(2000), 2**31 - 1 - np.arange(2000), multiples, multiples - 1, rng.integers(0, 2**31, 5000)]
    )
    for n in numerators[numerators < 2**31].tolist():
        assert (n * magic >> 32 + shift if magic else n) == n // number


@needs_nvrtc
def test_the_cache_knows_source_headers_options_compiler_and_target(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [compiler.key(SMALL, "sm_80"), compiler.key(SMALL, "sm_90a")]
    keys.append(compiler.key(SMALL._replace(defines=(("SUM", "float64"), ("OUT", "float32"))), "sm_80"))
    texts = compiler.sources()
    for name in ("sum_parts.cu", "types.cuh"):
        with monkeypatch.context() as changed:
            changed.setitem(texts, name, texts[name] + "\n// changed")
            keys.append(compiler.key(SMALL, "sm_80"))
    with monkeypatch.context() as changed:
        changed.setitem(texts, "pool.cu", "")
        assert compiler.key(SMALL, "sm_80") == keys[0], "another kernel's source is no part of the key"
    monkeypatch.setattr(compiler, "version", lambda: (99, 0))
    keys.append(compiler.key(SMALL, "sm_80"))
    assert len(set(keys)) == len(keys)


@needs_nvrtc
def test_compiled_once_then_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk, "root", lambda: tmp_path)
    compiler.cubin.cache_clear()
    first = compiler.cubin(SMALL, "sm_80")
    assert first[:4] == b"\x7fELF"
    compiler.cubin.cache_clear()
    monkeypatch.setattr(compiler, "compile_now", None)  # calling it would raise
    assert compiler.cubin(SMALL, "sm_80") == first
    (found,) = tmp_path.rglob("*.cubin")
    found.write_bytes(found.read_bytes()[:-10])
    compiler.cubin.cache_clear()
    with pytest.raises(TypeError):  # half a file is no file: it would be compiled again
        compiler.cubin(SMALL, "sm_80")
    compiler.cubin.cache_clear()


@needs_nvrtc
def test_a_kernel_that_does_not_compile_shows_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        compiler.sources(), "broken.cu", 'extern "C" __global__ void broken() { nonsense(); }'
    )
    with pytest.raises(compiler.CompilationFailed, match=r"broken<> for sm_80: .*\n.*nonsense"):
        compiler.compile_now(Kernel("broken.cu", "broken", ()), "sm_80")


def test_only_hopper_has_its_own_letter() -> None:
    assert [compiler.architecture(c) for c in ("80", "89", "90", "100", "120")] == [
        "sm_80", "sm_89", "sm_90a", "sm_100", "sm_120",
    ]  # fmt: skip


def test_sources_are_header_free_and_assembly_has_one_home() -> None:
    for name, text in compiler.sources().items():
        includes = [line for line in text.splitlines() if line.startswith("#include")]
        assert all('.cuh"' in line for line in includes), f"{name} includes more than our own headers"
        assert name == "ptx.cuh" or "asm" not in text, f"{name} holds assembly, which belongs in ptx.cuh"
        assert not any(word in text for word in ("use_fast_math", "atomicAdd")), name


@pytest.mark.parametrize(
    "problem",
    ["n2 c4x6x7 k8x3x3 s2 p1 f32", "n2 c8x6x7 k8x3x3 s1 p1 f16", "max n2 c3x6x7 k2x2 s2 p0 indices f32"],
)
def test_plans_are_pure(problem: str) -> None:
    """The same problem and layout give the same launches, and nobody can write to them."""
    spec = parse(problem)
    for op in spec.ops:
        for planner in cupy.PLANNERS[op]:
            try:
                runs = [planner(spec, "default", None) for _ in range(2)]
            except ValueError:
                continue
            builds: list[Any] = [run.call.hopper for run in runs]  # type: ignore[attr-defined]
            first, second = (build(*cuda_budget.views(spec, op, False)) for build in builds)
            assert repr(first) == repr(second)
            assert builds[0](*cuda_budget.views(spec, op, False)) is first
            for launch in first.launches:
                assert not launch.params.flags.writeable
            assert first.workspace <= runs[0].shared
