"""Rivals in one shape: ``(spec, weight, bias) -> Rival``, or ``Unsupported`` with the reason.

Weight and bias are given when a rival is made, as they are in a trained network: what can be done with them once
(ONNX Runtime packs them, channels-last is another order) is done before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastconv import testing
from fastconv.backends import Unsupported
from fastconv.plan import MAX_ERROR, plan
from fastconv.spec import DTYPES, ConvSpec, Op, PoolSpec, Spec
from fastconv.threads import get_num_threads

Array = Any


class Rival(NamedTuple):
    """One rival on one problem.

    Attributes
    ----------
    place : callable
        From an input array (for a gradient, the tuple of its operands) to what the rival reads; not timed.
    run : callable
        From that to a result of the rival's own kind; this is timed.
    read : callable
        From that to one array for each result of the spec; not timed.
    """

    place: Callable[[Array], Any]
    run: Callable[[Any], Any]
    read: Callable[[Any], tuple[Array, ...]]


def operands(spec: Spec, seed: int = 0) -> tuple[Array, Array | None, Array | None]:
    """Random input, and for a convolution weight and bias."""
    x, *weights = testing.operands(spec, spec.ops[0], seed=seed)
    if isinstance(spec, PoolSpec):
        return x, None, None
    bias = np.random.default_rng(seed).integers(-4, 5, spec.out_channels) / 4
    return x, weights[0], bias.astype(testing.numpy_dtype(spec.out_dtype))


def reference(spec: Spec, x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, ...]:
    """The float64 answer, by im2col, which the conformance test ties to the definition."""
    given = (x,) if weight is None else (x, weight)
    answer = testing.reference(spec, spec.ops[0], given, bias, backend="im2col")
    return answer if isinstance(answer, tuple) else (answer,)


def tolerance(spec: Spec, x: Array, weight: Array | None, bias: Array | None) -> float:
    """How far a rival may be off: it may use Winograd, so what a transform under 6e-6 may add is allowed too."""
    plain = plan(spec, spec.ops[0], "im2col", "auto", "highest")
    given = (x,) if weight is None else (x, weight)
    return testing.tolerance(replace(plain, run=replace(plain.run, error=MAX_ERROR)), given, bias)


def gradient_operands(spec: Spec, op: Op, seed: int = 0) -> tuple[Array, ...]:
    """Whole numbers, so that every sum which is not a transform's must come out exactly, in whatever order.

    A max pool's indices are those of its own forward pass.
    """
    if isinstance(spec, ConvSpec) or not spec.indices:
        return testing.operands(spec, op, "integers", seed)
    dy, x = testing.operands(replace(spec, indices=False), op, "integers", seed)
    return dy, plan(spec, Op.POOL, "im2col")(x)[1]


def disagreement(
    results: Sequence[Array], expected: Sequence[Array], allowed: float, every: int = 1
) -> tuple[float, str]:
    """Largest difference, and in words where a result is too far off.

    `expected` holds the images of one period of a batch in which every `every` images are the same again.
    """
    error = 0.0
    for number, (result, answer) in enumerate(zip(results, expected, strict=True)):
        for image in range(len(result)):
            gap, detail = testing.compare(result[image], answer[image % every], 0.0 if number else allowed)
            error = max(error, gap * (number == 0))
            if detail:
                return error, f"image {image}: {detail}"
    return error, ""


def _symmetric(spec: Spec) -> tuple[int, ...]:
    if any(before != after for before, after in spec.padding):
        raise Unsupported(f"the padding is {spec.padding}, needs as much on both sides")
    return tuple(before for before, _ in spec.padding)


# ---------------------------------------------------------------------------- PyTorch


def start_torch(channels_last: bool, rank: int = 2) -> None:
    """Take fastconv's number of threads, or say why torch cannot take part."""
    if importlib.util.find_spec("torch") is None:
        raise Unsupported("torch is not installed: pip install torch==2.13.0")
    import torch

    if channels_last and rank != 2:
        raise Unsupported(f"there are {rank} spatial axes, needs two for channels_last")
    torch.set_num_threads(get_num_threads())


def _tensor(array: Array, channels_last: bool = False) -> Any:
    import torch

    # torch takes no array of ml_dtypes, but the same 16 bits under its own name.
    half = array.dtype.name == "bfloat16"
    made = torch.from_numpy(array.view("int16")).view(torch.bfloat16) if half else torch.from_numpy(array)
    return made.to(memory_format=torch.channels_last) if channels_last else made


