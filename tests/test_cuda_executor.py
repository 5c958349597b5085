"""The executor and everything above it, with a stand-in for CuPy whose kernels run on the CPU."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from benchmarks import gpu as gpu_benchmark
from fastconv import api, arguments, disk, recall, testing
from fastconv.backends import _BACKENDS, _Row
from fastconv.backends.cupy import columns, product
from fastconv.backends.cupy import compile as compiler
from fastconv.backends.cupy import run as executor
from fastconv.backends.cupy.launch import Kernel
from fastconv.compare import Comparison, measure, problems, report
from fastconv.compare.machine import describe
from fastconv.plan import plan
from fastconv.spec import Op, parse
from tests import emulator
from tests.emulator.device import Memory, Module, ndarray

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """CuPy is there, and so is a device."""
    module = Module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(_BACKENDS, "cupy", _Row("fastconv.backends.cupy", "cupy"))
    monkeypatch.setattr(compiler, "cubin", lambda kernel, arch: pickle.dumps(kernel))
    monkeypatch.setattr(executor, "_loaded", {})
    monkeypatch.setattr(api, "_memory", recall.Memory())
    plan.cache_clear()
    yield module
    plan.cache_clear()


def random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


def both(function: Callable[..., Any], *arrays: Any, algorithm: str = "auto") -> None:
    """The same integers from the device as from the host, bit for bit."""
    whole = [None if a is None else np.rint(4 * a).astype(a.dtype) for a in arrays]
    expected = function(*whole, backend="im2col")
    given = [None if a is None else ndarray(a) for a in whole]
    made = function(*given, algorithm=algorithm)
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (made, expected)), strict=True):
        assert isinstance(one, ndarray)
        np.testing.assert_array_equal(one.host, other)


@pytest.mark.parametrize("algorithm", ["implicit_gemm", "im2col"])
def test_convolution_and_gradients(device: Module, algorithm: str) -> None:
    x, w, b = random(2, 4, 6, 7), random(6, 4, 3, 3), random(6)
    both(lambda *a, **k: fc.conv2d(a[0], a[1], a[2], 2, 1, **k), x, w, b, algorithm=algorithm)
    both(
        lambda *a, **k: fc.conv_transpose2d(a[0], a[1], a[2], 2, **k),
        x,
        random(4, 3, 3, 2),
        random(3),
        algorithm=algorithm,
    )
    dy = random(2, 6, 4, 5)
    both(lambda x, dy, **k: fc.grad.conv2d_weight(x, w.shape, dy, **k), x, dy, algorithm=algorithm)
    both(lambda w, dy, **k: fc.grad.conv2d_input(x.shape, w, dy, **k), w, dy, algorithm=algorithm)


def test_pools_and_columns(device: Module) -> None:
    x = random(2, 3, 6, 8)
    both(lambda x, **k: fc.max_pool2d(x, 3, 2, padding=1, return_indices=True, **k), x)
    both(lambda x, **k: fc.avg_pool2d(x, 2, **k), x)
    both(lambda x, **k: fc.unfold(x, 3, padding=1, **k), x)
    both(lambda dy, x, **k: fc.grad.max_pool2d(dy, x, 2, **k), random(2, 3, 3, 4), x)


def test_an_unpool_that_names_a_place_twice(device: Module) -> None:
    values, indices = ndarray(random(1, 1, 2, 2)), ndarray(np.array([[[[0, 5], [5, 15]]]], "i8"))
    made = fc.max_unpool2d(values, indices, 2)
    expected = fc.max_unpool2d(values.host, indices.host, 2, backend="naive")
    np.testing.assert_array_equal(made.host, expected)


def test_nothing_is_loaded_or_built_after_the_first_call(
    device: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph needs of a call that is captured."""
    x, w = ndarray(random(1, 2, 5, 5)), ndarray(random(3, 2, 3, 3))
    first = fc.conv2d(x, w)
    monkeypatch.setattr(compiler, "cubin", None)
    monkeypatch.setattr(executor, "load", None)
    np.testing.assert_array_equal(fc.conv2d(x, w).host, first.host)


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_a_call_like_an_earlier_one_goes_straight_to_its_kernel(
    device: Module, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Other numbers in the same shapes, types and strides are not checked again; other strides are."""
    calls: list[tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = [
        (lambda x, w, **k: fc.conv2d(x, w, padding=1, **k), ((2, 3, 5, 6), (4, 3, 3, 3))),
        (lambda x, w, b, **k: fc.conv2d(x, w, b, 2, **k), ((2, 3, 5, 6), (4, 3, 3, 3), (4,))),
        (lambda dy, w, **k: fc.grad.conv2d_input((2, 3, 5, 6), w, dy, **k), ((2, 4, 3, 4), (4, 3, 3, 3))),
        (lambda x, dy, **k: fc.grad.conv2d_weight(x, (4, 3, 3, 3), dy, **k), ((2, 3, 5, 6), (2, 4, 3, 4))),
        (lambda x, **k: fc.max_pool2d(x, 2, **k), ((2, 3, 4, 6),)),
        (lambda x, w, **k: fc.conv_transpose2d(x, w, None, 2, **k), ((2, 3, 4, 5), (3, 4, 2, 2))),
    ]

    def refuse(given: Any) -> None:
        raise AssertionError("its arguments were checked")

    for function, shapes in calls:
        first, other = ([np.rint(k * random(*shape)).astype(dtype) for shape in shapes] for k in (4, -3))
        expected = function(*other, backend="naive")
        function(*map(ndarray, first))
        with monkeypatch.context() as later:
            later.setattr(arguments, "options", refuse)
            np.testing.assert_array_equal(function(*map(ndarray, other)).host, expected)
            turned = ndarray(np.moveaxis(np.moveaxis(other[0], 1, -1).copy(), -1, 1))
            with pytest.raises(AssertionError, match="its arguments were checked"):
                function(turned, *map(ndarray, other[1:]))
        np.testing.assert_array_equal(function(turned, *map(ndarray, other[1:])).host, expected)


def test_a_gradient_with_its_channels_last_is_read_where_it_lies(
    device: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 bits, by whole vectors; any other order is brought into C order first, and so is float32.

    From C order it is turned again, in scratch, where that pays.
    """
    w, dy = (np.rint(4 * random(*shape)).astype("f2") for shape in ((16, 3, 3, 3), (2, 16, 5, 6)))
    expected = fc.grad.conv2d_input((2, 3, 7, 8), w, dy, backend="naive")
    last = np.moveaxis(np.moveaxis(dy, 1, -1).copy(), -1, 1)
    across = dy.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0)
    for given, cost, whole, turned in (
        (across, contextlib.nullcontext(), 0, False),
        (across, emulator.at_any_cost(), None, True),
        (last, contextlib.nullcontext(), 1, False),
        (last, emulator.at_any_cost(), None, False),
    ):
        executor._loaded.clear()
        monkeypatch.setattr(api, "_memory", recall.Memory())
        with cost:
            made = fc.grad.conv2d_input((2, 3, 7, 8), ndarray(w), ndarray(given))
        np.testing.assert_array_equal(made.host, expected)
        kernels = {kernel.name: dict(kernel.defines) for _, kernel in executor._loaded}
        assert ("channels_last" in kernels) == turned
        assert ("implicit_gemm_wgmma" in kernels) == (whole is None)
        if whole is not None:
            assert kernels["implicit_gemm_mma"]["GATHERED_WHOLE"] == whole
    both(lambda dy, w, **k: fc.grad.conv2d_input((2, 3, 7, 8), w, dy, **k), last.astype("f4"), w.astype("f4"))


