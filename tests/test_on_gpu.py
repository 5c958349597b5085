"""What only a GPU can show. Run there as ``python -m pytest tests -m gpu --require-backend cupy``."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import gpu
from fastconv.backends import Unsupported, algorithms, backends, fetch, put
from fastconv.plan import Plan, plan
from fastconv.problems import PROBLEMS
from fastconv.spec import Op, parse
from fastconv.testing import assert_agrees, compare, operands, reference, tolerance
from tests import emulator, test_cuda_tensor_cores

STATE = backends()["cupy"]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(STATE != "available", reason=STATE)]

# Large enough for several tiles and parts, and for every kernel of the engine.
LAYERS = (
    "n4 c64x28x28 k96x3x3 s1 p1 f32",
    "n4 c64x28x28 k96x3x3 s1 p1 f16",
    "n4 c64x29x27 k64x3x3 s2 p1 g64 f32",
    "n2 c33x30x31 k65x3x3 s2 p1 bf16",
    "max n4 c64x29x28 k3x3 s2 p1 indices f32",
    "avg n4 c64x29x28 k3x3 s2 p1 f16",
    "n4 c64x28x32 k64x3x3 s1 p1 g64 f16",
)


def plans(problem: str) -> list[Plan]:
    """One for each op and algorithm that takes the problem."""
    spec, made = parse(problem), []
    for op in spec.ops:
        for algorithm in algorithms("cupy", op):
            try:
                made.append(plan(spec, op, "cupy", algorithm))
            except Unsupported:
                continue
    return made


@pytest.mark.parametrize("problem", PROBLEMS["edges"])
def test_agrees_with_the_definition(problem: str) -> None:
    made = plans(problem)
    assert {each.op for each in made} == set(parse(problem).ops)
    for each in made:
        for kind in ("integers", "normal"):
            assert_agrees(each, kind)


@pytest.mark.parametrize("problem", LAYERS)
def test_layers_agree_with_the_host(problem: str) -> None:
    """Larger ones, against im2col in float64, whose agreement with the definition is tested elsewhere."""
    for made in plans(problem):
        given = operands(made.spec, made.op)
        result = made(*(put("cupy", array) for array in given))
        expected = reference(made.spec, made.op, given, backend="im2col")
        if not isinstance(result, tuple):
            result, expected = (result,), (expected,)
        for one, other in zip(result, expected, strict=True):
            error, detail = compare(fetch("cupy", one), other, tolerance(made, given))
            assert not detail, f"{made.algorithm} {made.op} is off by {error}: {detail}"


@pytest.mark.skipif(gpu.cudnn() is not None, reason=str(gpu.cudnn()))
@pytest.mark.parametrize("problem", [problem for problem in LAYERS if " k" in problem and problem[0] == "n"])
def test_cudnn_is_one_of_them(problem: str) -> None:
    """So the tests around this one run it; here with channels last, and operands that it does not read in place."""
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        assert "cudnn" in {made.algorithm for made in plans(problem) if made.op is op}
        made = plan(parse(problem), op, "cupy", "cudnn")
        given = operands(made.spec, op)
        expected = _bits(made(*(put("cupy", array) for array in given)))
        last = np.moveaxis(np.moveaxis(given[0], 1, -1).copy(), -1, 1)
        for array in (last, given[0][..., ::-1].copy()):
            moved = put("cupy", array)
            if array is not last:
                moved = moved[..., ::-1]
            _, detail = compare(
                fetch("cupy", made(moved, put("cupy", given[1]))),
                np.frombuffer(expected, given[0].dtype).reshape(made.spec.shapes(op)[-1].shape),
                2 * tolerance(made, given),
            )
            assert not detail, f"{op}: {detail}"


@pytest.mark.parametrize("problem", LAYERS)
def test_the_same_bits_ten_times_and_on_two_streams(problem: str) -> None:
    import cupy

    for made in plans(problem):
        given = [put("cupy", array) for array in operands(made.spec, made.op)]
        first = _bits(made(*given))
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        cupy.cuda.Device().synchronize()
        for turn in range(10):
            with streams[turn % 2]:
                assert _bits(made(*given)) == first, f"{made.algorithm} {made.op}"


def _bits(result: Any) -> bytes:
    return b"".join(
        fetch("cupy", array).tobytes() for array in (result if isinstance(result, tuple) else (result,))
    )


@pytest.mark.parametrize("problem", LAYERS)
def test_a_warm_call_can_be_captured(problem: str) -> None:
    """No synchronisation, no allocation outside of the pool, nothing compiled: a CUDA graph replays it.

    But for products of cuBLAS, which CuPy refuses to call meanwhile.
    """
    import cupy

    for made in plans(problem):
        if made.op in (Op.UNPOOL, Op.UNPOOL_INPUT_GRAD) or "indices" in [
            s.name for s in made.spec.shapes(made.op)[:-1]
        ]:
            continue  # indices are checked on the host before they are used
        given = [put("cupy", array) for array in operands(made.spec, made.op)]
        expected, result = _bits(made(*given)), None
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            made(*given)
            stream.begin_capture()
            try:
                if made.algorithm == "im2col":
                    with pytest.raises(NotImplementedError, match="cuBLAS"):
                        made(*given)
                else:
                    result = made(*given)
            finally:  # whatever failed: a stream left capturing fails the tests after this one
                graph = stream.end_capture()
            if result is not None:
                graph.launch()
                stream.synchronize()
                assert _bits(result) == expected, f"{made.algorithm} {made.op}"


@pytest.mark.parametrize("problem", LAYERS)
def test_the_pool_grows_by_what_the_plan_says(problem: str) -> None:
    import cupy

    for made in plans(problem):
        given = [put("cupy", array) for array in operands(made.spec, made.op)]
        out = made(*given)
        results = out if isinstance(out, tuple) else (out,)
        bias = (None,) if made.op in (Op.CONV, Op.CONV_INPUT_GRAD) else ()
        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        made.run.call(*given, *bias, *results)  # past the check of indices, which takes some itself
        cupy.cuda.Device().synchronize()
        # The pool hands out blocks of 512 bytes: one for our scratch, up to six for what `cupy.matmul` takes beside it.
        assert pool.total_bytes() - before <= made.workspace + 7 * 512, f"{made.algorithm} {made.op}"


def test_tf32_is_used_only_on_request() -> None:
    """A sum that 11-bit operands get wrong comes out exactly, by three products of them too."""
    x = put("cupy", np.full((1, 64, 8, 8), 1 + 2.0**-12, "f4"))
    w = put("cupy", np.ones((64, 64, 1, 1), "f4"))
    for algorithm in algorithms("cupy", Op.CONV):
        try:
            y = fc.conv2d(x, w, algorithm=algorithm)
        except Unsupported:
            continue
        np.testing.assert_array_equal(fetch("cupy", y), np.full((1, 64, 8, 8), 64 * (1 + 2.0**-12), "f4"))


@pytest.mark.parametrize("check", test_cuda_tensor_cores.CHECKS)
def test_three_products_of_tf32(check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the emulation shows of them: how near they are, what is exact, infinities and NaN."""

    def multiplied(a: Any, b: Any) -> Any:
        spec = parse(f"n1 c{a.shape[1]}x{b.shape[1]} k{a.shape[0]}x1 s1 p0 f32")
        made = plan(spec, Op.CONV, "cupy", "implicit_gemm_mma", workspace_limit=0)
        return fetch("cupy", made(put("cupy", b[None]), put("cupy", np.ascontiguousarray(a[:, :, None]))))[0]

    monkeypatch.setattr(test_cuda_tensor_cores, "multiplied", multiplied)
    check()


