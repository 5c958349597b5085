"""The functions people call: arguments -> spec -> plan -> arrays.

Each is written once, for any number of spatial axes, and published for one, two and three of them by
:func:`by_rank`. Names, argument order and defaults are ``torch.nn.functional``'s.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from fastconv import arguments, recall
from fastconv import spec as specs
from fastconv.arguments import Array, IntOrSizes, Options, Padding
from fastconv.backends import Unsupported, check_indices
from fastconv.plan import CHOICES, Plan, plan
from fastconv.spec import DTYPES, ConvSpec, Op, PoolSpec, Shape, Spec

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")

_SIZES = {1: ("W", "OW", "kw"), 2: ("H, W", "OH, OW", "kh, kw"), 3: ("D, H, W", "OD, OH, OW", "kd, kh, kw")}


# Calls of every function, by how they are spelt.
_memory = recall.Memory()


def by_rank(
    function: Callable[Concatenate[int, P], R],
) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """`function` for one, two and three spatial axes, named and documented as such.

    In name and docstring ``{n}`` stands for the rank, ``{size}``, ``{out}`` and ``{kernel}`` for the axes.
    """

    def bind(rank: int) -> Callable[P, R]:
        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            if _listener.get() is not None:
                return function(rank, *args, **kwargs)
            made: R = _memory.call(ranked, name, args, kwargs)
            return made

        name = _name(function.__name__, rank)
        ranked = functools.partial(function, rank)

        size, out, kernel = _SIZES[rank]
        words = {"{n}": str(rank), "{size}": size, "{out}": out, "{kernel}": kernel}
        signature = inspect.signature(function)
        bound.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=list(signature.parameters.values())[1:]
        )
        del bound.__dict__["__wrapped__"]
        bound.__name__ = bound.__qualname__ = name
        bound.__doc__ = functools.reduce(
            lambda text, word: text.replace(*word), words.items(), function.__doc__ or ""
        )
        bound.__annotations__ = {k: v for k, v in function.__annotations__.items() if k != "rank"}
        return bound

    return bind(1), bind(2), bind(3)


def _name(name: str, rank: int) -> str:
    """``conv_input`` -> ``conv2d_input``, ``max_pool`` -> ``max_pool2d``."""
    for tail in ("_input", "_weight", "_bias"):
        if name.endswith(tail):
            return f"{name.removesuffix(tail)}{rank}d{tail}"
    return f"{name}{rank}d"


# ---------------------------------------------------------------------------- from a spec to the result


class Call(NamedTuple):
    """One checked call: what to compute and on what. `weight`, where there is one, is the second operand."""

    spec: Spec
    op: Op
    operands: tuple[Array, ...]
    kind: str
    bias: Array | None = None
    batched: bool = True


# While explain() listens, calls hand over their plan and compute nothing.
_listener: ContextVar[list[Plan] | None] = ContextVar("fastconv_explain", default=None)


def _transform_is_safe(spec: Spec, op: Op, operands: Sequence[Array]) -> bool:
    """Whether a transform can neither meet a NaN or Inf nor overflow where the plain sum would not.

    An FFT's values stay under the sum of all |elements|, and a product of two spectra, summed over channels,
    under 64 * terms times the product of these sums (64 leaves room for a transform's scaling).
    """
    bound = 64.0 * spec.dot_length(op)
    for array in operands:
        bound *= max(float(array.max(initial=0)), -float(array.min(initial=0)), 1.0) * max(array.size, 1)
    return bool(bound < float(np.finfo("float32").max))


def run(call: Call, given: Options, packs: dict[Any, Any] | None = None) -> Any:
    """Plan `call` and compute it; `packs` remembers packed weights between calls."""
    spec, op, kind = call.spec, call.op, call.kind
    backend = arguments.backend_for(kind, given["backend"], op)
    shapes = spec.shapes(op)
    results = shapes[-2:] if op is Op.POOL and len(shapes) == 3 else shapes[-1:]
    outs = _check_outs(given["out"], results, kind, call.batched)
    read = call.operands if call.bias is None else (*call.operands, call.bias)
    targets = tuple(None if out is None else _target(out, read) for out in outs)
    copied = sum(
        shape.nbytes
        for array, shape in zip(call.operands, shapes, strict=False)
        if not arguments.is_ready(array, shape)
    )
    copied += sum(
        shape.nbytes
        for out, target, shape in zip(outs, targets, results, strict=True)
        if out is not None and target is None
    )
    chosen = _plan(call, backend, given, copied, packs is not None)
    listener = _listener.get()
    if listener is not None:
        listener.append(chosen)
        return None
    if not copied and given["out"] is None and call.batched and not chosen.run.finite_only:
        _remember(call, chosen, packs, results)
    operands = [arguments.operand(array, shape) for array, shape in zip(call.operands, shapes, strict=False)]
    out_argument = targets if len(targets) == 2 else targets[0]
    if op in (Op.CONV, Op.CONV_INPUT_GRAD):
        bias = None if call.bias is None else arguments.operand(call.bias, shapes[-1])
        weight = _packed(chosen, operands[1], packs)
        made = chosen.run_packed(operands[0], weight, bias=bias, out=out_argument)
    else:
        made = chosen(*operands, out=out_argument)
    finished = []
    for array, out in zip(made if isinstance(made, tuple) else (made,), outs, strict=True):
        if out is not None and array is not out:
            out[...] = array
            array = out
        finished.append(array if call.batched else array[0])
    if given["out"] is not None and not call.batched:
        finished = list(given["out"]) if isinstance(given["out"], tuple) else [given["out"]]
    return finished[0] if len(finished) == 1 else tuple(finished)


def _remember(call: Call, chosen: Plan, packs: dict[Any, Any] | None, results: Sequence[Shape]) -> None:
    """Let the next call like this one go straight to its kernel, if nothing but shapes decided."""
    if DTYPES[call.spec.dtype].kind != "f":
        return
    if isinstance(call.spec, PoolSpec):
        given = any(shape.name == "indices" for shape in call.spec.shapes(call.op)[: -len(results)])
        if given and not chosen.run.checks_indices:
            return
        recall.remember(chosen, call.operands, (), results)
    elif call.op is Op.CONV_WEIGHT_GRAD:
        recall.remember(chosen, call.operands, (), results)
    elif call.op in (Op.CONV, Op.CONV_INPUT_GRAD):
        bias = call.bias
        if bias is not None and bias.dtype.name != call.spec.dtype:
            return
        if packs is None and chosen.run.pack is None:
            recall.remember(chosen, (*call.operands, bias), (), results)
        elif packs is not None:
            packed = _packed(chosen, call.operands[1], packs)
            recall.remember(chosen, call.operands[:1], (packed, bias), results)


def _plan(call: Call, backend: str, given: Options, copied: int, prepared: bool) -> Plan:
    """The plan for a call that first copies `copied` bytes of its operands, which count under the limit."""
    limit = given["workspace_limit"]
    left = None if limit is None else max(limit - copied, 0)
    try:
        chosen = plan(call.spec, call.op, backend, given["algorithm"], given["precision"], left, prepared)
        if (
            chosen.run.finite_only
            and given["algorithm"] in CHOICES
            and not _transform_is_safe(call.spec, call.op, call.operands)
        ):
            chosen = plan(call.spec, call.op, backend, given["algorithm"], "highest", left, prepared)
        if limit is None or copied <= limit:
            return chosen
        need, reasons = chosen.workspace + copied, {}
    except Unsupported as refusal:
        if refusal.workspace is None or not copied:
            raise
        need, reasons = refusal.workspace + copied, dict(refusal.reasons)
    raise Unsupported(
        f"workspace_limit: got {limit}, expected at least {need} bytes, {copied} of them for operands or out that "
        "no kernel can use where they lie (another type, byte order, alignment or order of axes, or overlap)",
        reasons=reasons,
        workspace=need,
    )


# Packed weights are shared by the threads that call one prepared convolution.
_packs_lock = threading.Lock()


def _packed(chosen: Plan, weight: Array, packs: dict[Any, Any] | None) -> Any:
    if packs is None or chosen.run.pack is None:
        return chosen.pack(weight)
    # A weight packed for one type would compute in that type for all others.
    key = (chosen.backend, chosen.op, chosen.spec.dtype, chosen.run.packing)
    with _packs_lock:
        packed = packs.get(key)
    if packed is None:
        packed = chosen.pack(weight)
        with _packs_lock:
            packs[key] = packed
            # One entry per format; image sizes that ask for ever new formats must not pile up.
            while len(packs) > 8:
                packs.pop(next(iter(packs)))
    return packed


def _check_outs(out: Any, results: Sequence[Shape], kind: str, batched: bool) -> tuple[Array | None, ...]:
    if out is None:
        return (None,) * len(results)
    outs = out if len(results) == 2 else (out,)
    if not isinstance(outs, tuple) or len(outs) != len(results):
        came = f"a tuple of {len(out)}" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"out: got {came}, expected a tuple of two arrays, (values, indices)")
    for array, expected in zip(outs, results, strict=True):
        arguments.check_out(array, expected if batched else expected._replace(shape=expected.shape[1:]), kind)
    if len(outs) == 2 and np.may_share_memory(*outs):
        raise ValueError("out: got values and indices that share memory, expected two separate arrays")
    return tuple(array if batched else _plain(array)[None] for array in outs)


def _plain(array: Array) -> Array:
    """`array` without its subclass: a matrix, say, would drop the batch axis again."""
    return np.asarray(array) if isinstance(array, np.ndarray) else array


def _target(out: Array, operands: Sequence[Array]) -> Array | None:
    """`out` itself if a kernel may write it directly: C order, native, and apart from what is read."""
    if isinstance(out, np.ndarray):
        direct = (
            out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative and type(out) is np.ndarray
        )
    else:
        direct = out.flags.c_contiguous
    return out if direct and not any(np.may_share_memory(out, array) for array in operands) else None


def _batched(name: str, array: Array, rank: int) -> tuple[Array, bool]:
    """`array` with a batch axis, and whether it came with one."""
    if array.ndim not in (rank + 1, rank + 2):
        raise ValueError(
            f"{name}: got shape {tuple(array.shape)} with {array.ndim} axes, expected {rank + 2} "
            f"(batch, channels, {rank} spatial) or {rank + 1} without the batch"
        )
    array = _plain(array)
    return (array, True) if array.ndim == rank + 2 else (array[None], False)


# ---------------------------------------------------------------------------- convolution


def _check_weight(weight: Array, rank: int) -> None:
    if weight.ndim != rank + 2:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)} with {weight.ndim} axes, expected {rank + 2} "
            f"(out_channels, in_channels / groups, {rank} kernel axes)"
        )
    if min(weight.shape) < 1:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected no axis of length 0")


def _conv_dtypes(bias: Array | None, **arrays: Array) -> tuple[str, str]:
    """Storage and result type of a convolution of these arrays."""
    names = {name: arguments.dtype_name(name, array) for name, array in arrays.items()}
    kind = "" if bias is None else DTYPES[arguments.dtype_name("bias", bias)].kind
    if set(names.values()) == {"int8", "uint8"}:
        dtype, out = "int16", "int32"
    elif bias is None or kind != "f":
        dtype = arguments.common_dtype(**arrays)
        out = DTYPES[dtype].out
    else:
        dtype = arguments.common_dtype(**arrays)
        if DTYPES[dtype].kind != "f":
            raise TypeError(f"bias: got dtype {bias.dtype.name}, expected an integer type like the operands'")
        dtype = arguments.common_dtype(**arrays, bias=bias)
        out = DTYPES[dtype].out
    if bias is not None and DTYPES[out].kind != "f" and not np.can_cast(bias.dtype, np.dtype(out)):
        raise TypeError(f"bias: got dtype {bias.dtype.name}, expected one that fits the result's, {out}")
    return dtype, out


def _check_int32(spec: ConvSpec, op: Op, first: Array, second: Array, bias: Array | None = None) -> None:
    """Refuse sums of 8-bit products, and a bias, that could pass 2**31 - 1: nothing is ever wrapped silently."""
    if spec.out_dtype == "int32":
        largest = [
            max(abs(int(np.iinfo(array.dtype).min)), int(np.iinfo(array.dtype).max))
            for array in (first, second)
        ]
        bound = largest[0] * largest[1] * spec.dot_length(op)
        if bias is not None:
            bound += max(int(bias.max(initial=0)), -int(bias.min(initial=0)))
        if bound > 2**31 - 1:
            raise ValueError(
                f"dtype: {spec.dot_length(op)} products of {first.dtype.name} and {second.dtype.name} can pass "
                "2**31 - 1, the largest int32; cast one operand to int16 (summed in int64)"
            )


def _check_bias(bias: Array | None, channels: int) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(
            f"bias: got shape {tuple(bias.shape)}, expected ({channels},), one number per channel"
        )


def _divided(groups: object, **channels: int) -> int:
    number = arguments.integer("groups", groups, 1)
    for name, count in channels.items():
        if count % number:
            raise ValueError(f"groups: got {number}, expected a divisor of {name}, {count}")
    return number


def _is_plain(value: object) -> bool:
    """An int, a string or a tuple of ints: what is equal to it is also spelt like it, unlike 1.0 or True."""
    return type(value) in (int, str) or (type(value) is tuple and all(type(entry) is int for entry in value))


def _conv_spec(
    rank: int,
    batch: int,
    channels: int,
    in_size: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: str,
    dtypes: tuple[str, str],
    channels_name: str = "input",
) -> ConvSpec:
    """The checked spec of a convolution; the same arguments give the same object, at a tenth of the price."""
    plain = all(map(_is_plain, (stride, padding, dilation, groups, padding_mode)))
    make = _remembered_spec if plain else _new_conv_spec
    return make(
        rank, batch, channels, in_size, weight_shape, stride, padding, dilation, groups, padding_mode, dtypes,
        channels_name,
    )  # fmt: skip


def _new_conv_spec(
    rank: int,
    batch: int,
    channels: int,
    in_size: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: str,
    dtypes: tuple[str, str],
    channels_name: str,
) -> ConvSpec:
    out_channels, per_group, *kernel = weight_shape
    number = _divided(groups, out_channels=out_channels)
    if channels != per_group * number:
        raise ValueError(
            f"{channels_name}: got {channels} channels, expected {per_group * number} "
            f"(weight of shape {tuple(weight_shape)} takes {per_group} in each of {number} groups)"
        )
    strides = arguments.sizes("stride", stride, rank, 1)
    dilations = arguments.sizes("dilation", dilation, rank, 1)
    return ConvSpec(
        batch=batch,
        in_channels=channels,
        out_channels=out_channels,
        in_size=in_size,
        kernel_size=tuple(kernel),
        stride=strides,
        padding=arguments.pads(padding, in_size, tuple(kernel), strides, dilations),
        dilation=dilations,
        groups=number,
        padding_mode=padding_mode,
        dtype=dtypes[0],
        out_dtype=dtypes[1],
    )


_remembered_spec = functools.lru_cache(maxsize=1024)(_new_conv_spec)


def conv_call(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    padding_mode: str,
) -> Call:
    """A forward convolution, checked."""
    kind = arguments.same_kind(input=input, weight=weight, bias=bias)
    _check_weight(weight, rank)
    x, batched = _batched("input", input, rank)
    dtypes = _conv_dtypes(bias, input=x, weight=weight)
    spec = _conv_spec(
        rank, x.shape[0], x.shape[1], x.shape[2:], weight.shape, stride, padding, dilation, groups,
        padding_mode, dtypes,
    )  # fmt: skip
    _check_bias(bias, spec.out_channels)
    _check_int32(spec, Op.CONV, x, weight, bias)
    return Call(spec, Op.CONV, (x, weight), kind, bias, batched)


def conv(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    **options: Unpack[Options],
) -> Array:
    """{n}-D convolution (cross-correlation: the kernel is not flipped), as ``torch.nn.functional.conv{n}d``.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    weight : array, shape (O, C / groups, {kernel})
    bias : array, shape (O,), optional
        Added to every output of its channel.
    stride : int or tuple of int
        Input elements between neighbouring windows.
    padding : int, tuple of int, tuple of (before, after), or str
        Elements put around the input; ``"same"`` and ``"same_lower"`` keep ``ceil(size / stride)`` outputs
        with the odd one after or before, at any stride; ``"valid"`` is 0.
    dilation : int or tuple of int
        Input elements between neighbouring kernel taps.
    groups : int
        Channels are split into this many independent convolutions.
    padding_mode : {"zeros", "reflect", "replicate", "circular", "symmetric"}
        What stands in the padding.
    **options
        ``backend, algorithm, precision, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, O, {out}) or (O, {out})
        Of NumPy's common type for floats; int8 and uint8 give int32, other integers 64 bits, exactly.
        ``out = floor((size + before + after - dilation * (k - 1) - 1) / stride) + 1`` along each axis.

    Raises
    ------
    ValueError, TypeError
        If an argument has no meaning; the message names it, what came and what was expected.
    Unsupported
        If no algorithm takes the problem, for instance under ``workspace_limit``.
    """
    call = conv_call(rank, input, weight, bias, stride, padding, dilation, groups, padding_mode)
    return run(call, arguments.options(options))


def conv_transpose_call(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: object,
    padding: object,
    output_padding: object,
    groups: object,
    dilation: object,
) -> Call:
    """A transposed convolution, checked: the input gradient of the spec that maps its output to its input."""
    kind = arguments.same_kind(input=input, weight=weight, bias=bias)
    _check_weight(weight, rank)
    x, batched = _batched("input", input, rank)
    dtypes = _conv_dtypes(bias, input=x, weight=weight)
    if x.shape[1] != weight.shape[0]:
        raise ValueError(
            f"input: got {x.shape[1]} channels, expected {weight.shape[0]} (weight has shape {tuple(weight.shape)}, "
            "in_channels first in a transposed convolution)"
        )
    spec = transposed_spec(
        rank, x.shape[0], x.shape[2:], weight.shape, stride, padding, output_padding, groups, dilation, dtypes
    )
    _check_bias(bias, spec.in_channels)
    _check_int32(spec, Op.CONV_INPUT_GRAD, x, weight, bias)
    return Call(spec, Op.CONV_INPUT_GRAD, (x, weight), kind, bias, batched)


def transposed_spec(
    rank: int,
    batch: int,
    size: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: object,
    padding: object,
    output_padding: object,
    groups: object,
    dilation: object,
    dtypes: tuple[str, str],
) -> ConvSpec:
    """The forward convolution whose input gradient is this transposed convolution.

    ``output_padding`` makes the forward input longer without adding a window: it comes off the padding after
    it, which may become negative (elements no window reads).
    """
    in_channels, per_group, *kernel = weight_shape
    number = _divided(groups, in_channels=in_channels)
    strides = arguments.sizes("stride", stride, rank, 1)
    dilations = arguments.sizes("dilation", dilation, rank, 1)
    if isinstance(padding, str):
        raise ValueError(f"padding: got {padding!r}, expected numbers for a transposed convolution")
    given = arguments.pads(padding, size, tuple(kernel), strides, dilations)
    extra = arguments.sizes("output_padding", output_padding, rank, 0)
    for s, d, e in zip(strides, dilations, extra, strict=True):
        if e >= max(s, d):
            raise ValueError(f"output_padding: got {e}, expected less than stride ({s}) or dilation ({d})")
    out_size = tuple(
        (n - 1) * s - b - a + d * (k - 1) + e + 1
        for n, s, (b, a), d, k, e in zip(size, strides, given, dilations, kernel, extra, strict=True)
    )
    if min(size) < 1:
        raise ValueError(f"input: got spatial size {tuple(size)}, expected every entry to be at least 1")
    if min(out_size) < 1:
        raise ValueError(
            f"padding: got {padding!r}, which leaves an output of size {out_size}, expected at least 1"
        )
    return ConvSpec(
        batch=batch,
        in_channels=per_group * number,
        out_channels=in_channels,
        in_size=out_size,
        kernel_size=tuple(kernel),
        stride=strides,
        padding=tuple((b, a - e) for (b, a), e in zip(given, extra, strict=True)),
        dilation=dilations,
        groups=number,
        dtype=dtypes[0],
        out_dtype=dtypes[1],
    )


def conv_transpose(
    rank: int,
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """{n}-D transposed convolution, as ``torch.nn.functional.conv_transpose{n}d``.

    The adjoint of :func:`conv{n}d` with the same weight, stride, padding and dilation.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    weight : array, shape (C, O / groups, {kernel})
    bias : array, shape (O,), optional
    stride, padding, dilation : int or tuple of int
        Of the forward convolution; `padding` may hold (before, after) pairs.
    output_padding : int or tuple of int
        Elements added at the end of the output, less than stride or dilation.
    groups : int
    **options
        ``backend, algorithm, precision, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, O, {out}) or (O, {out})
        ``out = (size - 1) * stride - before - after + dilation * (k - 1) + output_padding + 1``.

    Raises
    ------
    ValueError, TypeError, Unsupported
        As :func:`conv{n}d`.
    """
    call = conv_transpose_call(rank, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return run(call, arguments.options(options))


# ---------------------------------------------------------------------------- im2col and col2im


def unfold_call(input: Array, kernel_size: object, dilation: object, padding: object, stride: object) -> Call:
    """Columns of sliding windows, checked; the rank is the length of `kernel_size`, two for an int."""
    kind = arguments.same_kind(input=input)
    rank = arguments.rank_of("kernel_size", kernel_size, 2)
    x, batched = _batched("input", input, rank)
    if x.shape[1] < 1:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected at least 1 channel")
    spec = _columns_spec(
        x.shape[0],
        x.shape[1],
        x.shape[2:],
        kernel_size,
        dilation,
        padding,
        stride,
        arguments.dtype_name("input", x),
    )
    return Call(spec, Op.UNFOLD, (x,), kind, None, batched)


def _columns_spec(
    batch: int,
    channels: int,
    in_size: tuple[int, ...],
    kernel_size: object,
    dilation: object,
    padding: object,
    stride: object,
    dtype: str,
) -> ConvSpec:
    rank = len(in_size)
    kernel = arguments.sizes("kernel_size", kernel_size, rank, 1)
    strides = arguments.sizes("stride", stride, rank, 1)
    dilations = arguments.sizes("dilation", dilation, rank, 1)
    return ConvSpec(
        batch=batch,
        in_channels=channels,
        out_channels=1,
        in_size=in_size,
        kernel_size=kernel,
        stride=strides,
        padding=arguments.pads(padding, in_size, kernel, strides, dilations),
        dilation=dilations,
        dtype=dtype,
    )


def unfold(
    input: Array,
    kernel_size: IntOrSizes,
    dilation: IntOrSizes = 1,
    padding: Padding = 0,
    stride: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """Sliding windows as columns (im2col), as ``torch.nn.functional.unfold``, for one to three axes.

    Parameters
    ----------
    input : array, shape (N, C, *size) or (C, *size)
    kernel_size : int or tuple of int
        Its length says how many spatial axes there are; an int means two.
    dilation, padding, stride
        As in :func:`conv2d`.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C * prod(kernel_size), L) or without N
        One column for each of the ``L`` windows.

    Raises
    ------
    ValueError, TypeError
    """
    return run(unfold_call(input, kernel_size, dilation, padding, stride), arguments.options(options))


def fold_call(
    input: Array, output_size: object, kernel_size: object, dilation: object, padding: object, stride: object
) -> Call:
    """The sum of columns into an image, checked."""
    kind = arguments.same_kind(input=input)
    rank = arguments.rank_of("output_size", output_size, arguments.rank_of("kernel_size", kernel_size, 2))
    size = arguments.sizes("output_size", output_size, rank, 1)
    if input.ndim not in (2, 3):
        raise ValueError(
            f"input: got shape {tuple(input.shape)}, expected (N, C * prod(kernel_size), L) or without N"
        )
    columns, batched = (input, True) if input.ndim == 3 else (input[None], False)
    taps = math.prod(arguments.sizes("kernel_size", kernel_size, rank, 1))
    if columns.shape[1] < 1 or columns.shape[1] % taps:
        raise ValueError(
            f"input: got {columns.shape[1]} rows, expected a multiple of prod(kernel_size), {taps}"
        )
    dtype = arguments.dtype_name("input", columns)
    spec = _columns_spec(
        columns.shape[0], columns.shape[1] // taps, size, kernel_size, dilation, padding, stride, dtype
    )
    if columns.shape != spec.columns_shape:
        raise ValueError(
            f"input: got {columns.shape[2]} columns, expected {spec.columns_shape[2]}, the windows of a {spec.in_size} image"
        )
    return Call(spec, Op.FOLD, (columns,), kind, None, batched)


def fold(
    input: Array,
    output_size: IntOrSizes,
    kernel_size: IntOrSizes,
    dilation: IntOrSizes = 1,
    padding: Padding = 0,
    stride: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """Sum columns back into an image (col2im), as ``torch.nn.functional.fold``: the adjoint of :func:`unfold`.

    Parameters
    ----------
    input : array, shape (N, C * prod(kernel_size), L) or without N
    output_size : int or tuple of int
        Spatial size of the image, one to three axes.
    kernel_size, dilation, padding, stride
        As in :func:`unfold`.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, *output_size) or without N

    Raises
    ------
    ValueError, TypeError
    """
    return run(
        fold_call(input, output_size, kernel_size, dilation, padding, stride), arguments.options(options)
    )


# ---------------------------------------------------------------------------- pooling


def pool_call(
    rank: int,
    mode: str,
    input: Array,
    kernel_size: object,
    stride: object = None,
    padding: object = 0,
    dilation: object = 1,
    **fields: Any,
) -> Call:
    """A pool with a kernel, checked."""
    kind = arguments.same_kind(input=input)
    x, batched = _batched("input", input, rank)
    kernel = arguments.sizes("kernel_size", kernel_size, rank, 1)
    strides = kernel if stride is None else arguments.sizes("stride", stride, rank, 1)
    dilations = arguments.sizes("dilation", dilation, rank, 1)
    for name in ("ceil_mode", "count_include_pad", "indices"):
        if name in fields:
            fields[name] = arguments.flag("return_indices" if name == "indices" else name, fields[name])
    if fields.get("divisor_override") is not None:
        fields["divisor_override"] = arguments.integer("divisor_override", fields["divisor_override"], 1)
    else:
        fields["divisor_override"] = 0
    spec = PoolSpec(
        mode=mode,
        batch=x.shape[0],
        channels=x.shape[1],
        in_size=x.shape[2:],
        kernel_size=kernel,
        stride=strides,
        padding=arguments.pads(padding, x.shape[2:], kernel, strides, dilations),
        dilation=dilations,
        dtype=arguments.dtype_name("input", x),
        **fields,
    )
    return Call(spec, Op.POOL, (x,), kind, None, batched)


def adaptive_call(rank: int, mode: str, input: Array, output_size: object, indices: object = False) -> Call:
    """A pool with a wished output size, checked; None keeps an axis."""
    kind = arguments.same_kind(input=input)
    x, batched = _batched("input", input, rank)
    wanted = output_size
    if output_size is None or arguments.is_sequence(output_size):
        entries = [None] * rank if output_size is None else list(output_size)
        wanted = [x.shape[2 + a] if a < rank and entry is None else entry for a, entry in enumerate(entries)]
    spec = PoolSpec(
        mode=mode,
        batch=x.shape[0],
        channels=x.shape[1],
        in_size=x.shape[2:],
        output_size=arguments.sizes("output_size", wanted, rank, 1),
        indices=arguments.flag("return_indices", indices),
        dtype=arguments.dtype_name("input", x),
    )
    return Call(spec, Op.POOL, (x,), kind, None, batched)


def lp_norm(norm_type: object) -> float:
    """The p of an Lp pool: a finite number above 0."""
    if isinstance(norm_type, bool) or not isinstance(norm_type, int | float | np.integer | np.floating):
        raise TypeError(f"norm_type: got {norm_type!r}, expected a number")
    try:
        return float(norm_type)
    except OverflowError:
        raise ValueError(
            "norm_type: got an int beyond the largest float, expected a finite number above 0"
        ) from None


def max_pool(
    rank: int,
    input: Array,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    padding: Padding = 0,
    dilation: IntOrSizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    **options: Unpack[Options],
) -> Any:
    """{n}-D max pooling, as ``torch.nn.functional.max_pool{n}d``.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    kernel_size : int or tuple of int
    stride : int or tuple of int, optional
        The kernel's size where not given.
    padding : int, tuple of int, tuple of (before, after), or str
        Counts as minus infinity; at most half of what the window spans.
    dilation : int or tuple of int
    ceil_mode : bool
        Also take a last window that hangs over the end, unless it would start in the padding.
    return_indices : bool
        Also return where each maximum stands.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, {out}) or (C, {out})
        A NaN in a window makes its maximum NaN.
    indices : int64 array of the same shape, with `return_indices`
        Flat position in the input plane; of equal maxima the first.

    Raises
    ------
    ValueError, TypeError
    """
    call = pool_call(
        rank,
        "max",
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode=ceil_mode,
        indices=return_indices,
    )
    return run(call, arguments.options(options))


def avg_pool(
    rank: int,
    input: Array,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    **options: Unpack[Options],
) -> Array:
    """{n}-D average pooling, as ``torch.nn.functional.avg_pool{n}d``.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    kernel_size, stride, padding, ceil_mode
        As in :func:`max_pool{n}d`; padding counts as zeros.
    count_include_pad : bool
        Divide by the window's size inside the padded input; if False, inside the input.
    divisor_override : int, optional
        Divide by this instead.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, {out}) or (C, {out})
        Integers average to float64, as ``numpy.mean`` does.

    Raises
    ------
    ValueError, TypeError
    """
    call = pool_call(
        rank, "avg", input, kernel_size, stride, padding, ceil_mode=ceil_mode,
        count_include_pad=count_include_pad, divisor_override=divisor_override,
    )  # fmt: skip
    return run(call, arguments.options(options))


def lp_pool(
    rank: int,
    input: Array,
    norm_type: float,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    ceil_mode: bool = False,
    **options: Unpack[Options],
) -> Array:
    """{n}-D power-average pooling ``(sum |x|**p)**(1/p)``, as ``torch.nn.functional.lp_pool{n}d``.

    torch leaves out the absolute value, so odd powers of negative numbers differ there; and as in torch a
    window cut short by `ceil_mode` is scaled up to the whole kernel's size.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    norm_type : float
        The ``p``, finite and above 0.
    kernel_size, stride, ceil_mode
        As in :func:`max_pool{n}d`.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, {out}) or (C, {out})

    Raises
    ------
    ValueError, TypeError
    """
    call = pool_call(
        rank, "lp", input, kernel_size, stride, ceil_mode=ceil_mode, norm_type=lp_norm(norm_type)
    )
    return run(call, arguments.options(options))


def adaptive_max_pool(
    rank: int, input: Array, output_size: Any, return_indices: bool = False, **options: Unpack[Options]
) -> Any:
    """{n}-D max pooling to a wished size, as ``torch.nn.functional.adaptive_max_pool{n}d``.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    output_size : int or tuple of int or None
        None keeps an axis. Bin ``i`` of ``o`` covers ``floor(i * size / o)`` to ``ceil((i + 1) * size / o)``.
    return_indices : bool
        Also return where each maximum stands.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, {out}) or (C, {out}), and with `return_indices` its int64 indices

    Raises
    ------
    ValueError, TypeError
    """
    return run(adaptive_call(rank, "max", input, output_size, return_indices), arguments.options(options))


def adaptive_avg_pool(rank: int, input: Array, output_size: Any, **options: Unpack[Options]) -> Array:
    """{n}-D average pooling to a wished size, as ``torch.nn.functional.adaptive_avg_pool{n}d``.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    output_size : int or tuple of int or None
        As in :func:`adaptive_max_pool{n}d`.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, {out}) or (C, {out})

    Raises
    ------
    ValueError, TypeError
    """
    return run(adaptive_call(rank, "avg", input, output_size), arguments.options(options))


def unpool_spec(rank: int, small: Array, indices: Array, large: tuple[int, ...], name: str) -> PoolSpec:
    """The planes of an unpool: `small` holds one number for each index into a plane of size `large`."""
    if tuple(indices.shape) != tuple(small.shape):
        raise ValueError(
            f"indices: got shape {tuple(indices.shape)}, expected {name}'s, {tuple(small.shape)}"
        )
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices: got dtype {indices.dtype.name}, expected an integer type")
    if (
        indices.dtype.name != "int64"
    ):  # which the largest unsigned ones would turn negative; others the plan checks
        check_indices(indices, large)
    return PoolSpec(
        mode="max",
        batch=small.shape[0],
        channels=small.shape[1],
        in_size=large,
        output_size=small.shape[2:],
        indices=True,
        dtype=arguments.dtype_name(name, small),
    )


def max_unpool(
    rank: int,
    input: Array,
    indices: Array,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    padding: IntOrSizes = 0,
    output_size: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Array:
    """{n}-D partial inverse of :func:`max_pool{n}d`, as ``torch.nn.functional.max_unpool{n}d``.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    indices : integer array of the same shape
        As returned with ``return_indices=True``.
    kernel_size, stride, padding : int or tuple of int
        Of the pool.
    output_size : sequence of int, optional
        The pool's input size, spatial or whole shape, within one stride of
        ``(size - 1) * stride - 2 * padding + kernel_size``.
    **options
        ``backend, algorithm, workspace_limit, out``: see :class:`fastconv.Options`.

    Returns
    -------
    array, shape (N, C, {out}) or (C, {out})
        Zero where no index points. Where several point, the last one stays.

    Raises
    ------
    ValueError, TypeError
        Also if an index points outside its plane.
    """
    arguments.kind_of("indices", indices)  # here, unlike in a gradient, they are no option
    kind = arguments.same_kind(input=input, indices=indices)
    if tuple(indices.shape) != tuple(input.shape):
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, expected input's, {tuple(input.shape)}")
    indices = _plain(indices)
    x, batched = _batched("input", input, rank)
    kernel = arguments.sizes("kernel_size", kernel_size, rank, 1)
    strides = kernel if stride is None else arguments.sizes("stride", stride, rank, 1)
    pads = arguments.sizes("padding", padding, rank, 0)
    usual = tuple(
        (n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[2:], strides, pads, kernel, strict=True)
    )
    if min(x.shape[2:]) < 1:
        raise ValueError(
            f"input: got spatial size {tuple(x.shape[2:])}, expected every entry to be at least 1"
        )
    if output_size is None and min(usual) < 1:
        raise ValueError(
            f"padding: got {padding!r}, which leaves an output of size {usual}, expected at least 1"
        )
    size = usual
    if output_size is not None:
        whole = arguments.is_sequence(output_size) and len(output_size) in (rank + 1, rank + 2)
        tail = list(output_size)[-rank:] if whole else output_size
        size = arguments.sizes("output_size", tail, rank, 1)
    for got, middle, s in zip(size, usual, strides, strict=True):
        if got < 1 or (abs(got - middle) >= s and got != middle):
            raise ValueError(f"output_size: got {size}, expected within one stride {strides} of {usual}")
    spec = unpool_spec(rank, x, indices if batched else indices[None], size, "input")
    call = Call(spec, Op.UNPOOL, (x, indices if batched else indices[None]), kind, None, batched)
    return run(call, arguments.options(options))


# ---------------------------------------------------------------------------- explaining


def explain(what: str | Spec | Callable[..., Any], *args: Any, op: str | None = None, **kwargs: Any) -> Plan:
    """The plan that a problem or a call would run; print it. Nothing is computed.

    Only ``algorithm="measure"`` times the candidates, where their times are not remembered yet.

    Parameters
    ----------
    what : str, Spec or function
        A problem string (see :func:`fastconv.parse`), a spec, or a function of this package followed by its
        arguments.
    op : str, optional
        For a problem: ``"conv"`` (the default), ``"conv input grad"``, ``"pool input grad"``, ...
    **kwargs
        The function's keywords; for a problem ``backend``, ``algorithm``, ``precision``, ``workspace_limit``.

    Returns
    -------
    Plan
        Its text shows algorithm, operations, bytes, workspace, error bound, the cost model's estimate of
        every candidate (and its measured time), and every algorithm that declined with its reason.

    Raises
    ------
    ValueError, TypeError
        As the call itself would.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.explain("n1 c3x32x32 k8x3x3 s1 p1 f32", backend="im2col").algorithm
    'im2col'
    """
    if callable(what):
        if op is not None:
            raise TypeError(f"op: got {op!r} with a function, expected it with a problem only")
        plans: list[Plan] = []
        token = _listener.set(plans)
        try:
            what(*args, **kwargs)
        finally:
            _listener.reset(token)
        if not plans:
            raise ValueError(f"what: {what!r} made no plan, expected a function of fastconv")
        return plans[0]
    spec = specs.parse(what) if isinstance(what, str) else what
    if not isinstance(spec, ConvSpec | PoolSpec):
        raise TypeError(f"what: got {what!r}, expected a problem string, a spec or a function")
    if args:
        raise TypeError(f"args: got {args[0]!r} after a problem, expected keywords, such as op or backend")
    names = {str(known): known for known in spec.ops}
    if op is not None and op not in names:
        raise ValueError(f"op: got {op!r}, expected one of {', '.join(names)}")
    given = arguments.options(kwargs)  # type: ignore[arg-type]
    wanted = names[op] if op else spec.ops[0]
    backend = arguments.backend_for(None, given["backend"], wanted)
    return plan(spec, wanted, backend, given["algorithm"], given["precision"], given["workspace_limit"])


conv1d, conv2d, conv3d = by_rank(conv)
conv_transpose1d, conv_transpose2d, conv_transpose3d = by_rank(conv_transpose)
max_pool1d, max_pool2d, max_pool3d = by_rank(max_pool)
avg_pool1d, avg_pool2d, avg_pool3d = by_rank(avg_pool)
lp_pool1d, lp_pool2d, lp_pool3d = by_rank(lp_pool)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = by_rank(adaptive_max_pool)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = by_rank(adaptive_avg_pool)
max_unpool1d, max_unpool2d, max_unpool3d = by_rank(max_unpool)