def test_scratch_is_what_the_plan_says(device: Module) -> None:
    x, dy = ndarray(random(2, 4, 48, 48)), ndarray(random(2, 4, 46, 46))
    made = plan(parse("n2 c4x48x48 k4x3x3 s1 p0 f32"), Op.CONV_WEIGHT_GRAD, "cupy", "implicit_gemm")
    fc.grad.conv2d_weight(x, (4, 4, 3, 3), dy, algorithm="implicit_gemm")
    assert device.allocated == [made.workspace]
    assert made.workspace > 0


@pytest.mark.parametrize("groups", [1, 2])
def test_what_cupy_takes_for_a_product_is_scratch_too(device: Module, groups: int) -> None:
    """Beside our own: its copy of an operand in another than C order, its pointers to matrices."""
    spec = parse(f"n3 c4x9x8 k6x3x3 s1 p1 g{groups} f32")
    for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
        given = [ndarray(array) for array in testing.operands(spec, op)]
        free = plan(spec, op, "cupy", "im2col").workspace
        for limit in (free, free - 1):
            made = plan(spec, op, "cupy", "im2col", workspace_limit=limit)
            device.allocated.clear()
            made(*given)
            own, *products = device.allocated
            taken = own + max(products)
            assert taken <= made.workspace <= limit
            assert made.workspace - taken <= columns.POINTERS * 3 * groups


