"""Gradients of every forward function, as explicit functions (``torch.nn.grad``'s names where it has them).

Each plans from the spec of the forward call it belongs to, so its arguments are that call's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastconv import api, arguments
from fastconv.api import Call, by_rank, run
from fastconv.arguments import Array, IntOrSizes, Options, Padding
from fastconv.spec import DTYPES, Op, PoolSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _spatial(
    name: str, size: object, channels: int | None, batch: int, rank: int, batched: bool
) -> tuple[int, ...]:
    """The spatial part of a full shape, its batch and channels checked against what is known."""
    if not arguments.is_sequence(size) or len(size) != rank + 1 + batched:
        without = "with" if batched else "without"
        raise ValueError(
            f"{name}: got {size!r}, expected a shape of {rank + 1 + batched} entries, {without} a batch as "
            "grad_output is"
        )
    entries = [arguments.integer(name, entry, 0) for entry in size]
    if batched and entries[0] != batch:
        raise ValueError(f"{name}: got a batch of {entries[0]}, expected grad_output's, {batch}")
    if channels is not None and entries[-rank - 1] != channels:
        raise ValueError(f"{name}: got {entries[-rank - 1]} channels, expected {channels}")
    return tuple(entries[-rank:])


def _same_batching(name: str, array: Array, batched: bool, other: str, wanted: bool) -> None:
    if batched != wanted:
        raise ValueError(
            f"{name}: got shape {tuple(array.shape)}, expected a batch axis just where {other} has one"
        )


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected {shape}")


def conv_input(
    rank: int,
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.conv{n}d` with respect to its input.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the input, (N, C, {size}) or (C, {size}).
    weight : array, shape (O, C / groups, {kernel})
    grad_output : array, shape (N, O, {out}) or (O, {out})
    stride, padding, dilation, groups, padding_mode
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of shape `input_size`

    Raises
    ------
    ValueError, TypeError, Unsupported
        As :func:`fastconv.conv{n}d`.
    """
    kind = arguments.same_kind(weight=weight, grad_output=grad_output)
    api._check_weight(weight, rank)
    dy, batched = api._batched("grad_output", grad_output, rank)
    groups_number = arguments.integer("groups", groups, 1)
    channels = weight.shape[1] * groups_number
    size = _spatial("input_size", input_size, channels, dy.shape[0], rank, batched)
    spec = api._conv_spec(
        rank, dy.shape[0], channels, size, weight.shape, stride, padding, dilation, groups, padding_mode,
        api._conv_dtypes(None, weight=weight, grad_output=dy), "input_size",
    )  # fmt: skip
    _expect("grad_output", dy, spec.output_shape)
    api._check_int32(spec, Op.CONV_INPUT_GRAD, dy, weight)
    return run(Call(spec, Op.CONV_INPUT_GRAD, (dy, weight), kind, None, batched), arguments.options(options))


