"""Rivals in one callable shape: ``spec -> (run, place)``.

``place`` turns an operand into what the rival reads, before anything is timed; ``run`` takes those and gives the
result. Each raises ``Unsupported`` where it does not apply or is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends import Unsupported
from fastconv.spec import ConvSpec, Spec
from fastconv.threads import get_num_threads

Rival = tuple[Callable[..., Any], Callable[[Any], Any]]


def _symmetric(spec: Spec) -> tuple[int, ...]:
    if any(before != after for before, after in spec.padding):
        raise Unsupported("takes only symmetric padding")
    if isinstance(spec, ConvSpec) and spec.padding_mode != "zeros":
        raise Unsupported("pads only with zeros")
    return tuple(before for before, _ in spec.padding)


def _torch(spec: Spec, channels_last: bool) -> Rival:
    if importlib.util.find_spec("torch") is None:
        raise Unsupported("torch is not installed: pip install torch==2.13.0")
    import torch

    torch.set_num_threads(get_num_threads())
    functional, rank = torch.nn.functional, spec.rank
    if channels_last and rank != 2:
        raise Unsupported("channels_last needs two spatial axes")

    def placed(array: Any) -> Any:
        tensor = torch.from_numpy(array)
        return tensor.to(memory_format=torch.channels_last) if channels_last else tensor

    if isinstance(spec, ConvSpec):
        convolve, padding = getattr(functional, f"conv{rank}d"), _symmetric(spec)
        return lambda x, w: convolve(x, w, None, spec.stride, padding, spec.dilation, spec.groups), placed
    if spec.output_size:
        pool = getattr(functional, f"adaptive_{spec.mode}_pool{rank}d")
        return lambda x: pool(x, spec.output_size), placed
    pool, padding = getattr(functional, f"{spec.mode}_pool{rank}d"), _symmetric(spec)
    return lambda x: pool(x, spec.kernel_size, spec.stride, padding, ceil_mode=spec.ceil_mode), placed


def torch_nchw(spec: Spec) -> Rival:
    """PyTorch on its usual layout."""
    return _torch(spec, channels_last=False)


def torch_channels_last(spec: Spec) -> Rival:
    """PyTorch on channels-last memory, converted before timing."""
    return _torch(spec, channels_last=True)


def onnxruntime(spec: Spec) -> Rival:
    """ONNX Runtime, one operator in a session of its own."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        raise Unsupported('onnxruntime is not installed: pip install "fastconv[peers]"')
    import onnx
    import onnxruntime as ort

    fields: dict[str, Any] = {}
    if spec.kernel_size:
        pads = [before for before, _ in spec.padding] + [after for _, after in spec.padding]
        fields = {"kernel_shape": list(spec.kernel_size), "strides": list(spec.stride), "pads": pads}
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, spec.input_shape)]
    if isinstance(spec, ConvSpec):
        operator = "Conv"
        fields |= {"dilations": list(spec.dilation), "group": spec.groups}
        inputs.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, spec.weight_shape))
    elif spec.output_size == (1,) * spec.rank:
        operator = {"avg": "GlobalAveragePool", "max": "GlobalMaxPool"}[spec.mode]
    elif spec.output_size or spec.ceil_mode:
        raise Unsupported("adaptive bins and ceil mode differ there")
    else:
        operator = {"avg": "AveragePool", "max": "MaxPool"}[spec.mode]
        fields |= {"count_include_pad": 1} if spec.mode == "avg" else {}
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, spec.output_shape)
    node = onnx.helper.make_node(operator, [value.name for value in inputs], ["y"], **fields)
    graph = onnx.helper.make_graph([node], "one", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda *arrays: session.run(None, dict(zip("xw", arrays, strict=False)))[0], lambda array: array


def scipy_correlate(spec: Spec) -> Rival:
    """SciPy's correlate, for one channel in and stride 1."""
    from scipy.signal import correlate

    if not isinstance(spec, ConvSpec) or spec.in_channels > 1 or set(spec.stride) | set(spec.dilation) != {1}:
        raise Unsupported("correlates one channel at stride 1")
    pads = ((0, 0), (0, 0), *spec.padding)

    def run(x: Any, w: Any) -> Any:
        padded = np.pad(x, pads)
        return np.stack([[correlate(image[0], kernel[0], "valid") for kernel in w] for image in padded])

    return run, lambda array: array


BASELINES: dict[str, Callable[[Spec], Rival]] = {
    "torch": torch_nchw,
    "torch channels_last": torch_channels_last,
    "onnxruntime": onnxruntime,
    "scipy": scipy_correlate,
}
