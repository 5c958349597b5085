"""What cuDNN is told, and what is taken of what it offers, with stand-ins for it and for CuPy."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import gpu
from fastconv.backends import TF32_ERROR, Unsupported, cupy
from fastconv.backends.cupy import graph
from fastconv.backends.cupy.launch import Graph
from fastconv.plan import plan
from fastconv.spec import Op, parse
from fastconv.testing import operands
from tests import cuda_budget
from tests.emulator import cudnn
from tests.emulator.device import Module, ndarray
from tests.test_cuda_emulated import lay
from tests.test_cuda_executor import device

__all__ = ["device"]  # a fixture

CONV = "n2 c4x9x8 k6x3x2 s2x1 p1x0:1 d1x2 g2 f32"


@pytest.fixture
def library(device: Module) -> Iterator[cudnn.Library]:
    """CuPy, a device and cuDNN are there."""
    with cudnn.installed(here=None) as made:
        plan.cache_clear()
        yield made
        plan.cache_clear()


@pytest.fixture
def alone() -> Iterator[cudnn.Library]:
    """Plans are made, and nothing runs."""
    with cudnn.installed() as made:
        yield made


def planned(problem: str, op: Op = Op.CONV, precision: str = "default", limit: int | None = None) -> Any:
    """What the planner says."""
    (planner,) = (p for p in cupy.PLANNERS[op] if p.__name__ == "cudnn")
    return planner(parse(problem), precision, limit)


def step(problem: str, op: Op, *, channels_last: bool = False, bias: bool = True) -> Graph:
    """What cuDNN is given to do, alone in its program."""
    spec = parse(problem)
    (made,) = planned(problem, op).call.build(*cuda_budget.views(spec, op, channels_last, bias)).steps
    assert isinstance(made, Graph)
    return made


def test_a_forward_convolution_is_described(alone: cudnn.Library) -> None:
    made = step(CONV, Op.CONV)
    x, w = made.operands
    assert (x.array, x.shape, x.strides) == (0, (2, 4, 9, 8), (288, 72, 8, 1))
    assert (w.array, w.shape, w.strides) == (1, (6, 2, 3, 2), (12, 6, 2, 1))
    assert made.bias is not None
    assert (made.bias.array, made.bias.shape, made.bias.strides) == (2, (1, 6, 1, 1), (6, 1, 1, 1))
    assert (made.result.array, made.result.shape, made.result.strides) == (3, (2, 6, 5, 7), (210, 35, 7, 1))
    window = made.stride, made.dilation, made.before, made.after
    assert window == ((2, 1), (1, 2), (1, 0), (1, 1))
    told = alone.graphs[0]
    assert told.window == {
        "stride": [2, 1],
        "dilation": [1, 2],
        "pre_padding": [1, 0],
        "post_padding": [1, 1],
    }
    types = {"io_data_type": "FLOAT", "intermediate_data_type": "FLOAT", "compute_data_type": "FLOAT"}
    assert told.types == types
    assert told.sources == ["A", "B", "FALLBACK"]


@pytest.mark.parametrize(
    ("op", "left", "right", "result"),
    [
        (Op.CONV_INPUT_GRAD, (2, 6, 5, 7), (6, 2, 3, 2), (2, 4, 9, 8)),
        (Op.CONV_WEIGHT_GRAD, (2, 4, 9, 8), (2, 6, 5, 7), (6, 2, 3, 2)),
    ],
)
def test_a_gradient_is_described(alone: cudnn.Library, op: Op, left: Any, right: Any, result: Any) -> None:
    made = step(CONV, op, bias=False)
    assert (made.operands[0].shape, made.operands[1].shape, made.result.shape) == (left, right, result)
    assert made.before == (1, 0)
    assert alone.graphs[0].op is op


def test_one_axis_has_a_second_before_it(alone: cudnn.Library) -> None:
    made = step("n2 c3x9 k4x3 s2 p1 d2 f32", Op.CONV)
    assert made.operands[0][2:4] == ((2, 3, 1, 9), (27, 9, 9, 1))
    assert made.operands[1][2:4] == ((4, 3, 1, 3), (9, 3, 3, 1))
    assert (made.stride, made.dilation, made.before) == ((1, 2), (1, 2), (0, 1))
    last = step("n2 c3x9 k4x3 s2 p1 d2 f32", Op.CONV, channels_last=True)
    assert last.operands[0].strides == (27, 1, 27, 3)


def test_channels_last_are_strides(alone: cudnn.Library) -> None:
    made = step("n2 c3x4x5x6 k4x3x3x3 s1 p1 f16", Op.CONV, channels_last=True)
    assert made.operands[0].strides == (360, 1, 90, 18, 3)
    assert made.bias is not None
    assert made.bias.shape == (1, 4, 1, 1, 1)


@pytest.mark.parametrize(
    ("dtype", "precision", "taken", "compute"),
    [
        ("f32", "default", "tiled", "FLOAT"),
        ("f32", "highest", "tiled", "FLOAT"),
        ("f32", "tf32", "tensor cores", "FLOAT"),
        ("f16", "default", "tensor cores", "FLOAT"),
        ("bf16", "highest", "tensor cores", "FLOAT"),
        ("f64", "tf32", "tensor cores", "DOUBLE"),
    ],
)
def test_plans_that_break_a_promise_are_left_out(
    alone: cudnn.Library, dtype: str, precision: str, taken: str, compute: str
) -> None:
    """Nobody gets tf32 unasked, other bits each time, narrower sums or a transform."""
    run = planned(f"n2 c4x6x6 k4x3x3 s1 p1 {dtype}", precision=precision)
    assert run.note.startswith(f"{taken}, ")
    told = alone.graphs[0]
    always = {"NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "WINOGRAD"}
    strict = dtype == "f32" and precision != "tf32"
    assert told.deselected == always | ({"TENSOR_CORE"} if strict else set())
    assert told.types["compute_data_type"] == compute
    assert run.error == (TF32_ERROR if (dtype, precision) == ("f32", "tf32") else 0.0)


def test_the_limit_chooses_a_plan(alone: cudnn.Library) -> None:
    assert [planned(CONV, limit=limit).shared for limit in (None, 3000, 2999, 80)] == [3000, 3000, 80, 80]
    with pytest.raises(Unsupported, match="cuDNN needs 80 bytes of scratch") as refused:
        planned(CONV, limit=79)
    assert refused.value.workspace == 80


def test_copies_count_under_the_limit(alone: cudnn.Library) -> None:
    """What cuDNN gets is what they leave it."""
    spec = parse("n1 c2x4x4 k2x3x3 s1 p1 f32")
    x, w, _, y = cuda_budget.views(spec, Op.CONV, False)
    assert x is not None
    moved = x._replace(aligned=False)
    program = planned(str(spec), limit=3000).call.build(moved, w, None, y)
    assert program.workspace == 2 * 4 * 4 * 4
    (made,) = (each for each in program.steps if isinstance(each, Graph))
    assert made.limit == 3000 - 128
    with pytest.raises(Unsupported, match="needs 128 bytes of scratch for copies"):
        planned(str(spec), limit=100).call.build(moved, w, None, y)


def test_what_cudnn_is_not_is_declined_in_words(alone: cudnn.Library) -> None:
    for problem, words in {
        "n1 c2x5x5 k2x3x3 s1 p1 s8": "the types are int8 to int32",
        "n1 c2x5x5 k2x3x3 s1 p1 f16>f32": "the types are float16 to float32",
        "n1 c2x5x5 k2x3x3 s1 p1 circular f32": "padding_mode is 'circular'",
        "n0 c2x5x5 k2x3x3 s1 p1 f32": "the batch is empty",
        "n1 c2x6x6 k3x3x3 s1 p2:-1 f32": r"padding is \(\(2, -1\), \(2, -1\)\)",
    }.items():
        for op in (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD):
            with pytest.raises(Unsupported, match=words):
                planned(problem, op)
    with pytest.raises(Unsupported, match="a bias would round float16 twice"):
        planned("n1 c2x5x5 k2x3x3 s1 p1 f16", Op.CONV_INPUT_GRAD, "highest")
    assert not alone.graphs


def test_what_cudnn_refuses_is_declined_in_words(
    alone: cudnn.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any) -> None:
        raise cudnn.NotSupportedError("no such engine\nand a log")

    monkeypatch.setattr(alone, "offers", alone.offers[:3])
    with pytest.raises(
        Unsupported, match="cuDNN has no plan without tensor cores that sums in full precision"
    ):
        planned(CONV)
    monkeypatch.setattr(cudnn.Graph, "build_operation_graph", broken)
    with pytest.raises(Unsupported, match=r"cuDNN does not take it: no such engine$"):
        planned(CONV)


def test_cudnn_that_does_not_start_is_declined(alone: cudnn.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("cudnnHandle Create failed")

    monkeypatch.setattr(alone, "create_handle", broken)
    with pytest.raises(Unsupported, match="cuDNN does not start: cudnnHandle Create failed"):
        planned(CONV)


@pytest.mark.skipif(find_spec("cudnn") is not None, reason="cuDNN's package is installed")
def test_what_is_missing_is_named() -> None:
    with pytest.raises(Unsupported, match=r"not installed; pip install 'fastconv\[cudnn13\]'"):
        planned(CONV)


def test_a_package_without_a_device_is_no_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(__spec__=SimpleNamespace()))
    monkeypatch.setattr(gpu, "missing", lambda: "there is no device")
    assert gpu.cudnn() == "there is no device"


@pytest.mark.parametrize("algorithm", ["auto", "measure"])
def test_only_who_names_it_gets_it(
    library: cudnn.Library, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setattr("fastconv.measured.seconds", lambda key, shapes, calls: dict.fromkeys(calls, 1.0))
    made = plan(parse(CONV), Op.CONV, "cupy", algorithm)
    assert made.declined["cudnn"] == "it is taken only by name, algorithm='cudnn'"
    assert "cudnn" not in {**made.estimates, **made.measured}
    assert not library.graphs


@pytest.mark.skipif(find_spec("cudnn") is not None, reason="cuDNN's package is installed")
def test_the_caller_is_told_what_is_missing(device: Module) -> None:
    x = ndarray(np.ones((1, 2, 5, 5), "f4"))
    with pytest.raises(Unsupported, match="cudnn: cuDNN's Python package is not installed; pip"):
        fc.conv2d(x, x, algorithm="cudnn")


def numbers(*shape: int, dtype: str = "f4") -> Any:
    return ndarray(np.random.default_rng(sum(shape)).integers(-4, 5, shape).astype(dtype))


def test_an_engine_that_keeps_its_transform_to_itself_is_passed_over(
    library: cudnn.Library, device: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, the op and whether it may use tensor cores: elsewhere nothing was found wrong with it."""
    offers = library.offers
    cases = (
        (Op.CONV_WEIGHT_GRAD, "f32", "eng17_k25=0", "tiled"),
        (Op.CONV_WEIGHT_GRAD, "f16", "eng17_k25=0", "eng17_k25=0"),
        (Op.CONV, "f32", "eng17_k25=0", "eng17_k25=0"),
        (Op.CONV_WEIGHT_GRAD, "f16", "eng61_k2=3", "tensor cores"),
        (Op.CONV_WEIGHT_GRAD, "bf16", "eng62_k25=2", "tensor cores"),
        (Op.CONV_WEIGHT_GRAD, "f32", "eng61_k2=3", "eng61_k2=3"),
        (Op.CONV, "f16", "eng61_k2=3", "eng61_k2=3"),
    )
    for batch, (op, dtype, offer, name) in enumerate(cases, 1):
        monkeypatch.setattr(library, "offers", (cudnn.Offer(offer, frozenset(), 0), *offers))
        made = plan(parse(f"n{batch} c4x5x6 k6x3x3 s1 p1 {dtype}"), op, "cupy", "cudnn")
        assert made.run.note.startswith(f"{name},")


