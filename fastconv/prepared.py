"""Convolutions whose weights are packed or transformed once and then used for any batch and image size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastconv import api, arguments, recall
from fastconv.api import Call, by_rank, run
from fastconv.arguments import Array, IntOrSizes, Options, Padding
from fastconv.backends import algorithms, backends, owner
from fastconv.plan import CHOICES
from fastconv.spec import Op

if TYPE_CHECKING:
    from typing_extensions import Unpack


# Arguments are checked before any input is known, on an image of at least this size and of the kernel's.
_ANY_SIZE = 1 << 12


class PreparedConv:
    """A convolution with its weights fixed: call it with an input.

    It holds its own copy of weight and bias, so changing the arrays it was made from changes nothing. It may
    be called from several threads at once.
    """

    def __init__(
        self,
        call_for: Callable[[Array, Array, Array | None], Call],
        weight: Array,
        bias: Array | None,
        options: Options,
    ) -> None:
        self._call_for = call_for
        self._weight = weight.copy()
        self._bias = None if bias is None else bias.copy()
        if options["out"] is not None:
            raise TypeError("out: got an array while preparing, expected it in the call")
        self._options = options
        self._packs: dict[Any, Any] = {}
        self._memory = recall.Memory()

    def __call__(self, input: Array, *, out: Array | None = None) -> Array:
        """Convolve `input` as the function this was prepared from would."""
        if api._listener.get() is not None:
            return self._compute(input, out=out)
        return self._memory.call(self._compute, None, (input,), {} if out is None else {"out": out})

    def _compute(self, input: Array, *, out: Array | None = None) -> Array:
        given: Options = {**self._options, "out": out}
        return run(self._call_for(input, self._weight, self._bias), given, self._packs)

    def __repr__(self) -> str:
        return f"<PreparedConv weight {self._weight.shape} {self._weight.dtype.name}>"


def _dtypes(weight: Array, bias: Array | None) -> tuple[str, str]:
    """The weight's types. Which bias goes with them depends on the input too: a call refuses what does not."""
    if bias is not None:
        arguments.dtype_name("bias", bias)
    return api._conv_dtypes(None, weight=weight)


def _options(given: Options, kind: str, op: Op) -> Options:
    """`given` completed, its algorithm known to the backend; without one, to any that a call may find set."""
    full = arguments.options(given)
    if full["algorithm"] in CHOICES:  # no backend is imported before it is needed
        return full
    named = full["backend"] if full["backend"] != "auto" else None
    asked = [named] if named else [name for name, state in backends().items() if state == "available"]
    known = [*CHOICES, *(found for name in asked if owner(name) == kind for found in algorithms(name, op))]
    if full["algorithm"] not in known:
        where = f"backend {named!r}" if named else "any backend"
        raise ValueError(
            f"algorithm: got {full['algorithm']!r}, expected one of {', '.join(dict.fromkeys(known))} ({op} on {where})"
        )
    return full


def prepare_conv(
    rank: int,
    weight: Array,
    bias: Array | None = None,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    dilation: IntOrSizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    **options: Unpack[Options],
) -> PreparedConv:
    """Prepare a {n}-D convolution: pack or transform the weights once, then call with any input.

    Parameters
    ----------
    weight : array, shape (O, C / groups, {kernel})
    bias : array, shape (O,), optional
    stride, padding, dilation, groups, padding_mode
        As in :func:`conv{n}d`.
    **options
        ``backend, algorithm, precision, workspace_limit``: see :class:`fastconv.Options`.

    Returns
    -------
    PreparedConv
        Called with an input, and optionally ``out=``, it returns what :func:`conv{n}d` would.

    Raises
    ------
    ValueError, TypeError
        As :func:`conv{n}d`.
    """
    kind = arguments.same_kind(weight=weight, bias=bias)
    api._check_weight(weight, rank)
    api._check_bias(bias, weight.shape[0])
    number = api._divided(groups, out_channels=weight.shape[0])
    dtypes = _dtypes(weight, bias)
    dilations = arguments.sizes("dilation", dilation, rank, 1)
    size = tuple(max(_ANY_SIZE, d * (k - 1) + 1) for d, k in zip(dilations, weight.shape[2:], strict=True))
    api._conv_spec(
        rank, 1, weight.shape[1] * number, size, weight.shape, stride, padding, dilations, groups, padding_mode,
        dtypes,
    )  # fmt: skip

    def call_for(x: Array, w: Array, b: Array | None) -> Call:
        return api.conv_call(rank, x, w, b, stride, padding, dilation, groups, padding_mode)

    return PreparedConv(call_for, weight, bias, _options(options, kind, Op.CONV))


def prepare_conv_transpose(
    rank: int,
    weight: Array,
    bias: Array | None = None,
    stride: IntOrSizes = 1,
    padding: Padding = 0,
    output_padding: IntOrSizes = 0,
    groups: int = 1,
    dilation: IntOrSizes = 1,
    **options: Unpack[Options],
) -> PreparedConv:
    """Prepare a {n}-D transposed convolution; see :func:`prepare_conv{n}d` and :func:`conv_transpose{n}d`.

    Parameters
    ----------
    weight : array, shape (C, O / groups, {kernel})
    bias : array, shape (O,), optional
    stride, padding, output_padding, groups, dilation
        As in :func:`conv_transpose{n}d`.
    **options
        ``backend, algorithm, precision, workspace_limit``: see :class:`fastconv.Options`.

    Returns
    -------
    PreparedConv

    Raises
    ------
    ValueError, TypeError
    """
    kind = arguments.same_kind(weight=weight, bias=bias)
    api._check_weight(weight, rank)
    api._check_bias(bias, weight.shape[1] * api._divided(groups, in_channels=weight.shape[0]))
    dtypes = _dtypes(weight, bias)
    api.transposed_spec(
        rank, 1, (_ANY_SIZE,) * rank, weight.shape, stride, padding, output_padding, groups, dilation, dtypes
    )

    def call_for(x: Array, w: Array, b: Array | None) -> Call:
        return api.conv_transpose_call(rank, x, w, b, stride, padding, output_padding, groups, dilation)

    return PreparedConv(call_for, weight, bias, _options(options, kind, Op.CONV_INPUT_GRAD))


prepare_conv1d, prepare_conv2d, prepare_conv3d = by_rank(prepare_conv)
prepare_conv_transpose1d, prepare_conv_transpose2d, prepare_conv_transpose3d = by_rank(prepare_conv_transpose)