def conv_weight(
    rank: int,
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.conv{n}d` with respect to its weight.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    weight_size : sequence of int
        Shape of the weight, (O, C / groups, {kernel}).
    grad_output : array, shape (N, O, {out}) or (O, {out})
    stride, padding, dilation, groups, padding_mode
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of shape `weight_size`

    Raises
    ------
    ValueError, TypeError, Unsupported
        As :func:`fastconv.conv{n}d`.
    """
    kind = arguments.same_kind(input=input, grad_output=grad_output)
    x, wanted = api._batched("input", input, rank)
    dy, batched = api._batched("grad_output", grad_output, rank)
    _same_batching("grad_output", grad_output, batched, "input", wanted)
    shape = arguments.sizes("weight_size", weight_size, rank + 2, 1)
    spec = api._conv_spec(
        rank, x.shape[0], x.shape[1], x.shape[2:], shape, stride, padding, dilation, groups, padding_mode,
        api._conv_dtypes(None, input=x, grad_output=dy),
    )  # fmt: skip
    _expect("grad_output", dy, spec.output_shape)
    api._check_int32(spec, Op.CONV_WEIGHT_GRAD, x, dy)
    return run(Call(spec, Op.CONV_WEIGHT_GRAD, (x, dy), kind), arguments.options(options))


def conv_bias(rank: int, grad_output: Array) -> Array:
    """Gradient of :func:`fastconv.conv{n}d` or its transpose with respect to the bias.

    Parameters
    ----------
    grad_output : array, shape (N, O, {out}) or (O, {out})

    Returns
    -------
    array, shape (O,)
        The sum over everything but channels, formed in the accumulation type.

    Raises
    ------
    ValueError, TypeError
    """
    arguments.same_kind(grad_output=grad_output)
    dy, _ = api._batched("grad_output", grad_output, rank)
    dtype = DTYPES[arguments.dtype_name("grad_output", dy)]
    count = dy.size // max(dy.shape[1], 1)
    if dtype.out == "int32" and count > 2**31 // 256:
        raise ValueError(
            f"grad_output: a sum of {count} elements of {dy.dtype.name} can pass 2**31 - 1, the largest int32; "
            "cast it to int16 (summed in int64)"
        )
    # A sum's order follows the memory; in C order the bits do not depend on the layout. Planes first: NumPy takes three times
    # as long for all axes at once.
    dy = dy if dy.flags.c_contiguous else dy.copy()
    planes = dy.reshape(*dy.shape[:2], math.prod(dy.shape[2:])).sum(axis=2, dtype=dtype.accumulate)
    return planes.sum(axis=0, dtype=dtype.accumulate).astype(dtype.out)


def conv_transpose_input(
    rank: int,
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.conv_transpose{n}d` with respect to its input: a forward convolution.

    Parameters
    ----------
    input_size : sequence of int
        Shape of the transposed convolution's input.
    weight : array, shape (C, O / groups, {kernel})
    grad_output : array, shape (N, O, {out}) or (O, {out})
    stride, padding, output_padding, groups, dilation
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of shape `input_size`

    Raises
    ------
    ValueError, TypeError, Unsupported
    """
    kind = arguments.same_kind(weight=weight, grad_output=grad_output)
    api._check_weight(weight, rank)
    dy, batched = api._batched("grad_output", grad_output, rank)
    size = _spatial("input_size", input_size, weight.shape[0], dy.shape[0], rank, batched)
    dtypes = api._conv_dtypes(None, weight=weight, grad_output=dy)
    spec = api.transposed_spec(
        rank, dy.shape[0], size, weight.shape, stride, padding, output_padding, groups, dilation, dtypes
    )
    _expect("grad_output", dy, spec.input_shape)
    api._check_int32(spec, Op.CONV, dy, weight)
    return run(Call(spec, Op.CONV, (dy, weight), kind, None, batched), arguments.options(options))


def conv_transpose_weight(
    rank: int,
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.conv_transpose{n}d` with respect to its weight.

    Parameters
    ----------
    input : array, shape (N, C, {size}) or (C, {size})
    weight_size : sequence of int
        Shape of the weight, (C, O / groups, {kernel}).
    grad_output : array, shape (N, O, {out}) or (O, {out})
    stride, padding, output_padding, groups, dilation
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of shape `weight_size`

    Raises
    ------
    ValueError, TypeError, Unsupported
    """
    kind = arguments.same_kind(input=input, grad_output=grad_output)
    x, wanted = api._batched("input", input, rank)
    dy, batched = api._batched("grad_output", grad_output, rank)
    _same_batching("grad_output", grad_output, batched, "input", wanted)
    shape = arguments.sizes("weight_size", weight_size, rank + 2, 1)
    if x.shape[1] != shape[0]:
        raise ValueError(f"input: got {x.shape[1]} channels, expected weight_size's first entry, {shape[0]}")
    dtypes = api._conv_dtypes(None, input=x, grad_output=dy)
    spec = api.transposed_spec(
        rank, x.shape[0], x.shape[2:], shape, stride, padding, output_padding, groups, dilation, dtypes
    )
    _expect("grad_output", dy, spec.input_shape)
    api._check_int32(spec, Op.CONV_WEIGHT_GRAD, dy, x)
    return run(Call(spec, Op.CONV_WEIGHT_GRAD, (dy, x), kind), arguments.options(options))


def unfold(
    grad_output: Array,
    input_size: Sequence[int],
    kernel_size: IntOrSizes,
    dilation: IntOrSizes = 1,
    padding: Padding = 0,
    stride: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.unfold` with respect to its input, which is :func:`fastconv.fold`.

    Parameters
    ----------
    grad_output : array, shape (N, C * prod(kernel_size), L) or without N
    input_size : sequence of int
        Spatial size of the image.
    kernel_size, dilation, padding, stride
        Of the forward call.

    Returns
    -------
    array, shape (N, C, *input_size) or without N

    Raises
    ------
    ValueError, TypeError
    """
    return api.fold(grad_output, input_size, kernel_size, dilation, padding, stride, **options)


def fold(
    grad_output: Array,
    kernel_size: IntOrSizes,
    dilation: IntOrSizes = 1,
    padding: Padding = 0,
    stride: IntOrSizes = 1,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.fold` with respect to its input, which is :func:`fastconv.unfold`.

    Parameters
    ----------
    grad_output : array, shape (N, C, *output_size) or without N
    kernel_size, dilation, padding, stride
        Of the forward call.

    Returns
    -------
    array, shape (N, C * prod(kernel_size), L) or without N

    Raises
    ------
    ValueError, TypeError
    """
    return api.unfold(grad_output, kernel_size, dilation, padding, stride, **options)


def _pool_grad(
    rank: int, forward: Call, grad_output: Array, indices: Array | None, options: Options
) -> Array:
    """The gradient that belongs to a checked forward pool."""
    spec = forward.spec
    assert isinstance(spec, PoolSpec)
    arguments.same_kind(grad_output=grad_output, input=forward.operands[0], indices=indices)
    dy, batched = api._batched("grad_output", grad_output, rank)
    _same_batching("grad_output", grad_output, batched, "input", forward.batched)
    _expect("grad_output", dy, spec.output_shape)
    if arguments.dtype_name("grad_output", dy) != spec.out_dtype:
        dtype = arguments.common_dtype(grad_output=dy, input=forward.operands[0])
        if DTYPES[dtype].kind != "f":
            raise TypeError(f"grad_output: got dtype {dy.dtype.name}, expected {spec.out_dtype}")
        spec = replace(spec, dtype=dtype)
    second = forward.operands[0]
    if indices is not None:
        _expect("indices", indices, tuple(grad_output.shape))
        indices = api._plain(indices)
        second = indices if batched else indices[None]
        made = api.unpool_spec(rank, dy, second, spec.in_size, "grad_output")
        assert made.output_shape == spec.output_shape
        spec = replace(spec, indices=True)
    call = Call(spec, Op.POOL_INPUT_GRAD, (dy, second), forward.kind, None, batched)
    return run(call, arguments.options(options))


def max_pool(
    rank: int,
    grad_output: Array,
    input: Array,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    padding: Padding = 0,
    dilation: IntOrSizes = 1,
    ceil_mode: bool = False,
    *,
    indices: Array | None = None,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.max_pool{n}d`: each grad_output goes to the first maximum of its window.

    Parameters
    ----------
    grad_output : array, shape (N, C, {out}) or (C, {out})
    input : array, shape (N, C, {size}) or (C, {size})
    kernel_size, stride, padding, dilation, ceil_mode
        Of the forward call.
    indices : int64 array of grad_output's shape, optional
        What the forward call returned with ``return_indices=True``; saves finding the maxima again.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of input's shape

    Raises
    ------
    ValueError, TypeError
    """
    forward = api.pool_call(rank, "max", input, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)
    return _pool_grad(rank, forward, grad_output, indices, options)


def avg_pool(
    rank: int,
    grad_output: Array,
    input: Array,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.avg_pool{n}d`.

    Parameters
    ----------
    grad_output : array, shape (N, C, {out}) or (C, {out})
    input : array, shape (N, C, {size}) or (C, {size})
        Only its shape and type matter.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of input's shape

    Raises
    ------
    ValueError, TypeError
    """
    forward = api.pool_call(
        rank, "avg", input, kernel_size, stride, padding, ceil_mode=ceil_mode,
        count_include_pad=count_include_pad, divisor_override=divisor_override,
    )  # fmt: skip
    return _pool_grad(rank, forward, grad_output, None, options)


def lp_pool(
    rank: int,
    grad_output: Array,
    input: Array,
    norm_type: float,
    kernel_size: IntOrSizes,
    stride: IntOrSizes | None = None,
    ceil_mode: bool = False,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.lp_pool{n}d`; where a whole window is 0 it is taken as 0.

    Parameters
    ----------
    grad_output : array, shape (N, C, {out}) or (C, {out})
    input : array, shape (N, C, {size}) or (C, {size})
    norm_type, kernel_size, stride, ceil_mode
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of input's shape

    Raises
    ------
    ValueError, TypeError
    """
    forward = api.pool_call(
        rank, "lp", input, kernel_size, stride, ceil_mode=ceil_mode, norm_type=api.lp_norm(norm_type)
    )
    return _pool_grad(rank, forward, grad_output, None, options)


def adaptive_max_pool(
    rank: int,
    grad_output: Array,
    input: Array,
    output_size: Any,
    *,
    indices: Array | None = None,
    **options: Unpack[Options],
) -> Array:
    """Gradient of :func:`fastconv.adaptive_max_pool{n}d`.

    Parameters
    ----------
    grad_output : array, shape (N, C, {out}) or (C, {out})
    input : array, shape (N, C, {size}) or (C, {size})
    output_size
        Of the forward call.
    indices : int64 array of grad_output's shape, optional
        As in :func:`max_pool{n}d`.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of input's shape

    Raises
    ------
    ValueError, TypeError
    """
    return _pool_grad(rank, api.adaptive_call(rank, "max", input, output_size), grad_output, indices, options)


def adaptive_avg_pool(
    rank: int, grad_output: Array, input: Array, output_size: Any, **options: Unpack[Options]
) -> Array:
    """Gradient of :func:`fastconv.adaptive_avg_pool{n}d`.

    Parameters
    ----------
    grad_output : array, shape (N, C, {out}) or (C, {out})
    input : array, shape (N, C, {size}) or (C, {size})
        Only its shape and type matter.
    output_size
        Of the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of input's shape

    Raises
    ------
    ValueError, TypeError
    """
    return _pool_grad(rank, api.adaptive_call(rank, "avg", input, output_size), grad_output, None, options)


def max_unpool(rank: int, grad_output: Array, indices: Array, **options: Unpack[Options]) -> Array:
    """Gradient of :func:`fastconv.max_unpool{n}d` with respect to its input: what stands at each index.

    Parameters
    ----------
    grad_output : array, shape (N, C, {out}) or (C, {out})
    indices : integer array, shape (N, C, {size}) or (C, {size})
        As given to the forward call.
    **options
        See :class:`fastconv.Options`.

    Returns
    -------
    array, of indices' shape

    Raises
    ------
    ValueError, TypeError
        Also if an index points outside its plane.
    """
    arguments.kind_of("indices", indices)
    kind = arguments.same_kind(grad_output=grad_output, indices=indices)
    dx, batched = api._batched("grad_output", grad_output, rank)
    places, indexed = api._batched("indices", indices, rank)
    _same_batching("indices", indices, indexed, "grad_output", batched)
    _expect("indices", places, (dx.shape[0], dx.shape[1], *places.shape[2:]))
    spec = replace(
        api.unpool_spec(rank, places, places, dx.shape[2:], "indices"),
        dtype=arguments.dtype_name("grad_output", dx),
    )
    call = Call(spec, Op.UNPOOL_INPUT_GRAD, (dx, places), kind, None, batched)
    return run(call, arguments.options(options))


conv1d_input, conv2d_input, conv3d_input = by_rank(conv_input)
conv1d_weight, conv2d_weight, conv3d_weight = by_rank(conv_weight)
conv1d_bias, conv2d_bias, conv3d_bias = by_rank(conv_bias)
conv_transpose1d_input, conv_transpose2d_input, conv_transpose3d_input = by_rank(conv_transpose_input)
conv_transpose1d_weight, conv_transpose2d_weight, conv_transpose3d_weight = by_rank(conv_transpose_weight)
max_pool1d, max_pool2d, max_pool3d = by_rank(max_pool)
avg_pool1d, avg_pool2d, avg_pool3d = by_rank(avg_pool)
lp_pool1d, lp_pool2d, lp_pool3d = by_rank(lp_pool)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = by_rank(adaptive_max_pool)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = by_rank(adaptive_avg_pool)
max_unpool1d, max_unpool2d, max_unpool3d = by_rank(max_unpool)