def test_it_runs_on_the_stream_in_the_pool_and_in_place(
    library: cudnn.Library, device: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=77))
    x, w, b = numbers(2, 3, 6, 7), numbers(4, 3, 3, 3), numbers(4)
    out = device.ndarray((2, 4, 6, 7), "f4")
    made = fc.conv2d(x, w, b, padding=1, algorithm="cudnn", out=out)
    assert made is out
    np.testing.assert_array_equal(out.host, fc.conv2d(x.host, w.host, b.host, padding=1, backend="im2col"))
    ((told, offer, stream),) = library.executed
    assert (offer.name, stream) == ("tiled", 77)
    assert told.handle is library.handles[0]
    assert device.allocated == [3000]
    assert fc.explain(lambda: fc.conv2d(x, w, padding=1, algorithm="cudnn")).workspace == 3000


def test_gradients_and_their_bias(library: cudnn.Library) -> None:
    x, w, b = numbers(2, 4, 5, 6), numbers(4, 3, 3, 2), numbers(3)
    for dtype in ("f4", "f2", "f8"):
        u, v, c = (ndarray(a.host.astype(dtype)) for a in (x, w, b))
        made = fc.conv_transpose2d(u, v, c, 2, output_padding=1, algorithm="cudnn")
        expected = fc.conv_transpose2d(u.host, v.host, c.host, 2, output_padding=1, backend="im2col")
        np.testing.assert_array_equal(made.host, expected)
    dy = numbers(2, 6, 4, 5)
    made = fc.grad.conv2d_weight(x, (6, 4, 2, 2), dy, algorithm="cudnn")
    np.testing.assert_array_equal(
        made.host, fc.grad.conv2d_weight(x.host, (6, 4, 2, 2), dy.host, backend="im2col")
    )
    assert [told.op for told, *_ in library.executed] == [Op.CONV_INPUT_GRAD] * 3 + [Op.CONV_WEIGHT_GRAD]