def _arrays(result: Any) -> tuple[Array, ...]:
    import torch

    made = []
    for part in result if isinstance(result, tuple) else (result,):
        half = part.dtype is torch.bfloat16
        array = part.float().numpy() if half else part.numpy()
        made.append(array.astype(testing.numpy_dtype("bfloat16")) if half else array)
    return tuple(made)


def _torch(spec: Spec, weight: Array | None, bias: Array | None, channels_last: bool) -> Rival:
    start_torch(channels_last, spec.rank)
    place = partial(_tensor, channels_last=channels_last)
    if isinstance(spec, PoolSpec):
        return Rival(place, _torch_pool(spec), _arrays)
    return Rival(place, _torch_conv(spec, place(weight), None if bias is None else _tensor(bias)), _arrays)


def _torch_conv(spec: ConvSpec, weight: Any, bias: Any) -> Callable[[Any], Any]:
    from torch.nn import functional

    if DTYPES[spec.dtype].kind != "f" or spec.out_dtype != spec.dtype:
        raise Unsupported(f"{spec.dtype} is summed in {spec.dtype} there and wraps, needs a float type")
    convolve = getattr(functional, f"conv{spec.rank}d")
    fields = (weight, bias, spec.stride)
    even = all(before == after for before, after in spec.padding)
    if spec.padding_mode == "zeros" and even:
        return lambda x: convolve(x, *fields, _symmetric(spec), spec.dilation, spec.groups)
    if spec.padding_mode == "symmetric":
        raise Unsupported("the padding mode is symmetric, needs zeros, reflect, replicate or circular")
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    pads = [amount for pair in reversed(spec.padding) for amount in pair]

    def padded(x: Any) -> Any:
        return convolve(functional.pad(x, pads, mode), *fields, 0, spec.dilation, spec.groups)

    return padded


def _torch_pool(spec: PoolSpec) -> Callable[[Any], Any]:
    from torch.nn import functional

    real = DTYPES[spec.dtype].kind == "f"
    if not real and (spec.mode != "max" or spec.dtype in ("uint16", "uint32", "uint64")):
        raise Unsupported(f"the type is {spec.dtype}, needs a float type")
    fields: dict[str, Any]
    if spec.output_size:
        pool = getattr(functional, f"adaptive_{spec.mode}_pool{spec.rank}d")
        fields = {"return_indices": True} if spec.indices else {}
        return lambda x: pool(x, spec.output_size, **fields)
    padding = _symmetric(spec)
    if spec.mode != "max" and max(spec.dilation) > 1:
        raise Unsupported(f"the dilation is {spec.dilation}, needs 1")
    if any(2 * pad > size for pad, size in zip(padding, spec.kernel_size, strict=True)):
        raise Unsupported(
            f"the padding is {spec.padding}, needs at most half of the kernel {spec.kernel_size}"
        )
    pool = getattr(functional, f"{spec.mode}_pool{spec.rank}d")
    if spec.mode == "max":
        window = spec.kernel_size, spec.stride, padding, spec.dilation
        return lambda x: pool(x, *window, ceil_mode=spec.ceil_mode, return_indices=spec.indices)
    if spec.mode == "avg":
        fields = {"divisor_override": spec.divisor_override} if spec.divisor_override else {}
        if fields and spec.rank == 1:
            raise Unsupported("there is one spatial axis, needs two or three for a divisor")
        fields |= {"ceil_mode": spec.ceil_mode, "count_include_pad": spec.count_include_pad}
        return lambda x: pool(x, spec.kernel_size, spec.stride, padding, **fields)
    if max(padding) > 0:
        raise Unsupported(f"the padding is {spec.padding}, needs none")
    if spec.norm_type % 2:
        raise Unsupported(f"x, not abs(x), is raised to {spec.norm_type:g} there, needs an even power")
    if spec.dtype in ("float16", "bfloat16"):
        raise Unsupported(f"every step is rounded to {spec.dtype} there, needs float32 or float64")
    size = spec.kernel_size if spec.rank > 1 else spec.kernel_size[0]
    return lambda x: pool(x, spec.norm_type, size, spec.stride, spec.ceil_mode)


def torch_nchw(spec: Spec, weight: Array | None = None, bias: Array | None = None) -> Rival:
    """PyTorch on its usual layout."""
    return _torch(spec, weight, bias, channels_last=False)


def torch_channels_last(spec: Spec, weight: Array | None = None, bias: Array | None = None) -> Rival:
    """PyTorch on channels-last memory, input and weight brought there before timing."""
    return _torch(spec, weight, bias, channels_last=True)


