"""What of cuDNN's Python package the engine uses, on the host: graphs are recorded, and computed by the definition.

A graph is read back from what cuDNN is told (shapes, strides, padding, pointers), so a wrong translation gives wrong
results. Plans are offered as cuDNN offers them: the fastest first, some with notes, one that fails, with unlike scratch.
What cuDNN itself computes is left to a machine with a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from fastconv import gpu
from fastconv.backends.cupy import graph as engine
from fastconv.spec import ConvSpec, Op
from fastconv.testing import numpy_dtype, reference

__all__ = ["Library", "Offer", "installed"]

NAMES = {name: dtype for dtype, name in engine.TYPES.items()}
NOTES = (*engine.UNWANTED, "TENSOR_CORE", "STRICT_NAN_PROP")


class Offer(NamedTuple):
    """A plan: its numerical notes, its scratch, and whether it can be built at all."""

    name: str
    notes: frozenset[str]
    workspace: int
    works: bool = True


# The order of speed. A narrow type's first choice has scratch, float32's has none that may be used without being asked.
OFFERS = (
    Offer("tensor cores in a winograd domain", frozenset({"TENSOR_CORE", "WINOGRAD"}), 0),
    Offer("tensor cores and atomics", frozenset({"TENSOR_CORE", "NONDETERMINISTIC"}), 0),
    Offer("too new", frozenset(), 0, works=False),
    Offer("tensor cores", frozenset({"TENSOR_CORE"}), 5000),
    Offer("fourier", frozenset({"FFT"}), 0),
    Offer("winograd", frozenset({"WINOGRAD"}), 0),
    Offer("half sums", frozenset({"REDUCED_PRECISION_REDUCTION"}), 0),
    Offer("half operands", frozenset({"DOWN_CONVERT_INPUTS"}), 0),
    Offer("tiled", frozenset(), 3000),
    Offer("plain", frozenset({"STRICT_NAN_PROP"}), 80),
)


class NotSupportedError(Exception):
    """As cuDNN's own: no RuntimeError."""


class Tensor:
    """A tensor of a graph, described in steps."""

    def __init__(self, **given: Any) -> None:
        self.described = given

    def __getattr__(self, name: str) -> Any:
        verb, _, what = name.partition("_")
        if verb != "set":
            raise AttributeError(name)

        def describe(value: Any) -> Tensor:
            self.described[what] = value
            return self

        return describe

    def array(self, pointer: int) -> Any:
        """The memory it describes, at an address."""
        shape, dtype = self.described["dim"], numpy_dtype(NAMES[self.described["data_type"]])
        strides = self.described["stride"]
        assert len(shape) == len(strides) >= 4
        assert min(strides) > 0
        assert pointer % 16 == 0, "cuDNN was told of 16 bytes"
        assert all(type(number) is int for number in (*shape, *strides))
        span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        buffer = (ctypes.c_char * (span * dtype.itemsize)).from_address(pointer)
        steps = tuple(step * dtype.itemsize for step in strides)
        return np.ndarray(tuple(shape), dtype, memoryview(buffer), strides=steps)


