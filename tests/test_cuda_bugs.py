"""The emulation finds bugs: seeded ones are each caught, the unchanged sources pass the same checks.

Every check runs in a process of its own: built plainly (wrong results, NaN of shared memory nobody wrote, deadlocks), with
AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer, to which every CUDA thread is a thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import emulator

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))

# How kernels are built, and the libraries that must be there before any other.
CHECKS = {
    "plain": ("", ()),
    "address": (
        "-g -fsanitize=address,undefined -fno-sanitize-recover=all -fsanitize-sections=shared_memory",
        ("libasan.so", "libubsan.so"),
    ),
    "thread": ("-g -fsanitize=thread", ("libtsan.so",)),
}

TENSOR_CORES = (
    "implicit_gemm_mma L n1 c16x5x6 k9x3x3 s1 p1 f16"  # five steps of k in four stages, ragged m and j
)

WARPGROUPS = (
    "implicit_gemm_mma H n1 c16x5x6 k40x3x3 s1 p1 f16"  # six steps of the input's gradient in four stages
)


class Bug(NamedTuple):
    """One line of a kernel changed, the check that finds it, words of its report, and the call that shows it."""

    file: str
    line: str
    changed: str
    check: str
    report: str
    call: str = TENSOR_CORES


BUGS = {
    "missing barrier": Bug(
        "implicit_gemm_mma.cu",
        "wait_for_copies<STAGES - 2>();\n        __syncthreads();",
        "wait_for_copies<STAGES - 2>();",
        "thread",
        "data race",
    ),
    "wait off by one": Bug(
        "implicit_gemm_mma.cu",
        "wait_for_copies<STAGES - 2>();",
        "wait_for_copies<STAGES - 1>();",
        "plain",
        "nan location mismatch",
    ),
    "stage overwritten": Bug(
        "implicit_gemm_mma.cu",
        "wait_for_copies<STAGES - 2>();\n        __syncthreads();\n        const int next = step + STAGES - 1;\n"
        "        fetch_next(next, steps);",
        "wait_for_copies<STAGES - 2>();\n        const int next = step + STAGES - 1;\n"
        "        fetch_next(next, steps);\n        __syncthreads();",
        "thread",
        "data race",
    ),
    "missing h bound": Bug(
        "product.cuh",
        "if ((unsigned)at >= (unsigned)p.size[axis])",
        "if ((axis == 1 ? 0u : (unsigned)at) >= (unsigned)p.size[axis])",
        "address",
        "heap-buffer-overflow",
    ),
    "missing K bound": Bug(
        "tile.cuh",
        "min(tile.first_k + p.part, p.K)",
        "tile.first_k + p.part",
        "plain",
        "Mismatched elements",
    ),
    "unguarded store": Bug("tile.cuh", "if (m >= p.M) return;", "", "address", "heap-buffer-overflow"),
    "wrong swizzle": Bug(
        "implicit_gemm_mma.cu",
        "gathered_tile + swizzled(row, chunk + lane / 8 % 2)",
        "gathered_tile + row * ROW_BYTES + (chunk + lane / 8 % 2) * 16",
        "plain",
        "Mismatched elements",
    ),
    "early exit": Bug(
        "implicit_gemm_mma.cu",
        "    float sums[FRAGMENTS_M]",
        "    if (tile.m + warp_m >= p.M) return;\n    float sums[FRAGMENTS_M]",
        "plain",
        "deadlock",
    ),
    "warpgroups: missing barrier": Bug(
        "implicit_gemm_wgmma.cu",
        "show_copies();\n        __syncthreads();",
        "show_copies();",
        "plain",
        "nan location mismatch",
        WARPGROUPS,
    ),
    "warpgroups: wait off by one": Bug(
        "implicit_gemm_wgmma.cu",
        "wait_for_copies<AHEAD - 1>();",
        "wait_for_copies<AHEAD>();",
        "plain",
        "a tile changed while it was multiplied",
        WARPGROUPS,
    ),
    "warpgroups: a stage is refilled while it is multiplied": Bug(
        "implicit_gemm_wgmma.cu",
        "#define AHEAD (STAGES - 2)",
        "#define AHEAD STAGES",
        "plain",
        "a tile changed while it was multiplied",
        WARPGROUPS,
    ),
    "warpgroups: copies are not shown": Bug(
        "implicit_gemm_wgmma.cu", "        show_copies();\n", "", "plain", "were not shown", WARPGROUPS
    ),
    "warpgroups: products are not waited for": Bug(
        "implicit_gemm_wgmma.cu",
        "    wait_for_products<0>(sums);\n",
        "",
        "plain",
        "Mismatched elements",
        WARPGROUPS,
    ),
    "warpgroups: wrong swizzle": Bug(
        "implicit_gemm_wgmma.cu",
        "(chunk ^ row % CHUNKS)",
        "(chunk ^ row / 2 % CHUNKS)",
        "plain",
        "Mismatched elements",
        WARPGROUPS,
    ),
    "turned images: wrong swizzle": Bug(
        "channels_last.cu",
        "[j / VECTOR ^ c / VECTOR].numbers",
        "[j / VECTOR ^ c % VECTOR].numbers",
        "plain",
        "Arrays are not equal",
        "implicit_gemm_mma T n1 c16x9x8 k72x3x3 s1 p1 f16",
    ),
    "turned images: missing barrier": Bug(
        "channels_last.cu",
        "    __syncthreads();\n",
        "",
        "thread",
        "data race",
        "implicit_gemm_mma T n1 c16x9x8 k72x3x3 s1 p1 f16",
    ),
}


@cache
def library(name: str) -> str:
    """Where g++ keeps one of its libraries."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def checked(folder: Path, check: str, *calls: str) -> subprocess.CompletedProcess[str]:
    """These calls of the kernels in `folder` under one of the checks."""
    flags, libraries = CHECKS[check]
    paths = [library(name) for name in libraries]
    if not all(Path(path).is_absolute() for path in paths):
        pytest.skip(f"g++ has no {' or '.join(libraries)}")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.emulator", str(folder), flags, *calls]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_caught(bug: str, tmp_path: Path) -> None:
    file, line, changed, check, report, call = BUGS[bug]
    folder = tmp_path / "kernels"
    shutil.copytree(emulator.KERNELS, folder)
    text = (folder / file).read_text()
    assert text.count(line) == 1, f"{file} no longer has the line to break: {line}"
    (folder / file).write_text(text.replace(line, changed))
    found = checked(folder, check, call)
    assert found.returncode != 0, "nobody noticed"
    assert report in found.stderr, found.stderr
    if check != "plain":
        assert ".cu:" in found.stderr, "the report names no line of a kernel"