@pytest.mark.parametrize("order", ["channels last", "reversed", "every second", "off by one"])
def test_operands_lie_in_memory_as_they_like(library: cudnn.Library, device: Module, order: str) -> None:
    """Those in reach are read in place; copies are made of the others, and of those alone."""
    spec = parse("n2 c3x5x6 k4x3x3 s1 p1 f32")
    given = operands(spec, Op.CONV, "integers")
    x, w = ndarray(lay(given[0], order)), ndarray(given[1])
    bias = ndarray(np.arange(8, dtype="f4")[::2])
    made = fc.conv2d(x, w, bias, padding=1, algorithm="cudnn")
    expected = fc.conv2d(given[0], given[1], bias.host, padding=1, backend="im2col")
    np.testing.assert_array_equal(made.host, expected)
    copies = bias.host.nbytes + (0 if order in ("channels last", "every second") else x.host.nbytes)
    assert device.allocated == [copies, 3000]


def test_one_image_for_a_whole_batch(library: cudnn.Library, device: Module) -> None:
    """Steps of zero, from the beginning of a line."""
    image, w = numbers(1, 4, 5, 6), numbers(2, 4, 3, 3)
    x = ndarray(np.broadcast_to(image.host, (3, 4, 5, 6)))
    assert x.host.ctypes.data % 16 == 0
    made = fc.conv2d(x, w, algorithm="cudnn")
    np.testing.assert_array_equal(made.host, fc.conv2d(x.host, w.host, backend="im2col"))
    assert device.allocated == [x.host.nbytes, 3000]