def _torch_gradient(spec: Spec, op: Op, channels_last: bool) -> Rival:
    """What autograd calls for one gradient of a layer, called without it: its graph and its Python are not timed."""
    start_torch(channels_last, spec.rank)
    if spec.rank != 2:
        raise Unsupported(f"there are {spec.rank} spatial axes, needs two")

    def place(given: Sequence[Array]) -> list[Any]:
        return [_tensor(array, channels_last) for array in given]

    if isinstance(spec, PoolSpec):
        return Rival(place, _torch_pool_grad(spec, channels_last), _arrays)
    return Rival(place, _torch_conv_grad(spec, op, channels_last), _arrays)


def _blank(shape: tuple[int, ...], channels_last: bool) -> Any:
    """A tensor of which only shape and order are read."""
    import torch

    return torch.empty(shape, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _torch_conv_grad(spec: ConvSpec, op: Op, channels_last: bool) -> Callable[[Any], Any]:
    import torch

    backward = torch.ops.aten.convolution_backward.default
    if spec.padding_mode != "zeros":
        raise Unsupported(f"the padding mode is {spec.padding_mode}, needs zeros")
    of_input = op is Op.CONV_INPUT_GRAD
    fields = (
        None, spec.stride, _symmetric(spec), spec.dilation, False, (0, 0), spec.groups,
        (of_input, not of_input, False),
    )  # fmt: skip
    if of_input:
        x = _blank(spec.input_shape, channels_last)
        return lambda given: backward(given[0], x, given[1], *fields)[0]
    weight = _blank(spec.weight_shape, channels_last)
    return lambda given: backward(given[1], given[0], weight, *fields)[1]


def _torch_pool_grad(spec: PoolSpec, channels_last: bool) -> Callable[[Any], Any]:
    import torch

    aten = torch.ops.aten
    if spec.mode == "avg" and spec.output_size == (1, 1):  # the backward of a mean
        count = int(np.prod(spec.in_size))
        return lambda given: given[0].expand(spec.input_shape) / count
    if spec.output_size or spec.mode not in ("max", "avg") or (spec.mode == "max" and not spec.indices):
        raise Unsupported(
            "it is measured on max pools with indices, averages with a window, and the global one"
        )
    window = spec.kernel_size, spec.stride, _symmetric(spec)
    x = _blank(spec.input_shape, channels_last)
    if spec.mode == "max":
        backward = aten.max_pool2d_with_indices_backward.default
        return lambda given: backward(given[0], x, *window, spec.dilation, spec.ceil_mode, given[1])
    fields = *window, spec.ceil_mode, spec.count_include_pad, spec.divisor_override or None
    return lambda given: aten.avg_pool2d_backward.default(given[0], x, *fields)


# ---------------------------------------------------------------------------- ONNX Runtime


def _onnx_fields(spec: Spec) -> tuple[str, dict[str, Any]]:
    """The operator for a spec and its attributes."""
    if spec.dtype != "float32" and (spec.dtype, getattr(spec, "mode", "")) != ("float64", "max"):
        raise Unsupported(f"the type is {spec.dtype}, needs float32")
    if spec.batch == 0:
        raise Unsupported("the batch is empty, needs one image")
    fields: dict[str, Any] = {}
    if spec.kernel_size:
        pads = [before for before, _ in spec.padding] + [after for _, after in spec.padding]
        if min(pads) < 0:
            raise Unsupported(f"the padding is {spec.padding}, needs no negative entry")
        fields = {"kernel_shape": list(spec.kernel_size), "strides": list(spec.stride), "pads": pads}
        fields["dilations"] = list(spec.dilation)
    if isinstance(spec, ConvSpec):
        if spec.padding_mode != "zeros":
            raise Unsupported(f"the padding mode is {spec.padding_mode}, needs zeros")
        return "Conv", fields | {"group": spec.groups}
    if spec.output_size:
        if spec.output_size != (1,) * spec.rank or spec.indices:
            raise Unsupported("it has no adaptive pool but the global one, without indices")
        return {"avg": "GlobalAveragePool", "max": "GlobalMaxPool", "lp": "GlobalLpPool"}[spec.mode], {}
    fields["ceil_mode"] = int(spec.ceil_mode)
    if spec.mode == "max":
        return "MaxPool", fields
    if spec.mode == "avg":
        if spec.divisor_override:
            raise Unsupported(f"the divisor is {spec.divisor_override}, needs the number of elements")
        return "AveragePool", fields | {"count_include_pad": int(spec.count_include_pad)}
    if spec.norm_type % 1 or spec.ceil_mode:
        raise Unsupported("it takes whole powers, and does not scale windows cut short in ceil mode")
    return "LpPool", fields | {"p": int(spec.norm_type)}


def onnx_session(
    layers: Sequence[tuple[Spec, Array | None, Array | None]], chained: bool
) -> Callable[[Sequence[Array]], list[Array]]:
    """One session for `layers`, each reading the result of the one before (`chained`) or an input of its own.

    Weights are initializers, so that the runtime may pack them once and choose its blocked layout.
    """
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        raise Unsupported('onnxruntime is not installed: pip install "fastconv[peers]"')
    import onnx
    import onnxruntime as ort

    types = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}
    value = onnx.helper.make_tensor_value_info
    nodes, constants, inputs, outputs = [], [], [], []
    for i, (spec, *weights) in enumerate(layers):
        operator, fields = _onnx_fields(spec)
        if i == 0 or not chained:
            inputs.append(value(f"x{i}", types[spec.dtype], spec.input_shape))
        names = [f"y{i - 1}" if chained and i else f"x{i}"]
        for letter, array in zip("wb", weights, strict=True):
            if array is not None:
                names.append(f"{letter}{i}")
                constants.append(onnx.numpy_helper.from_array(array, names[-1]))
        results = [f"y{i}"] + [f"i{i}"] * (isinstance(spec, PoolSpec) and spec.indices)
        nodes.append(onnx.helper.make_node(operator, names, results, **fields))
        if not chained or i == len(layers) - 1:
            outputs.append(value(f"y{i}", types[spec.dtype], spec.output_shape))
            if len(results) == 2:
                outputs.append(value(f"i{i}", onnx.TensorProto.INT64, spec.output_shape))
    graph = onnx.helper.make_graph(nodes, "layers", inputs, outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    options.log_severity_level = 3  # it warns of shapes it infers; the answer is checked
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in inputs]

    def run(arrays: Sequence[Array]) -> list[Array]:
        found: list[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
        return found

    return run


def onnxruntime(spec: Spec, weight: Array | None = None, bias: Array | None = None) -> Rival:
    """ONNX Runtime, one operator in a session of its own."""
    session = onnx_session([(spec, weight, bias)], chained=False)

    def read(results: list[Array]) -> tuple[Array, ...]:
        if len(results) == 1:
            return tuple(results)
        # Its indices count through the whole tensor, torch's and ours through one plane.
        return results[0], results[1] % int(np.prod(spec.in_size))

    return Rival(lambda array: array, lambda x: session([x]), read)


# ---------------------------------------------------------------------------- SciPy


def scipy_correlate(spec: Spec, weight: Array | None = None, bias: Array | None = None) -> Rival:
    """SciPy's correlate, for one channel in and stride 1."""
    from scipy.signal import correlate

    if isinstance(spec, PoolSpec):
        raise Unsupported("it has no pools")
    if spec.in_channels > 1 or set(spec.stride) | set(spec.dilation) != {1}:
        raise Unsupported("it correlates one channel at stride 1 and dilation 1")
    if spec.dtype not in ("float32", "float64") or spec.out_dtype != spec.dtype:
        raise Unsupported(f"the type is {spec.dtype}, needs float32 or float64")
    if spec.batch == 0:
        raise Unsupported("the batch is empty, needs one image")
    if min(amount for pair in spec.padding for amount in pair) < 0:
        raise Unsupported(f"the padding is {spec.padding}, needs no negative entry")
    pads = ((0, 0), (0, 0), *spec.padding)
    modes = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}
    mode: Any = modes.get(spec.padding_mode, spec.padding_mode)
    assert weight is not None
    kernels, added = weight[:, 0], np.zeros(len(weight), weight.dtype) if bias is None else bias

    def run(x: Array) -> Array:
        padded = np.pad(x, pads, mode)
        pairs = list(zip(kernels, added, strict=True))
        return np.stack(
            [[correlate(image[0], kernel, "valid") + b for kernel, b in pairs] for image in padded]
        )

    return Rival(lambda array: array, run, lambda result: (result,))


BASELINES: dict[str, Callable[..., Rival]] = {
    "torch": torch_nchw,
    "torch channels_last": torch_channels_last,
    "onnxruntime": onnxruntime,
    "scipy": scipy_correlate,
}

GRADIENTS: dict[str, Callable[[Spec, Op], Rival]] = {
    "torch": partial(_torch_gradient, channels_last=False),
    "torch channels_last": partial(_torch_gradient, channels_last=True),
}
