"""What every CUDA kernel may cost: registers, shared memory and the instructions that matter, for each architecture.

``cuda_budget.json`` holds it, and its diff is read in review. ``python -m tests.cuda_budget`` writes it anew.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fastconv import gpu
from fastconv.backends import Unsupported, cupy
from fastconv.backends.cupy.compile import cubin
from fastconv.backends.cupy.geometry import MASKED
from fastconv.backends.cupy.launch import Kernel, View
from fastconv.backends.cupy.pooling import CHANNELS
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, Shape, Spec, parse
from tests.emulator import cudnn

FILE = Path(__file__).with_suffix(".json")

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")

# Where instructions are read too: disassembling takes three times as long as compiling, and what a kernel is made of
# hardly differs between them.
DISASSEMBLED = "sm_90a"

# Sources whose instructions one architecture alone has.
HOPPER, OF_HOPPER = "sm_90a", ("implicit_gemm_wgmma.cu",)

# Layers that ask for the tiles of large problems, which no edge problem does, and pools of many channels, whole planes and
# bins whose borders are found in 64 bits.
LARGE = (
    "n32 c256x56x56 k256x3x3 s1 p1 f32",
    "n32 c64x56x56 k64x1x1 s1 p0 f32",
    "n32 c64x56x56 k64x1x1 s1 p0 f16",
    "n32 c256x56x56 k256x3x3 s1 p1 f16",
    "n32 c256x14x14 k256x3x3 s1 p1 f16",
    "n32 c64x112x112 k128x3x3 s1 p1 f16",
    "n32 c128x28x28 k128x3x3 s2 p1 f16",
    "n32 c128x28x28 k128x3x3 s1 p1 bf16",
    "n32 c64x28x28 k64x3x3 s1 p1 f64",
    "n32 c32x112x112 k32x3x3 s1 p1 g32 f32",
    "n32 c64x112x112 k64x3x3 s2 p1 g64 f16",
    "n32 c256x14x14 k256x3x3 s1 p1 g256 bf16",
    "n32 c64x56x56 k64x7x7 s1 p3 g64 f32",
    "n32 c64x28x28 k64x3x3 s1 p2 d2 g64 f32",
    "max n32 c64x112x112 k3x3 s2 p1 f32",
    "max n32 c64x112x112 k3x3 s2 p1 indices f16",
    "max n32 c64x112x112 k2x2 s2 p0 indices f32",
    "max n32 c64x112x112 k2x2 s2 p0 f16",
    "avg n32 c64x28x28 k3x3 s1 p1 f32",
    "avg n32 c2048x7x7 o1x1 f32",
    "avg n32 c64x56x56 o1x1 f16",
    "avg n1 c1x3000000 o1001 f32",
)

# Instructions worth knowing about; LDL and STL, spills, are not even looked up: their bytes must be 0.
TELLING = re.compile(
    r"(?:FFMA2?|DFMA|HMMA|IMMA|DMMA|HGMMA|LDSM|LDGSTS(?:[\w.]*\.128)?|LDG\.E\.128|LDS\.128|BAR|SHFL|ATOMG?|REDG?"
    r"|MUFU)\b"
)


def missing() -> str | None:
    """Why machine code cannot be made and read here, or None."""
    if gpu.nvrtc() is None:
        return "NVRTC is not installed: pip install 'fastconv[cubin]'"
    if tools() is None:
        return "cuobjdump and nvdisasm are not installed: pip install 'fastconv[cubin]'"
    return None


@cache
def tools() -> Path | None:
    """The folder NVIDIA's wheels put their programs in."""
    spec = find_spec("nvidia")
    roots = spec.submodule_search_locations or [] if spec else []
    found = [path.parent for root in roots for path in Path(root).glob("*/bin/cuobjdump")]
    return next((folder for folder in found if (folder / "nvdisasm").exists()), None)


class Cost(NamedTuple):
    """What one kernel costs on one architecture."""

    registers: int
    shared: int
    local: int
    stack: int
    opcodes: tuple[str, ...]

    def __str__(self) -> str:
        opcodes = f"; {' '.join(self.opcodes)}" if self.opcodes else ""
        return f"{self.registers} registers, {self.shared} shared{opcodes}"