def test_host_and_device_do_not_mix(device: Module) -> None:
    x, w = random(1, 2, 5, 5), random(3, 2, 3, 3)
    with pytest.raises(
        TypeError, match="backend: 'cupy' works on cupy arrays, got numpy arrays; nothing is copied"
    ):
        fc.conv2d(x, w, backend="cupy")
    with pytest.raises(TypeError, match="weight: got a numpy array where input is a cupy array"):
        fc.conv2d(ndarray(x), w)


def test_shared_memory_is_asked_for(device: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 KiB too: what a kernel declares itself comes on top."""
    code = pickle.dumps(Kernel("sum_parts.cu", "sum_parts", (("SUM", "float32"), ("OUT", "float32"))))
    for shared in (0, 48 * 1024, 100_000):
        assert executor.load(code, "sum_parts", shared).max_dynamic_shared_size_bytes == shared
    planner = sys.modules[
        "fastconv.backends.cupy.implicit_gemm_mma"
    ]  # the package has a function of that name
    monkeypatch.setattr(planner, "warp_tiles_of", lambda *given: product.warp_tiles_of(*given)[:1])
    made = plan(parse("n1 c8x5x6 k9x1x1 s1 p0 f16"), Op.CONV, "cupy", "implicit_gemm_mma")
    assert "128x128" in str(made)
    testing.assert_agrees(made)


@pytest.mark.parametrize("problem", ["n2 c4x5x6 k4x3x3 s2 p1 g2 f16", "max n1 c2x5x6 k2x2 s2 p0 indices f32"])
def test_a_plan_is_checked_on_the_device(device: Module, problem: str) -> None:
    """``fastconv check`` carries operands there and results back."""
    agreements = list(testing.checks(["cupy"], [problem]))
    assert agreements
    assert all(agreement.ok for agreement in agreements)


def test_a_comparison_has_rows_of_the_device(device: Module) -> None:
    """Timed to the end of the stream, transfers apart."""
    (case,) = problems(["n1 c2x8x8 k3x3x3 s1 p1 f32"])
    rows = list(measure.time_case(case, ["cupy", "im2col"], 2, measure.Progress()))
    there = {row.algorithm: row for row in rows if row.backend == "cupy"}
    assert list(there) == ["implicit_gemm_mma", "implicit_gemm", "im2col"]
    assert all(row.agrees and row.transfer and row.seconds for row in there.values())
    assert all(row.transfer is None for row in rows if row.backend == "im2col")
    assert [row.chosen for row in there.values()] == [False, True, False]
    run = Comparison(describe(), "", rows)
    assert "operands there and results back take" in " ".join(report.summary(run))


CARD = {
    "name": "A card", "driver": 13000, "commit": "0123456789abcdef", "copy": 4e12, "call": 15e-6,
    "peak": {"float32": 50e12, "float16": 600e12, "bfloat16": 600e12},
}  # fmt: skip


def row(problem: str, op: str, ours: float, last: float, theirs: float, copy: float) -> dict[str, Any]:
    """One op of a layer as it is measured."""
    seconds = {"implicit_gemm": ours, "cuDNN": 2 * theirs, "cuDNN channels_last": theirs}
    seconds |= {"implicit_gemm channels last": last, "implicit_gemm_mma": 3e-4, "cudnn": 2.5e-4}
    seconds["cudnn channels last"] = 2.4e-4
    return {
        "problem": problem, "op": op, "chosen": "implicit_gemm", "workspace": {"implicit_gemm": 0},
        "seconds": seconds, "copy": copy, "checked": True,
    }  # fmt: skip


def test_the_page_of_a_card_shows_losses() -> None:
    layers = [
        row("n32 c64x56x56 k64x3x3 s1 p1 f32", "conv", 4e-4, 5e-4, 2e-4, 1e-4),
        row("n32 c64x56x56 k64x3x3 s1 p1 f32", "conv input grad", 1e-4, 3e-4, 2e-4, 1e-5),
        row("n32 c64x56x56 k64x1x1 s1 p0 f16", "conv", 8e-5, 4e-5, 2e-5, 1e-5),
        row("max n32 c64x112x112 k3x3 s2 p1 indices f32", "pool input grad", 4e-5, 6e-5, 1e-4, 3e-5),
    ]
    layers[1]["chosen_then"] = "im2col"
    failed = ["n32 c64x56x56 k64x1x1 s1 p0 f32, conv: AssertionError: off by 3"]
    results = {"card": CARD, "batch": 32, "minutes": 8.0, "left": 3, "failed": failed, "layers": layers}
    text = gpu_benchmark.page(results)
    for line in (
        "| the host's time of a warm call | at most 20 us | 15.0 us |",
        "| conv, float32, ResNet-50 and VGG16: times as fast as cuDNN | 1.00 | 0.50, the geometric mean of 1, 1 of them",
        "| conv input grad, float32, ResNet-50 and VGG16: times as fast as cuDNN | 1.00 | 2.00, the geometric mean of 1, 0",
        "| conv, 16 bits, channels last: times as fast as cuDNN | 0.60 | 0.50, the geometric mean of 1, 1 of them below",
        "| 1x1, bound by memory: of a copy's rate | 0.80 | 0.25, the geometric mean of 1, 1 of them below |",
        "| pools, gradients, bound by memory: of a copy's rate | 0.80 | 0.75, the geometric mean of 1, 1 of them below |",
        "For 1 of 4 another algorithm was chosen in the run than stands here.",
        "Not come to in 8 minutes: 3 of the layers' functions.",
        f"## Failed\n\n- {failed[0]}\n",
        "0.50 times as fast as cuDNN's faster layout (geometric mean of 1 layers, 1 of them slower)",
        "| 400.0 | 500.0 | 300.0 | 250.0 | 240.0 | 400.0 | 200.0 | - | 25% | 0 |",
        "| 100.0 | 300.0 | 300.0 | 250.0 | 240.0 | 400.0 | 200.0 | - | 10% | 0 |",
    ):
        assert line in text


def test_every_layer_is_measured_forwards_and_most_backwards() -> None:
    made = list(gpu_benchmark.cases(["lenet"], 4))
    convolution = [(spec.dtype, op) for spec, op in made if str(spec).startswith("n4 c1x32x32")]
    backwards = Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD
    assert convolution == [
        *((dtype, Op.CONV) for dtype in ("float32", "float16")),
        *((dtype, op) for dtype in ("float32", "float16") for op in backwards),
        ("bfloat16", Op.CONV),
    ]


@pytest.mark.oracle
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        "n2 c4x7x8 k6x3x3 s2 p1 g2 f64",
        "max n2 c3x7x8 k3x3 s2 p1 indices f64",
        "avg n2 c3x7x8 k3x2 s2 p1 f64",
        "avg n2 c3x7x8 o1x1 f64",
    ],
)
def test_the_rival_computes_the_same(problem: str, channels_last: bool) -> None:
    """What is called of PyTorch on a card, called on the host."""
    torch = pytest.importorskip("torch")
    spec = parse(problem)
    order = torch.channels_last if channels_last else torch.contiguous_format
    for op in spec.ops[: 3 if problem.startswith("n") else 2]:
        given = testing.operands(spec, op, "integers")
        call = gpu_benchmark.theirs(
            spec, op, [torch.from_numpy(array).contiguous(memory_format=order) for array in given]
        )
        assert call is not None
        expected = testing.reference(spec, op, given)
        expected = expected[0] if isinstance(expected, tuple) else expected
        np.testing.assert_allclose(call().numpy(), expected, rtol=2**-50)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_layer_is_measured(device: Module, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """All but the clock, without a rival: every algorithm's call runs, on operands of its type."""

    def once(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
        return {name: float(call() is not None) for name, call in calls.items()}

    monkeypatch.setattr(gpu_benchmark, "in_turns", once)
    monkeypatch.setattr(gpu_benchmark, "cublas", lambda spec, op: None)
    for spec, op in gpu_benchmark.cases(["lenet"], 1):
        if spec.dtype == dtype:
            made = gpu_benchmark.measure_layer(spec, op, 1e12)
            assert {made["chosen"], made["chosen"] + gpu_benchmark.LAST} <= set(made["seconds"])
            if op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
                # Float32 as three products of tf32 stands beside the plain sum that is chosen.
                assert "implicit_gemm_mma" in made["seconds"]
                if getattr(spec, "in_channels", 1) > 1:
                    assert (made["chosen"] == "implicit_gemm_mma") == (dtype != "float32")
            assert set(made["seconds"].values()) == {1.0}
            assert not made["checked"]


def test_what_a_call_costs_the_host_is_measured(device: Module) -> None:
    """On a card; here the kernels run on the host too, which takes longer than nothing."""
    assert 0 < gpu_benchmark.call_overhead() < 1


def test_the_page_says_that_nothing_was_measured() -> None:
    committed = gpu_benchmark.PAGE.read_text(encoding="utf-8")
    results = json.loads(gpu_benchmark.RESULTS.read_text()) if gpu_benchmark.RESULTS.exists() else None
    assert committed == gpu_benchmark.page(results)


def test_a_result_that_overlaps_an_operand(device: Module) -> None:
    x = np.rint(4 * random(1, 2, 6, 6))
    w = np.rint(4 * random(2, 2, 3, 3))
    memory = ndarray(x.copy())
    made = fc.conv2d(memory, ndarray(w), padding=1, out=memory)
    assert made is memory
    np.testing.assert_array_equal(made.host, fc.conv2d(x, w, padding=1, backend="im2col"))


def test_arrays_of_another_device_are_refused(device: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first call there and by one like an earlier one; on its own device each has kernels of its own."""
    x, w = ndarray(random(1, 1, 3, 3)), ndarray(random(2, 1, 2, 2))
    first = fc.conv2d(x, w)
    monkeypatch.setattr(device.cuda.runtime, "getDevice", lambda: 1)
    monkeypatch.setattr(device.cuda, "Device", lambda: SimpleNamespace(id=1, compute_capability="80"))
    for given in ((x, w), (x, x)):
        with pytest.raises(
            ValueError,
            match=r"device: got an array of shape .* on device 0, expected all on the current one, 1",
        ):
            fc.conv2d(*given)
    monkeypatch.setattr(Memory, "device_id", 1)
    np.testing.assert_array_equal(fc.conv2d(x, w).host, first.host)
    assert {number for number, _ in executor._loaded} == {0, 1}


def test_threads_launch_at_once(device: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with an argument of its own, which is the driver's until it returns, in a context it has entered."""
    launch, all_inside, one_runs = device.cuda.driver.launchKernel, threading.Barrier(3), threading.Lock()

    def launch_together(*given: int) -> None:
        all_inside.wait(60)
        with one_runs:  # the emulation knows one device
            launch(*given)

    monkeypatch.setattr(device.cuda.driver, "launchKernel", launch_together)
    w = np.rint(4 * random(3, 2, 3, 3))
    given = [np.rint(k * random(1, 2, 5, 5)) for k in (1, 3, 5)]

    def work(x: Any) -> list[Any]:
        return [fc.conv2d(ndarray(x), ndarray(w)).host for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        for x, made in zip(given, pool.map(work, given), strict=True):
            np.testing.assert_array_equal(made, [fc.conv2d(x, w, backend="naive")] * 4)


def test_the_fastest_is_measured_on_the_device(
    device: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disk, "root", lambda: tmp_path)
    x, w = ndarray(random(1, 2, 5, 5)), ndarray(random(3, 2, 3, 3))
    made = fc.explain(lambda: fc.conv2d(x, w, algorithm="measure"))
    assert set(made.measured) == {"implicit_gemm_mma", "implicit_gemm", "im2col"}
