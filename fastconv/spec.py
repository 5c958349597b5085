"""What is computed: one immutable, hashable, array-free value per problem.

A :class:`ConvSpec` or :class:`PoolSpec` is the only thing besides arrays that crosses the borders
``api -> plan -> backends``. Forward and both gradients are planned from the same spec, and a transposed
convolution *is* the input gradient of its spec. Everything that follows from the fields (output size,
shapes, operation counts) is computed here and stored nowhere.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, repeat, starmap
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "DTYPES",
    "PADDING_MODES",
    "ConvSpec",
    "DType",
    "Op",
    "PoolSpec",
    "Shape",
    "Spec",
    "parse",
    "source",
]

T = TypeVar("T")
N = TypeVar("N", int, float)
Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "symmetric")
POOL_MODES = ("max", "avg", "lp")

# A longer step leaves one window anyway, and in bytes it would pass what kernels count in.
MAX_STEP = 2**31 - 1

# Problems whose shapes are remembered: every call asks for them several times, at 12 us each.
SHAPES = 4096

# The largest array anybody can hold: byte offsets are signed 64-bit in NumPy and in every kernel.
MAX_BYTES = 2**63 - 1


class Op(enum.Enum):
    """The things that can be done with a spec; the value is the name a report shows."""

    CONV = "conv"
    CONV_INPUT_GRAD = "conv input grad"
    CONV_WEIGHT_GRAD = "conv weight grad"
    UNFOLD = "unfold"
    FOLD = "fold"
    POOL = "pool"
    POOL_INPUT_GRAD = "pool input grad"
    UNPOOL = "unpool"
    UNPOOL_INPUT_GRAD = "unpool input grad"

    def __str__(self) -> str:
        return self.value


class DType(NamedTuple):
    """How one element type is stored, summed and returned.

    ``accumulate`` is the type sums are formed in, ``out`` the type of a convolution's result and
    ``mean`` the type of an average (integers average to float64, as ``numpy.mean`` does).
    """

    short: str
    itemsize: int
    kind: str
    accumulate: str
    out: str
    mean: str


DTYPES: dict[str, DType] = {
    "float64": DType("f64", 8, "f", "float64", "float64", "float64"),
    "float32": DType("f32", 4, "f", "float32", "float32", "float32"),
    "float16": DType("f16", 2, "f", "float32", "float16", "float16"),
    "bfloat16": DType("bf16", 2, "f", "float32", "bfloat16", "bfloat16"),
    "int8": DType("s8", 1, "i", "int32", "int32", "float64"),
    "uint8": DType("u8", 1, "u", "int32", "int32", "float64"),
    "int16": DType("s16", 2, "i", "int64", "int64", "float64"),
    "uint16": DType("u16", 2, "u", "uint64", "uint64", "float64"),
    "int32": DType("s32", 4, "i", "int64", "int64", "float64"),
    "uint32": DType("u32", 4, "u", "uint64", "uint64", "float64"),
    "int64": DType("s64", 8, "i", "int64", "int64", "float64"),
    "uint64": DType("u64", 8, "u", "uint64", "uint64", "float64"),
}
_BY_SHORT = {row.short: name for name, row in DTYPES.items()}


@lru_cache(maxsize=256)
def type_name(dtype: Any) -> str:
    """``dtype.name``, which NumPy puts together anew each time it is asked: 2 us, several times a call."""
    name: str = dtype.name
    return name


class Shape(NamedTuple):
    """Shape and dtype of one operand or result of an op."""

    name: str
    shape: Sizes
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of such an array."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def _window_count(size: int, extent: int, stride: int, pads: tuple[int, int], ceil_mode: bool = False) -> int:
    """How many windows of `extent` fit along an axis: the only place an output size is computed.

    In ceil mode a last window that would start in the right padding is dropped (torch's rule).
    """
    before, after = pads
    count = (size + before + after - extent + (stride - 1) * ceil_mode) // stride + 1
    return count - (ceil_mode and (count - 1) * stride >= size + before)


def source(i: int, size: int, mode: str) -> int | None:
    """The input element that stands at position `i` of an axis padded in `mode`; None is a zero."""
    if 0 <= i < size:
        return i
    match mode:
        case "replicate":  # a a | a b c | c c
            return min(max(i, 0), size - 1)
        case "circular":  # b c | a b c | a b
            return i % size
        case "reflect":  # c b | a b c | b a
            return -i if i < 0 else 2 * (size - 1) - i
        case "symmetric":  # b a | a b c | c b
            return -i - 1 if i < 0 else 2 * size - 1 - i
    return None


def _check_tuple(name: str, values: object) -> None:
    """Refuse what would not hash, or would not count elements."""
    if not isinstance(values, tuple) or any(type(value) is not int for value in values):
        raise TypeError(f"{name}: got {values!r}, expected a tuple of ints")


def _check_ints(spec: Spec, *names: str) -> None:
    for name in names:
        if type(value := getattr(spec, name)) is not int:
            raise TypeError(f"{name}: got {value!r}, expected an int")


def _check_axes(spec: ConvSpec | PoolSpec, kernel_size: Sizes) -> None:
    """Refuse geometry that has no meaning, in words that name the argument."""
    rank = len(spec.in_size)
    if rank not in (1, 2, 3):
        raise ValueError(f"in_size: got {spec.in_size}, expected 1, 2 or 3 spatial axes")
    _check_tuple("kernel_size", kernel_size)
    _check_tuple("stride", spec.stride)
    _check_tuple("dilation", spec.dilation)
    for pads in spec.padding:
        _check_tuple("padding", pads)
    for name in ("stride", "padding", "dilation"):
        if len(getattr(spec, name)) != rank:
            raise ValueError(f"{name}: got {getattr(spec, name)}, expected one entry for each of {rank} axes")
    if len(kernel_size) != rank:
        raise ValueError(f"kernel_size: got {kernel_size}, expected one entry for each of {rank} axes")
    for name, values in (
        ("in_size", spec.in_size),
        ("kernel_size", kernel_size),
        ("stride", spec.stride),
        ("dilation", spec.dilation),
    ):
        if min(values) < 1:
            raise ValueError(f"{name}: got {values}, expected every entry to be at least 1")
    for axis, count in enumerate(spec.out_size):
        if count < 1:
            size, pads, extent = spec.in_size[axis], spec.padding[axis], spec.kernel_extent[axis]
            raise ValueError(
                f"kernel_size: along axis {axis} the kernel spans {extent} (size {kernel_size[axis]}, "
                f"dilation {spec.dilation[axis]}), expected at most the padded input, "
                f"{size} + {pads[0]} + {pads[1]} = {size + sum(pads)}"
            )
    for name, values in (("stride", spec.stride), ("dilation", spec.dilation)):
        if max(values) > MAX_STEP:
            raise ValueError(f"{name}: got {values}, expected every entry to be at most {MAX_STEP}")


def _check_bytes(*shapes: Shape) -> None:
    for name, shape, dtype in shapes:
        if math.prod(shape) * DTYPES[dtype].itemsize > MAX_BYTES:
            raise ValueError(
                f"{name}: an array of shape {shape} and type {dtype} has more than 2**63 - 1 bytes"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """One forward convolution: ``y[n,o,q] = sum_{c,k} w[o,c,k] * x[n,c, q*stride + k*dilation - before]``.

    Parameters
    ----------
    batch, in_channels, out_channels : int
        ``N``, ``C`` and ``O``; a batch of zero is allowed.
    in_size, kernel_size : tuple of int
        One entry per spatial axis, one to three axes.
    stride, dilation : tuple of int
    padding : tuple of (before, after)
        Never negative in front; a negative `after` leaves the last input elements unread, which is how a
        transposed convolution's ``output_padding`` is written.
    groups : int
        Divides both channel counts.
    padding_mode : str
        One of ``PADDING_MODES``.
    dtype : str
        Storage type of input and weight.
    out_dtype : str
        Type of the result; empty means the one ``DTYPES`` states.
    """

    batch: int
    in_channels: int
    out_channels: int
    in_size: Sizes
    kernel_size: Sizes
    stride: Sizes = ()
    padding: Pads = ()
    dilation: Sizes = ()
    groups: int = 1
    padding_mode: str = "zeros"
    dtype: str = "float32"
    out_dtype: str = ""

    def __post_init__(self) -> None:
        _check_tuple("in_size", self.in_size)
        _check_ints(self, "batch", "in_channels", "out_channels", "groups")
        rank = len(self.in_size)
        _fill(self, stride=(1,) * rank, padding=((0, 0),) * rank, dilation=(1,) * rank)
        if self.dtype not in DTYPES:
            raise TypeError(f"dtype: got {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        _fill(self, out_dtype=DTYPES[self.dtype].out)
        if self.out_dtype not in DTYPES:
            raise TypeError(f"out_dtype: got {self.out_dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode: got {self.padding_mode!r}, expected one of {', '.join(PADDING_MODES)}"
            )
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.batch < 0:
            raise ValueError(f"batch: got {self.batch}, expected at least 0")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"groups: {name} is {getattr(self, name)} and groups is {self.groups}, "
                    f"expected groups to divide {name}"
                )
        _check_axes(self, self.kernel_size)
        self._check_padding()
        _check_bytes(*self.shapes(Op.CONV), *self.shapes(Op.CONV_WEIGHT_GRAD))

    def _check_padding(self) -> None:
        # How far each mode can reach past the border: reflect leaves the edge out, the others include it.
        for axis, (size, pads) in enumerate(zip(self.in_size, self.padding, strict=True)):
            reach = {"reflect": size - 1, "circular": size, "symmetric": size}.get(self.padding_mode)
            if reach is not None and max(pads) > reach:
                raise ValueError(
                    f"padding: got {pads} along axis {axis} with padding_mode {self.padding_mode!r}, "
                    f"expected at most {reach} for an input of {size}"
                )
            if pads[0] < 0 or (pads[1] < 0 and self.padding_mode != "zeros"):
                raise ValueError(f"padding: got {pads} along axis {axis}, expected no negative entry")

    @property
    def rank(self) -> int:
        """How many spatial axes there are."""
        return len(self.in_size)

    @property
    def kernel_extent(self) -> Sizes:
        """Input elements one window spans along each axis, dilation counted."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))

    @property
    def out_size(self) -> Sizes:
        """Output positions along each axis."""
        return tuple(map(_window_count, self.in_size, self.kernel_extent, self.stride, self.padding))

    @property
    def input_shape(self) -> Sizes:
        """Shape of the input, batch and channels first."""
        return (self.batch, self.in_channels, *self.in_size)

    @property
    def weight_shape(self) -> Sizes:
        """O, C / groups and the kernel's size."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> Sizes:
        """Shape of the output, batch and channels first."""
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def columns_shape(self) -> Sizes:
        """Shape of ``unfold``'s result: N, C*prod(kernel), prod(out_size)."""
        return (self.batch, self.in_channels * math.prod(self.kernel_size), math.prod(self.out_size))

    @property
    def columns_nbytes(self) -> int:
        """Bytes of the textbook column matrix for the whole batch, in the accumulation type."""
        return math.prod(self.columns_shape) * DTYPES[DTYPES[self.dtype].accumulate].itemsize

    @lru_cache(maxsize=SHAPES)  # noqa: B019 - specs are small, and their number is bounded
    def shapes(self, op: Op) -> tuple[Shape, ...]:
        """Operands of `op` in call order, the result last (an optional bias is not listed)."""
        grad_dtype = self.dtype
        x = Shape("input", self.input_shape, self.dtype)
        w = Shape("weight", self.weight_shape, self.dtype)
        dy = Shape("grad_output", self.output_shape, grad_dtype)
        columns = Shape("columns", self.columns_shape, self.dtype)
        match op:
            case Op.CONV:
                return x, w, Shape("output", self.output_shape, self.out_dtype)
            case Op.CONV_INPUT_GRAD:
                return dy, w, Shape("grad_input", self.input_shape, self.out_dtype)
            case Op.CONV_WEIGHT_GRAD:
                return x, dy, Shape("grad_weight", self.weight_shape, self.out_dtype)
            case Op.UNFOLD:
                return x, columns
            case Op.FOLD:
                return columns, Shape("image", self.input_shape, self.out_dtype)
        raise ValueError(f"op: got {op}, expected an op of a convolution")

    def dot_length(self, op: Op) -> int:
        """The most products that are summed into one element of `op`'s result."""
        taps = math.prod(self.kernel_size)
        match op:
            case Op.CONV:
                return self.in_channels // self.groups * taps
            case Op.CONV_INPUT_GRAD:
                return self.out_channels // self.groups * taps * self._copies
            case Op.CONV_WEIGHT_GRAD:
                return self.batch * math.prod(self.out_size)
            case Op.FOLD:
                return taps * self._copies
        return 1

    @property
    def _copies(self) -> int:
        """The most positions of the padded input that one input element stands at."""
        if self.padding_mode == "zeros":
            return 1
        if self.padding_mode == "replicate":  # an edge stands in all the padding on its side
            reach = (sum(p) if n == 1 else max(p) for n, p in zip(self.in_size, self.padding, strict=True))
            return math.prod(1 + n for n in reach)
        return math.prod(1 + (before > 0) + (after > 0) for before, after in self.padding)

    def flops(self, op: Op = Op.CONV) -> int:
        """Floating-point operations of the plain sum, a multiply and an add counted as two."""
        if op in (Op.UNFOLD, Op.FOLD):
            return math.prod(self.columns_shape) * (op is Op.FOLD)
        return 2 * math.prod(self.output_shape) * self.dot_length(Op.CONV)

    def nbytes(self, op: Op = Op.CONV) -> int:
        """Bytes of the operands and the result, each counted once: the least traffic `op` can cause."""
        return sum(shape.nbytes for shape in self.shapes(op))

    @property
    def ops(self) -> tuple[Op, ...]:
        """Every op that is planned from a spec of this kind."""
        return (Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.UNFOLD, Op.FOLD)

    def with_batch(self, batch: int) -> ConvSpec:
        """Return the same problem for another number of images."""
        return replace(self, batch=batch)

    def __str__(self) -> str:
        words = [
            f"n{self.batch}",
            f"c{_times((self.in_channels, *self.in_size))}",
            f"k{_times((self.out_channels, *self.kernel_size))}",
            f"s{_compact(self.stride)}",
            f"p{_compact_pads(self.padding)}",
        ]
        if max(self.dilation) > 1:
            words.append(f"d{_compact(self.dilation)}")
        if self.groups > 1:
            words.append(f"g{self.groups}")
        if self.padding_mode != "zeros":
            words.append(self.padding_mode)
        out = "" if self.out_dtype == DTYPES[self.dtype].out else f">{DTYPES[self.out_dtype].short}"
        return " ".join([*words, DTYPES[self.dtype].short + out])


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """One pooling: every window of every plane is reduced to one number.

    Parameters
    ----------
    mode : {"max", "avg", "lp"}
    batch, channels : int
        There are ``batch * channels`` independent planes.
    in_size : tuple of int
    kernel_size, stride, padding, dilation
        As in :class:`ConvSpec`; empty for an adaptive pool.
    output_size : tuple of int
        Given for an adaptive pool, whose bin ``i`` is ``[floor(i*H/o), ceil((i+1)*H/o))``, and for an
        unpool, whose windows do not matter. Empty otherwise.
    ceil_mode, count_include_pad, divisor_override
        As in ``torch.nn.functional.avg_pool2d``; `divisor_override` of 0 means none.
    norm_type : float
        The ``p`` of an Lp pool.
    indices : bool
        Also return the flat position of each maximum.
    dtype : str
    """

    mode: str
    batch: int
    channels: int
    in_size: Sizes
    kernel_size: Sizes = ()
    stride: Sizes = ()
    padding: Pads = ()
    dilation: Sizes = ()
    output_size: Sizes = ()
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int = 0
    norm_type: float = 2.0
    indices: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_tuple("in_size", self.in_size)
        _check_tuple("output_size", self.output_size)
        _check_ints(self, "batch", "channels", "divisor_override")
        rank = len(self.in_size)
        if self.mode not in POOL_MODES:
            raise ValueError(f"mode: got {self.mode!r}, expected one of {', '.join(POOL_MODES)}")
        if self.dtype not in DTYPES:
            raise TypeError(f"dtype: got {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.batch < 0 or self.channels < 1:
            raise ValueError(
                f"input: got batch {self.batch} and channels {self.channels}, "
                "expected batch at least 0 and channels at least 1"
            )
        if not (math.isfinite(self.norm_type) and self.norm_type > 0):
            raise ValueError(f"norm_type: got {self.norm_type}, expected a finite number above 0")
        if self.divisor_override < 0:
            raise ValueError(
                f"divisor_override: got {self.divisor_override}, expected at least 1, or 0 for none"
            )
        if self.output_size:
            if self.kernel_size or len(self.output_size) != rank or min(self.output_size) < 1:
                raise ValueError(
                    f"output_size: got {self.output_size}, expected {rank} entries of at least 1 and no kernel"
                )
            if min(self.in_size) < 1:
                raise ValueError(f"in_size: got {self.in_size}, expected every entry to be at least 1")
            for name in ("stride", "padding", "dilation"):
                if getattr(self, name):
                    raise ValueError(f"{name}: got {getattr(self, name)}, expected none for an adaptive pool")
        else:
            _fill(self, padding=((0, 0),) * rank, dilation=(1,) * rank, stride=self.kernel_size)
            _check_axes(self, self.kernel_size)
            self._check_padding()
        _check_bytes(*self.shapes(Op.POOL))

    def _check_padding(self) -> None:
        for axis, (extent, pads) in enumerate(zip(self.kernel_extent, self.padding, strict=True)):
            if min(pads) < 0 or max(pads) > extent // 2:
                raise ValueError(
                    f"padding: got {pads} along axis {axis}, expected 0 to {extent // 2}, "
                    f"half of what the window spans ({extent})"
                )
            # Only a window that begins in the padding can miss every element, all of them between two of its taps.
            if self.dilation[axis] > self.in_size[axis] and not all(
                self._window(axis, i) for i in range(self._whole(axis).start)
            ):
                raise ValueError(
                    f"padding: got {pads} along axis {axis} with dilation {self.dilation[axis]}, which "
                    "leaves a window without any input element"
                )

    @property
    def rank(self) -> int:
        """How many spatial axes there are."""
        return len(self.in_size)

    @property
    def kernel_extent(self) -> Sizes:
        """Input elements one window spans along each axis, dilation counted."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))

    @property
    def out_size(self) -> Sizes:
        """Output positions along each axis."""
        ceil_mode = (self.ceil_mode,) * self.rank
        return self.output_size or tuple(
            map(_window_count, self.in_size, self.kernel_extent, self.stride, self.padding, ceil_mode)
        )

    @property
    def input_shape(self) -> Sizes:
        """Shape of the input, batch and channels first."""
        return (self.batch, self.channels, *self.in_size)

    @property
    def output_shape(self) -> Sizes:
        """Shape of the output, batch and channels first."""
        return (self.batch, self.channels, *self.out_size)

    @property
    def out_dtype(self) -> str:
        """Type of the result: a maximum keeps the input's, averages of integers are float64."""
        return self.dtype if self.mode == "max" else DTYPES[self.dtype].mean

    def windows(self, axis: int) -> tuple[range, ...]:
        """The input positions each output position reduces along `axis`, padding left out."""
        return tuple(self._window(axis, i) for i in range(self.out_size[axis]))

    def _window(self, axis: int, i: int) -> range:
        size = self.in_size[axis]
        if self.output_size:
            count = self.output_size[axis]
            return range(i * size // count, -(-(i + 1) * size // count))
        step = self.dilation[axis]
        start = i * self.stride[axis] - self.padding[axis][0]
        # A window that begins in the padding begins, for the input, at its first tap inside.
        return range(start if start >= 0 else start % step, min(start + self.kernel_extent[axis], size), step)

    def _whole(self, axis: int) -> range:
        """The output positions along `axis` whose windows lie inside the input (none of an adaptive pool)."""
        if self.output_size:
            return range(0)
        before, stride = self.padding[axis][0], self.stride[axis]
        first = min(-(-before // stride), self.out_size[axis])
        return range(
            first, max(first, (self.in_size[axis] + before - self.kernel_extent[axis]) // stride + 1)
        )

    def _runs(self, axis: int) -> list[tuple[int, int]]:
        """(elements, windows) of every run of windows of one length along `axis`.

        Only windows that reach into the padding are looked at one by one: they are few however long the input.
        """
        whole = self._whole(axis)
        begin, end = (
            [(len(self._window(axis, i)), 1) for i in part]
            for part in (range(whole.start), range(whole.stop, self.out_size[axis]))
        )
        return [*begin, (self.kernel_size[axis], len(whole)), *end] if whole else [*begin, *end]

    def lengths(self, axis: int) -> tuple[int, ...]:
        """How many input elements each output position reduces along `axis`."""
        return tuple(chain.from_iterable(starmap(repeat, self._runs(axis))))

    def divisors(self, axis: int) -> tuple[int, ...]:
        """What an average divides by along `axis`, per output position (the product over axes counts).

        With `count_include_pad` a window is counted up to the end of the padded input, no further: in
        ceil mode the last one may hang over it.
        """
        if self.output_size or not self.count_include_pad:
            return self.lengths(axis)
        (before, after), extent, count = self.padding[axis], self.kernel_extent[axis], self.out_size[axis]
        last = (count - 1) * self.stride[axis] - before
        return (*repeat(extent, count - 1), min(extent, self.in_size[axis] + after - last))

    @lru_cache(maxsize=SHAPES)  # noqa: B019 - specs are small, and their number is bounded
    def shapes(self, op: Op) -> tuple[Shape, ...]:
        """Operands of `op` in call order, the result last."""
        x = Shape("input", self.input_shape, self.dtype)
        y = Shape("output", self.output_shape, self.out_dtype)
        indices = Shape("indices", self.output_shape, "int64")
        match op:
            case Op.POOL:
                return (x, y, indices) if self.indices else (x, y)
            case Op.POOL_INPUT_GRAD:
                dy = y._replace(name="grad_output")
                dx = x._replace(name="grad_input", dtype=self.out_dtype)
                return (dy, indices, dx) if self.indices else (dy, x, dx)
            case Op.UNPOOL:
                return y._replace(name="input"), indices, x._replace(name="output")
            case Op.UNPOOL_INPUT_GRAD:
                return x._replace(name="grad_output"), indices, y._replace(name="grad_input")
        raise ValueError(f"op: got {op}, expected an op of a pool")

    def dot_length(self, op: Op) -> int:
        """The most terms that are summed into one element of `op`'s result."""
        if op is Op.POOL:
            return math.prod(map(self._longest, range(self.rank)))
        if op is Op.POOL_INPUT_GRAD:
            return math.prod(map(self._meeting, range(self.rank)))
        return 1

    def _longest(self, axis: int) -> int:
        """Elements of the largest window along `axis`."""
        if self.output_size:
            return _largest_bin(self.in_size[axis], self.output_size[axis])
        return max(length for length, _ in self._runs(axis))

    def _meeting(self, axis: int) -> int:
        """How many windows meet, at most, in one element along `axis`."""
        count = self.out_size[axis]
        if (
            self.output_size
        ):  # bin i holds element j just where, with the sizes swapped, bin j holds element i
            return _largest_bin(count, self.in_size[axis])
        # Tap t of window i reads i * stride + t * dilation, less the padding. That stays the same in steps of
        # dilation / common windows forward and stride / common taps back; windows or taps run out first.
        common = math.gcd(self.stride[axis], self.dilation[axis])
        windows, taps = self.dilation[axis] // common, self.stride[axis] // common
        return min(-(-count // windows), -(-self.kernel_size[axis] // taps))

    def _elements(self, axis: int) -> int:
        """Elements of all windows along `axis`, each counted as often as it is read."""
        if self.output_size:  # bins share an element at every border that falls inside one
            size, count = self.in_size[axis], self.output_size[axis]
            return size + count - math.gcd(size, count)
        return sum(length * windows for length, windows in self._runs(axis))

    def flops(self, op: Op = Op.POOL) -> int:
        """One operation (a comparison or an addition) for each element of each window."""
        if op in (Op.UNPOOL, Op.UNPOOL_INPUT_GRAD):
            return 0
        return self.batch * self.channels * math.prod(map(self._elements, range(self.rank)))

    def nbytes(self, op: Op = Op.POOL) -> int:
        """Bytes of the operands and the result, each counted once: the least traffic `op` can cause."""
        return sum(shape.nbytes for shape in self.shapes(op))

    @property
    def ops(self) -> tuple[Op, ...]:
        """Every op that is planned from a spec of this kind."""
        unpool = (Op.UNPOOL, Op.UNPOOL_INPUT_GRAD) if self.indices else ()
        return (Op.POOL, Op.POOL_INPUT_GRAD, *unpool)

    def with_batch(self, batch: int) -> PoolSpec:
        """Return the same problem for another number of images."""
        return replace(self, batch=batch)

    def __str__(self) -> str:
        words = [self.mode if self.mode != "lp" else f"lp{_shortest(self.norm_type)}"]
        words += [f"n{self.batch}", f"c{_times((self.channels, *self.in_size))}"]
        if self.output_size:
            words.append(f"o{_times(self.output_size)}")
        else:
            words += [f"k{_times(self.kernel_size)}", f"s{_compact(self.stride)}"]
            words.append(f"p{_compact_pads(self.padding)}")
            if max(self.dilation) > 1:
                words.append(f"d{_compact(self.dilation)}")
        words += ["ceil"] * self.ceil_mode
        words += ["exclude_pad"] * (not self.count_include_pad)
        if self.divisor_override:
            words.append(f"divisor{self.divisor_override}")
        words += ["indices"] * self.indices
        return " ".join([*words, DTYPES[self.dtype].short])


Spec = ConvSpec | PoolSpec


def _largest_bin(size: int, count: int) -> int:
    """Elements of the largest of `count` adaptive bins of `size` elements.

    Of an element cut into `count` parts, bin i begins ``i * size % count`` parts behind its first element's beginning,
    which comes up to ``count - gcd``, and spans `size` parts.
    """
    return -(-(count - math.gcd(size, count) + size) // count)


def _fill(spec: Spec, **defaults: object) -> None:
    """Give an empty field of a frozen spec its default, so that equal problems compare equal."""
    for name, value in defaults.items():
        if not getattr(spec, name):
            object.__setattr__(spec, name, value)


def _times(values: Sizes) -> str:
    return "x".join(map(str, values))


def _compact(values: Sizes) -> str:
    return str(values[0]) if len(set(values)) == 1 else _times(values)


def _compact_pads(pads: Pads) -> str:
    words = [str(b) if b == a else f"{b}:{a}" for b, a in pads]
    return words[0] if len(set(words)) == 1 else "x".join(words)


def _shortest(number: float) -> str:
    """Three rather than 3.0, and every digit where they are needed."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


_WORD = re.compile(r"([a-z_]+?)(-?[\d.]+(?:e[+-]?\d+)?(?:[:x]-?\d+)*)?")


def parse(text: str) -> Spec:
    """Read a problem string, the inverse of ``str(spec)``.

    A convolution is ``n<batch> c<C>x<H>x<W> k<O>x<kh>x<kw>`` with optional ``s<stride> p<padding>
    d<dilation> g<groups>``, a padding mode and a type such as ``f32``; a pool begins with ``max``, ``avg``
    or ``lp<p>``, its ``k`` holds no channel count, and ``o<oh>x<ow>`` makes it adaptive. One number serves
    all axes; ``p0:1x2:3`` gives (before, after) pairs.

    Examples
    --------
    >>> parse("n8 c64x56x56 k64x3x3 s1 p1 f32").out_size
    (56, 56)
    >>> str(parse("max n1 c3x8x8 k2x2"))
    'max n1 c3x8x8 k2x2 s2 p0 f32'

    Raises
    ------
    ValueError
        If a word is unknown or missing; the message quotes it.
    """
    if not isinstance(text, str):
        raise TypeError(f"problem: got {text!r}, expected a string such as 'n1 c3x8x8 k4x3x3 s1 p1 f32'")
    words: dict[str, str] = {}
    flags: list[str] = []
    fields: dict[str, object] = {}
    for word in text.split():
        found = _WORD.fullmatch(word)
        dtype, _, out = word.partition(">")
        if dtype in _BY_SHORT and (not out or out in _BY_SHORT):
            _once("dtype", fields, word, text)
            fields["dtype"] = _BY_SHORT[dtype]
            if out:
                fields["out_dtype"] = _BY_SHORT[out]
        elif word in PADDING_MODES:
            _once("padding_mode", fields, word, text)
            fields["padding_mode"] = word
        elif word in ("max", "avg", "ceil", "exclude_pad", "indices"):
            _once(word, flags, word, text)
            flags.append(word)
        elif found and found[2] and found[1] in ("n", "c", "k", "s", "p", "d", "g", "o", "lp", "divisor"):
            _once(found[1], words, word, text)
            words[found[1]] = found[2]
        else:
            raise ValueError(f"problem: cannot read {word!r} in {text!r}")
    if "c" not in words or not {"k", "o"} & words.keys():
        raise ValueError(
            f"problem: {text!r} needs c<channels>x<size> and k<kernel> (or o<output> for a pool)"
        )
    try:
        return _from_words(words, flags, fields)
    except (ValueError, TypeError) as error:
        raise type(error)(f"problem {text!r}: {error}") from None


def _once(what: str, said: Container[str], word: str, text: str) -> None:
    if what in said:
        raise ValueError(f"problem: {word!r} in {text!r} says {what!r} a second time")


def _from_words(words: dict[str, str], flags: list[str], fields: dict[str, object]) -> Spec:
    channels, *in_size = _numbers(words["c"])
    rank = len(in_size)
    pools = [flag for flag in flags if flag in ("max", "avg")] + ["lp"] * ("lp" in words)
    if len(pools) > 1:
        raise ValueError(f"got pools {' and '.join(pools)}, expected one")
    pool = "".join(pools)
    for name, letter in (("stride", "s"), ("dilation", "d")):
        if letter in words:
            fields[name] = _spread(tuple(_numbers(words[letter])), rank)
    if "p" in words:
        pads = [tuple(_numbers(word, ":")) for word in words["p"].split("x")]
        fields["padding"] = _spread(tuple((pad[0], pad[-1]) for pad in pads), rank)
    fields |= {"batch": _number(words.get("n", "1")), "in_size": tuple(in_size)}
    if not pool:
        stray = list(flags) + [w for w in ("o", "divisor") if w in words]
        if stray:
            raise ValueError(f"{stray[0]!r} belongs to a pool, which begins with max, avg or lp<p>")
        out_channels, *kernel = _numbers(words["k"])
        fields |= {"in_channels": channels, "out_channels": out_channels, "kernel_size": tuple(kernel)}
        return ConvSpec(groups=_number(words.get("g", "1")), **fields)  # type: ignore[arg-type]
    if "g" in words or "padding_mode" in fields or "out_dtype" in fields:
        raise ValueError("a pool has no groups, no padding mode and no output type of its own")
    fields |= {
        "mode": pool,
        "channels": channels,
        "ceil_mode": "ceil" in flags,
        "indices": "indices" in flags,
    }
    fields |= {"count_include_pad": "exclude_pad" not in flags}
    fields |= {"divisor_override": _number(words.get("divisor", "0"))}
    fields |= {"norm_type": _number(words.get("lp", "2"), float)}
    for name, letter in (("kernel_size", "k"), ("output_size", "o")):
        if letter in words:
            fields[name] = _spread(tuple(_numbers(words[letter])), rank)
    return PoolSpec(**fields)  # type: ignore[arg-type]


def _numbers(text: str, separator: str = "x") -> Iterator[int]:
    return map(_number, text.split(separator))


def _number(text: str, kind: Callable[[str], N] = int) -> N:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"got {text!r}, expected {what}") from None


def _spread(values: tuple[T, ...], rank: int) -> tuple[T, ...]:
    return values * rank if len(values) == 1 else values