def cost(kernel: Kernel, arch: str) -> Cost:
    """Compiled (or found on disk), and read back from the machine code."""
    folder = tools()
    assert folder is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin(kernel, arch))
        file.flush()
        usage = _output(folder / "cuobjdump", "--dump-resource-usage", file.name)
        assembly = _output(folder / "nvdisasm", "-c", file.name) if arch == DISASSEMBLED else ""
    numbers = {name: int(value) for name, value in re.findall(r"(REG|SHARED|LOCAL|STACK):(\d+)", usage)}
    opcodes = set(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", assembly, re.M))
    telling = sorted({found[0] for opcode in opcodes if (found := TELLING.match(opcode))})
    return Cost(numbers["REG"], numbers["SHARED"], numbers["LOCAL"], numbers["STACK"], tuple(telling))


def _output(program: Path, *arguments: str) -> str:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True).stdout


def views(spec: Spec, op: Op, channels_last: bool, bias: bool = True) -> list[View | None]:
    """Layouts of a call's arrays: C order, or images with channels last."""
    *operands, result = (_view(shape, channels_last) for shape in spec.shapes(op))
    if op in (Op.CONV, Op.CONV_INPUT_GRAD):
        return [*operands, View((1,), True) if bias else None, result]
    return [*operands, result]


def _view(shape: Shape, channels_last: bool) -> View:
    sizes = shape.shape
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if channels_last and shape.name in ("input", "grad_output"):
        strides = [strides[0], 1, *(stride * sizes[1] for stride in strides[2:])]
    return View(tuple(strides), True)


def programs(problems: tuple[str, ...] = (*PROBLEMS["edges"], *LARGE)) -> list[tuple[Spec, Op, str, Any]]:
    """Every program of the CuPy engine for these problems, those around cuDNN's graphs too."""
    with cudnn.installed():
        return list(_programs(problems))


def _programs(problems: tuple[str, ...]) -> Iterator[tuple[Spec, Op, str, Any]]:
    for problem in problems:
        spec = parse(problem)
        for op in spec.ops:
            for planner in cupy.PLANNERS[op]:
                for precision in ("default", "tf32"):
                    try:
                        call: Any = planner(spec, precision, None).call
                    except Unsupported:
                        continue
                    # Few channels that lie last are read as any strides are.
                    for last in (
                        (False, True) if isinstance(spec, ConvSpec) or spec.channels >= CHANNELS else (False,)
                    ):
                        for build in dict.fromkeys((call.build, call.hopper)):
                            yield spec, op, planner.__name__, build(*views(spec, op, last))


@cache
def kernels() -> tuple[Kernel, ...]:
    """Every kernel of these programs, each once, in the order of their names."""
    found = {launch.kernel for *_, program in programs() for launch in program.launches}
    return tuple(sorted(found, key=str))


def plain() -> tuple[Kernel, ...]:
    """Those of float32 that know no padding but zeros: one or two of each source, enough for every run of the tests."""
    types = ("IN", "SUM", "OUT", "GRAD", "TYPE")
    return tuple(
        kernel
        for kernel in kernels()
        if all(value == "float32" for name, value in kernel.defines if name in types)
        and dict(kernel.defines).get("PADDING", 0) in (0, MASKED)
    )


def costs(archs: tuple[str, ...], chosen: tuple[Kernel, ...] | None = None) -> dict[str, dict[str, Cost]]:
    """Of kernels (all of them by default) on each of the architectures; NVRTC works on two at a time."""
    jobs = [
        (kernel, arch)
        for kernel in chosen or kernels()
        for arch in archs
        if arch == HOPPER or kernel.source not in OF_HOPPER
    ]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda job: cost(*job), jobs))
    found: dict[str, dict[str, Cost]] = {}
    for (kernel, arch), each in zip(jobs, made, strict=True):
        found.setdefault(str(kernel), {})[arch] = each
    return found


def budget() -> dict[str, dict[str, str]]:
    """What the file says."""
    read: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return read


if __name__ == "__main__":
    table = {
        name: {arch: str(each) for arch, each in row.items()} for name, row in costs(ARCHITECTURES).items()
    }
    FILE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