def test_a_result_that_begins_between_vectors(library: cudnn.Library) -> None:
    x, w = numbers(1, 3, 5, 5), numbers(2, 3, 3, 3)
    out = ndarray(lay(np.zeros((1, 2, 3, 3), "f4"), "off by one"))
    assert out.host.ctypes.data % 16 == 4
    made = fc.conv2d(x, w, algorithm="cudnn", out=out)
    assert made is out
    np.testing.assert_array_equal(out.host, fc.conv2d(x.host, w.host, backend="im2col"))
    back, bias = ndarray(lay(np.zeros((1, 3, 5, 5), "f4"), "off by one")), numbers(3)
    fc.conv_transpose2d(out, w, bias, algorithm="cudnn", out=back)
    expected = fc.conv_transpose2d(out.host, w.host, bias.host, backend="im2col")
    np.testing.assert_array_equal(back.host, expected)


def test_a_graph_is_built_once_for_a_layout_and_a_thread(
    library: cudnn.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = numbers(1, 3, 5, 5), numbers(2, 3, 3, 3)

    def call() -> None:
        fc.conv2d(x, w, algorithm="cudnn")

    call()
    assert len(library.graphs) == 2, "the plan asks with a bias and without, and one of both is the call's"
    with monkeypatch.context() as patched:
        patched.setattr(cudnn.Graph, "build_plan_at_index", None)
        call()
    assert (len(library.graphs), len(library.handles)) == (2, 1)
    # Two threads at once have two numbers, two handles and two graphs.
    barrier = threading.Barrier(2)

    def together() -> None:
        barrier.wait()
        call()
        barrier.wait()

    threads = [threading.Thread(target=together) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(library.graphs), len(library.handles)) == (4, 3)
    assert len(library.executed) == 4


def test_graphs_that_are_kept_are_bounded(alone: cudnn.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph._built.cache_info().maxsize == graph.KEPT_GRAPHS
    made = step(CONV, Op.CONV)
    for limit in range(10_000, 10_000 + 2 * graph.KEPT_GRAPHS):
        graph.built(Graph(**{name: getattr(made, name) for name in made.__slots__} | {"limit": limit}))
    assert graph._built.cache_info().currsize == graph.KEPT_GRAPHS
