"""Running a graph of cuDNN: built once for each layout, device and thread, then executed on the current stream.

cuDNN offers many plans for a graph and says only on a device which of them work and what scratch they want. The first
that keeps this library's promises and its limit is taken, in cuDNN's own order. Nothing is timed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from fastconv.backends import Unsupported
from fastconv.backends.cupy.launch import Graph, Operand
from fastconv.spec import DTYPES, Op

# Graphs that stay built, those of all threads and devices together.
KEPT_GRAPHS = 256

# cuDNN's names for our element types.
TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}

# What a plan may not do: give other bits each time, round operands or sums to a narrower type, or transform them,
# whose error is another than that of the plain sum.
UNWANTED = ("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "WINOGRAD")

# Engines of cuDNN 9.19 that sum no plain sums and do not say so, without tensor cores and with them: on an H200 weight
# gradients of whole numbers, which plain sums hold exactly, were off by 2e-6 of the largest in float32 (64 channels of 56 x
# 56), and by up to 24 in float16, whose parts they seem to add in 16 bits (32 images of 32 x 112 x 112).
UNSAID = {Op.CONV_WEIGHT_GRAD: (("eng17_",), ("eng61_", "eng62_"))}

# Where plans come from, in this order: the two heuristics, then what always works.
SOURCES = ("A", "B", "FALLBACK")

# Numbers by which arrays are handed over.
LEFT, RIGHT, BIAS, RESULT = 1, 2, 3, 4


class Built(NamedTuple):
    """A graph that can be executed: by which of its plans, what scratch that wants, and on which handle."""

    graph: Any
    plan: int
    workspace: int
    handle: Any

    @property
    def name(self) -> str:
        """The plan as cuDNN calls it: its engine and settings."""
        return str(self.graph.get_plan_name_at_index(self.plan))


# By device and thread: a handle belongs to one device and holds one stream. A thread's number is used again once it
# has ended, so their count is that of the threads that live at once.
_handles: dict[tuple[int, int], Any] = {}


def built(step: Graph) -> Built:
    """The graph on the current device, for this thread.

    Raises
    ------
    Unsupported
        If cuDNN does not start, or has no plan that will do.
    """
    return _built(step, *_here())


def run(step: Graph, places: Sequence[int]) -> None:
    """Execute a graph on the current stream; `places` are the arrays' addresses."""
    import cudnn
    import cupy

    made = built(step)
    cudnn.set_stream(handle=made.handle, stream=cupy.cuda.get_current_stream().ptr)
    scratch = cupy.cuda.alloc(made.workspace) if made.workspace else None
    execute(step, made, places, scratch.ptr if scratch is not None else 0)


def execute(step: Graph, made: Built, places: Sequence[int], scratch: int) -> None:
    """Execute a graph on the stream its handle holds."""
    numbered = zip((LEFT, RIGHT, BIAS, RESULT), (*step.operands, step.bias, step.result), strict=True)
    pointers = {
        number: places[operand.array] + operand.offset for number, operand in numbered if operand is not None
    }
    made.graph.execute_plan_at_index(pointers, scratch, made.plan, handle=made.handle)


def _here() -> tuple[int, int]:
    """The current device and this thread."""
    import cupy

    return cupy.cuda.runtime.getDevice(), threading.get_ident()


@lru_cache(maxsize=KEPT_GRAPHS)
def _built(step: Graph, device: int, thread: int) -> Built:
    import cudnn

    errors = (RuntimeError, cudnn.cudnnGraphNotSupportedError)
    handle = _handles.get((device, thread))
    if handle is None:
        try:
            handle = _handles[device, thread] = cudnn.create_handle()
        except RuntimeError as error:
            raise Unsupported(f"cuDNN does not start: {_words(error)}") from error
    try:
        graph = _described(step, handle)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([getattr(cudnn.heur_mode, source) for source in SOURCES])
        unwanted = UNWANTED if step.tensor_cores else (*UNWANTED, "TENSOR_CORE")
        graph.deselect_numeric_notes([getattr(cudnn.numerical_note, note) for note in unwanted])
    except errors as error:
        raise Unsupported(f"cuDNN does not take it: {_words(error)}") from error
    least, unsaid = math.inf, UNSAID.get(step.op, ((), ()))[step.tensor_cores]
    for plan in range(graph.get_execution_plan_count()):
        try:
            graph.build_plan_at_index(
                plan
            )  # a plan that is deselected, or does not fit this device, says so here
        except errors:
            continue
        if str(graph.get_plan_name_at_index(plan)).startswith(unsaid):
            continue
        workspace = graph.get_workspace_size_plan_at_index(plan)
        if step.limit is None or workspace <= step.limit:
            return Built(graph, plan, workspace, handle)
        least = min(least, workspace)
    if least < math.inf:
        raise Unsupported(f"cuDNN needs {least} bytes of scratch", workspace=int(least))
    allowed = "" if step.tensor_cores else " without tensor cores"
    raise Unsupported(
        f"cuDNN has no plan{allowed} that sums in full precision, the same bits each time, and transforms nothing"
    )


def _words(error: Exception) -> str:
    """The first line of an error, which cuDNN follows with its log."""
    return str(error).strip().partition("\n")[0]


def _described(step: Graph, handle: Any) -> Any:
    """The graph as cuDNN's own object, nothing built yet."""
    import cudnn

    dtype = step.result.dtype
    stored, sums = (getattr(cudnn.data_type, TYPES[name]) for name in (dtype, DTYPES[dtype].accumulate))
    graph = cudnn.pygraph(
        handle=handle, io_data_type=stored, intermediate_data_type=sums, compute_data_type=sums
    )

    def tensor(operand: Operand, number: int) -> Any:
        return graph.tensor(
            dim=list(operand.shape), stride=list(operand.strides), data_type=stored, uid=number
        )

    left, right = (tensor(*pair) for pair in zip(step.operands, (LEFT, RIGHT), strict=True))
    window = {
        "pre_padding": list(step.before),
        "post_padding": list(step.after),
        "stride": list(step.stride),
        "dilation": list(step.dilation),
    }
    match step.op:
        case Op.CONV:
            result = graph.conv_fprop(image=left, weight=right, **window)
        case Op.CONV_INPUT_GRAD:
            result = graph.conv_dgrad(loss=left, filter=right, **window)
        case _:
            result = graph.conv_wgrad(image=left, loss=right, **window)
    if step.bias is not None:
        result.set_data_type(sums)
        result = graph.bias(input=result, bias=tensor(step.bias, BIAS))
    result.set_output(True).set_data_type(stored).set_uid(RESULT)
    result.set_dim(list(step.result.shape)).set_stride(list(step.result.strides))
    return graph