@pytest.mark.parametrize("check", CHECKS)
def test_the_unchanged_kernels_pass(check: str) -> None:
    found = checked(
        emulator.KERNELS,
        check,
        TENSOR_CORES,
        WARPGROUPS,
        "implicit_gemm_mma T n1 c16x9x8 k72x3x3 s1 p1 f16",  # turned
        "implicit_gemm_mma C n2 c10x5x6 k12x3x2 s2x1 p1 g2 bf16",
        "implicit_gemm_mma C n1 c5x5x6 k9x3x3 s1 p1 f32",
        "implicit_gemm_mma C n1 c5x4x4 k9x1x1 s1 p0 f16",
        "implicit_gemm L n1 c5x5x6 k9x3x3 s1 p1 f32",
        "depthwise C n1 c4x7x6 k4x3x3 s1 p1 g4 f32",
        "depthwise C n2 c2x5x8 k4x3x3 s1 p1 g2 f16",  # whole vectors
        "depthwise L n1 c2x3x5 k2x3x3 s1 p2 g2 circular f32",  # a tile wider than what is padded
        "every C max n1 c2x7x6 k3x3 s2 p1 indices f32",
        "every L max n1 c33x11x7 k3x3 s2 p1 indices f32",
        "every C avg n2 c3x8x8 o1x1 f32",
    )
    assert found.returncode == 0, found.stderr