def test_wrappers_of_instructions_mean_the_same_on_both_machines() -> None:
    """Every half and bfloat16 there is, widened, and floats between them narrowed, on the device and in NumPy."""
    bits = np.arange(2**16, dtype="u2")
    halves = bits.view("f2").reshape(1, 1, 256, 256)
    w = np.ones((1, 1, 1, 1), "f2")
    made = fc.conv2d(put("cupy", halves), put("cupy", w), algorithm="implicit_gemm")
    np.testing.assert_array_equal(fetch("cupy", made), halves)  # NaN equals NaN here
    wide = fc.avg_pool2d(put("cupy", halves[..., :255, :]), 1)
    np.testing.assert_array_equal(fetch("cupy", wide), halves[..., :255, :])


# Small enough for compute-sanitizer, under which a kernel takes a hundred times as long: two tiles, every stage, edges.
SANITIZED = (
    "n1 c16x9x8 k72x3x3 s1 p1 f16",
    "n1 c9x6x7 k70x3x2 s2x1 p1 f32",
    "n2 c4x9x8 k4x3x3 s1 p1 g4 f16",
    "n2 c4x9x7 k4x3x3 s2 p1 g4 f32",
    "max n1 c33x9x7 k3x3 s2 p1 indices f32",
    "avg n2 c3x8x8 o1x1 f16",
)


def run_sanitized() -> None:
    """Every algorithm of ours on small problems, images in C order and channels last; others' kernels are not ours to look into.

    Once by the estimates, once turned and by warpgroups wherever that may be.
    """
    for cost in (contextlib.nullcontext(), emulator.at_any_cost()):
        with cost:
            for problem in SANITIZED:
                spec = parse(problem)
                for op in spec.ops:
                    for algorithm in set(algorithms("cupy", op)) - {"cudnn", "im2col"}:
                        with contextlib.suppress(Unsupported):
                            run_exactly(plan(spec, op, "cupy", algorithm))


def run_exactly(made: Plan) -> None:
    """Whole numbers come out exactly, of images in either order."""
    given = operands(made.spec, made.op, "integers")
    expected = reference(made.spec, made.op, given)
    moved = np.moveaxis(np.moveaxis(given[0], 1, -1).copy(), -1, 1)
    for first in (given[0], moved):
        result = made(*(put("cupy", array) for array in (first, *given[1:])))
        pairs = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
        for one, other in pairs:
            _, detail = compare(fetch("cupy", one), other, 0.0)
            assert not detail, f"{made.algorithm} {made.op} of {made.spec}: {detail}"


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    code = "from tests.test_on_gpu import run_sanitized; run_sanitized()"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("problem", LAYERS[:4])
def test_agrees_with_cudnn(problem: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    torch.backends.cudnn.allow_tf32 = False
    spec: Any = parse(problem)
    made = plan(spec, Op.CONV, "cupy")
    given = operands(spec, Op.CONV, "integers")
    ours = fetch("cupy", made(*(put("cupy", array) for array in given)))
    theirs = torch.nn.functional.conv2d(
        *(torch.from_numpy(array.astype("f8")).cuda() for array in given),
        None, spec.stride, tuple(before for before, _ in spec.padding), spec.dilation, spec.groups,
    )  # fmt: skip
    _, detail = compare(ours, theirs.cpu().numpy(), tolerance(made, given))
    assert not detail, detail