class Graph:
    """A graph of one convolution, and perhaps a bias."""

    def __init__(self, library: Library, handle: Any, **types: Any) -> None:
        self.library, self.handle, self.types = library, handle, types
        self.tensors: dict[int, Tensor] = {}
        self.window: dict[str, Any] = {}
        self.op: Op | None = None
        self.biased = False
        self.result = Tensor()
        self.steps: list[str] = []
        self.sources: Sequence[str] = ()
        self.deselected: set[str] = set()
        self.plans: dict[int, Offer] = {}
        library.graphs.append(self)

    def tensor(self, *, dim: list[int], stride: list[int], data_type: str, uid: int) -> Tensor:
        made = self.tensors[uid] = Tensor(dim=dim, stride=stride, data_type=data_type)
        return made

    def conv_fprop(self, *, image: Tensor, weight: Tensor, **window: Any) -> Tensor:
        return self._convolution(Op.CONV, image, weight, window)

    def conv_dgrad(self, *, loss: Tensor, filter: Tensor, **window: Any) -> Tensor:
        return self._convolution(Op.CONV_INPUT_GRAD, loss, filter, window)

    def conv_wgrad(self, *, image: Tensor, loss: Tensor, **window: Any) -> Tensor:
        return self._convolution(Op.CONV_WEIGHT_GRAD, image, loss, window)

    def _convolution(self, op: Op, left: Tensor, right: Tensor, window: dict[str, Any]) -> Tensor:
        assert [self.tensors[number] for number in (engine.LEFT, engine.RIGHT)] == [left, right]
        assert set(window) == {"pre_padding", "post_padding", "stride", "dilation"}
        assert all(len(each) == len(left.described["dim"]) - 2 for each in window.values())
        self.op, self.window = op, window
        return self.result

    def bias(self, *, input: Tensor, bias: Tensor) -> Tensor:
        assert self.op is Op.CONV, "cuDNN has no engine that adds one to a gradient"
        assert input is self.result
        assert input.described["data_type"] == self.types["compute_data_type"], "it would be rounded twice"
        assert len(bias.described["dim"]) == len(self.tensors[engine.LEFT].described["dim"])
        assert self.tensors[engine.BIAS] is bias
        self.biased, self.result = True, Tensor()
        return self.result

    def validate(self) -> None:
        self.steps.append("validate")
        assert self.result.described["output"] is True
        self.tensors[self.result.described["uid"]] = self.result
        assert min(self.window["pre_padding"] + self.window["post_padding"]) >= 0

    def build_operation_graph(self) -> None:
        assert self.steps == ["validate"]
        self.steps.append("build")

    def create_execution_plans(self, sources: Sequence[str]) -> None:
        assert self.steps == ["validate", "build"]
        self.sources = sources
        self.steps.append("plans")

    def deselect_numeric_notes(self, notes: Sequence[str]) -> None:
        assert self.steps[-1] == "plans"
        self.deselected = set(notes)

    def get_execution_plan_count(self) -> int:
        return len(self.library.offers)

    def build_plan_at_index(self, index: int) -> None:
        offer = self.library.offers[index]
        if offer.notes & self.deselected:
            raise RuntimeError("Deselecting execution plan")
        if not offer.works:
            raise NotSupportedError("not on this device")
        self.plans[index] = offer

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return self.plans[index].workspace

    def get_plan_name_at_index(self, index: int) -> str:
        return self.library.offers[index].name

    def execute_plan_at_index(
        self, pointers: dict[int, int], workspace: int, index: int, *, handle: Any
    ) -> None:
        offer = self.plans[index]
        assert handle is self.handle
        assert (workspace != 0) == (offer.workspace > 0)
        ctypes.memset(workspace, 0xFF, offer.workspace)
        assert set(pointers) == set(self.tensors)
        self.library.executed.append((self, offer, handle.stream))
        arrays = {number: self.tensors[number].array(pointers[number]) for number in pointers}
        given = [arrays[number] for number in (engine.LEFT, engine.RIGHT)]
        spec = self.spec(arrays)
        if spec.dtype == "float32" and "TENSOR_CORE" in offer.notes:
            given = [rounded_to_tf32(array) for array in given]
        bias = arrays[engine.BIAS].ravel() if self.biased else None
        assert self.op is not None
        arrays[engine.RESULT][...] = reference(spec, self.op, given, bias)

    def spec(self, arrays: dict[int, Any]) -> ConvSpec:
        """The problem, from what cuDNN was told alone."""
        numbers = {
            Op.CONV: (engine.LEFT, engine.RIGHT, engine.RESULT),
            Op.CONV_INPUT_GRAD: (engine.RESULT, engine.RIGHT, engine.LEFT),
            Op.CONV_WEIGHT_GRAD: (engine.LEFT, engine.RESULT, engine.RIGHT),
        }
        assert self.op is not None
        image, weight, output = (arrays[number].shape for number in numbers[self.op])
        before, after = self.window["pre_padding"], self.window["post_padding"]
        spec = ConvSpec(
            batch=image[0],
            in_channels=image[1],
            out_channels=weight[0],
            in_size=image[2:],
            kernel_size=weight[2:],
            stride=tuple(self.window["stride"]),
            padding=tuple(zip(before, after, strict=True)),
            dilation=tuple(self.window["dilation"]),
            groups=image[1] // weight[1],
            dtype=NAMES[self.result.described["data_type"]],
        )
        assert spec.output_shape == output
        return spec


def rounded_to_tf32(array: Any) -> Any:
    """To eleven significant bits; ties go away from zero."""
    fraction, exponent = np.frexp(array.astype("f8"))
    kept = np.copysign(np.floor(np.abs(fraction) * 2**11 + 0.5), fraction)
    return np.ldexp(kept, exponent - 11).astype("f4")


class Library:
    """Stands in ``sys.modules`` for cuDNN's package.

    Attributes
    ----------
    offers : tuple of Offer
        What any graph can be executed by, the fastest first.
    graphs : list of Graph
        Every graph that was described.
    executed : list of (Graph, Offer, int)
        Every execution, with its stream.
    handles : list
        Every handle that was made.
    """

    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815 - cuDNN's name

    def __init__(self, offers: tuple[Offer, ...] = OFFERS) -> None:
        self.offers = offers
        self.graphs: list[Graph] = []
        self.executed: list[tuple[Graph, Offer, int]] = []
        self.handles: list[Any] = []
        self.data_type = SimpleNamespace(**{name: name for name in NAMES})
        self.numerical_note = SimpleNamespace(**{name: name for name in NOTES})
        self.heur_mode = SimpleNamespace(A="A", B="B", FALLBACK="FALLBACK")

    def create_handle(self) -> Any:
        self.handles.append(SimpleNamespace(stream=0))
        return self.handles[-1]

    @staticmethod
    def set_stream(*, handle: Any, stream: int) -> None:
        handle.stream = stream

    def pygraph(self, *, handle: Any, **types: Any) -> Graph:
        assert handle in self.handles
        return Graph(self, handle, **types)


@contextmanager
def installed(here: tuple[int, int] | None = (0, 0)) -> Iterator[Library]:
    """CuDNN is there while this lasts; `here` are a device and a thread where CuPy cannot tell."""
    library = Library()
    with ExitStack() as stack:
        stack.enter_context(patch.dict(sys.modules, cudnn=library))
        stack.enter_context(patch.object(gpu, "cudnn", lambda: None))
        stack.enter_context(patch.object(engine, "_handles", {}))
        if here is not None:
            stack.enter_context(patch.object(engine, "_here", lambda: here))
        engine._built.cache_clear()
        yield library
    engine._built.cache_clear()
