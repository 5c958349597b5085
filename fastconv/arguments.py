"""From what people write to canonical values: ints or tuples, named padding, arrays of any layout.

The only place that sees an int-or-tuple or ``"same"``. Every refusal names the argument, what came and what
was expected.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeGuard

import numpy as np

from fastconv.backends import PRECISIONS, check, default_for, owner
from fastconv.settings import get_backend
from fastconv.spec import DTYPES, Op, Pads, Shape, Sizes, type_name

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

Array = Any
IntOrSizes = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


class Options(TypedDict, total=False):
    """Keywords every function takes besides torch's.

    Attributes
    ----------
    backend : str or None
        Where to compute: a name of :func:`fastconv.backends`; None means the current one.
    algorithm : str
        How to compute: an algorithm of that backend; ``"auto"``: the one its cost model prefers; or ``"measure"``:
        the one that is fastest here, timed the first time a problem is met (on arrays of its own, which take as
        much memory again) and remembered on disk.
    precision : {"default", "highest", "tf32"}
        ``"highest"`` sums in the accumulation type without any transform; ``"default"`` also allows
        transforms whose normwise error stays under 6e-6 in float32, three products of tf32 for one among them;
        ``"tf32"`` also allows GPU tensor cores a single one.
    workspace_limit : int or None
        Bytes of scratch the plan may allocate; None means as much as is fastest.
    out : array, or tuple of two for a pool that returns indices
        Where to write the result: exact shape and dtype. It may overlap the operands.
    """

    backend: str | None
    algorithm: str
    precision: str
    workspace_limit: int | None
    out: Any


_OPTIONS = Options(backend=None, algorithm="auto", precision="default", workspace_limit=None, out=None)


def options(given: Options) -> Options:
    """`given` completed with the defaults, every value checked."""
    unknown = [key for key in given if key not in _OPTIONS]
    if unknown:
        raise TypeError(f"{unknown[0]}: unknown keyword, expected one of {', '.join(_OPTIONS)}")
    full: Options = {**_OPTIONS, **given}
    if full["backend"] is not None:
        check(full["backend"])
    if not isinstance(full["algorithm"], str):
        raise TypeError(f"algorithm: got {full['algorithm']!r}, expected a name, 'auto' or 'measure'")
    if not isinstance(full["precision"], str) or full["precision"] not in PRECISIONS:
        raise ValueError(f"precision: got {full['precision']!r}, expected one of {', '.join(PRECISIONS)}")
    if full["workspace_limit"] is not None:
        full["workspace_limit"] = integer("workspace_limit", full["workspace_limit"], 0)
    return full


def integer(name: str, value: object, minimum: int) -> int:
    """`value` as an int: NumPy integers count, bools and floats do not."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: got {value!r}, a bool, expected an int")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, a {type(value).__name__}, expected an int") from None
    if number < minimum:
        raise ValueError(f"{name}: got {number}, expected at least {minimum}")
    return number


def flag(name: str, value: object) -> bool:
    """`value` as a bool; nothing else is taken for one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: got {value!r}, a {type(value).__name__}, expected a bool")
    return bool(value)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether `value` holds entries; text does not, nor does an array of no axes."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def sizes(name: str, value: object, rank: int, minimum: int) -> Sizes:
    """One int per spatial axis, from an int or a sequence of them."""
    if not is_sequence(value):
        return (integer(name, value, minimum),) * rank
    entries: tuple[object, ...] = tuple(value)
    if len(entries) != rank:
        raise ValueError(
            f"{name}: got {value!r} with {len(entries)} entries, expected an int or {rank} of them"
        )
    return tuple(integer(name, entry, minimum) for entry in entries)


def rank_of(name: str, value: object, default: int) -> int:
    """How many spatial axes a sequence speaks of; an int says nothing."""
    if not is_sequence(value):
        return default
    rank = len(value)
    if rank not in (1, 2, 3):
        raise ValueError(f"{name}: got {value!r} with {rank} entries, expected 1, 2 or 3")
    return rank


def pads(value: object, in_size: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Pads:
    """(before, after) for each axis, from an int, one int or pair per axis, or a name.

    ``"same"`` (ONNX's SAME_UPPER) keeps ``ceil(size / stride)`` outputs and puts an odd element after the
    input, ``"same_lower"`` before it; ``"valid"`` pads nothing.
    """
    rank = len(in_size)
    if isinstance(value, str):
        if value == "valid":
            return ((0, 0),) * rank
        if value not in ("same", "same_lower"):
            raise ValueError(
                f"padding: got {value!r}, expected 'same', 'same_lower', 'valid', an int, or one int or "
                "(before, after) pair per axis"
            )
        totals = [
            max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            for size, k, s, d in zip(in_size, kernel, stride, dilation, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in totals]
        return tuple(half if value == "same" else half[::-1] for half in halves)
    if not is_sequence(value):
        return ((integer("padding", value, 0),) * 2,) * rank
    entries = list(value)
    if len(entries) != rank:
        raise ValueError(
            f"padding: got {value!r} with {len(entries)} entries, expected an int, or {rank} ints or "
            "(before, after) pairs"
        )
    pairs = []
    for entry in entries:
        pair = tuple(entry) if is_sequence(entry) else (entry, entry)
        if len(pair) != 2:
            raise ValueError(
                f"padding: got {entry!r} for one axis, expected an int or a (before, after) pair"
            )
        pairs.append((integer("padding", pair[0], 0), integer("padding", pair[1], 0)))
    return tuple(pairs)


def kind_of(name: str, array: object) -> str:
    """Whose array this is, found without importing anything; refuse what is no array."""
    module = type(array).__module__.partition(".")[0]
    if module == "cupy":
        return "cupy"
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: got a masked array, expected a plain one; fill it first with .filled(value)"
        )
    if isinstance(array, np.ndarray):
        return "numpy"
    raise TypeError(
        f"{name}: got {type(array).__module__}.{type(array).__name__}, expected a NumPy or CuPy array "
        "(numpy.asarray makes one)"
    )


def same_kind(**arrays: object) -> str:
    """The one kind all arrays are of; a bias or indices may be None."""
    kinds = {
        name: kind_of(name, array)
        for name, array in arrays.items()
        if array is not None or name not in ("bias", "indices")
    }
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise TypeError(
                f"{name}: got a {kind} array where {first} is a {kinds[first]} array, expected all of one kind; "
                "nothing is copied between host and device unasked"
            )
    return kinds[first]


def backend_for(kind: str | None, given: str | None, op: Op) -> str:
    """The backend that will compute: the one named, or the best for this kind of array (None: no array is there)."""
    name = given or get_backend()
    if given is None:
        check(name, "FASTCONV_BACKEND")
    if name == "auto":
        return default_for(kind or "numpy", op)
    if kind is not None and owner(name) != kind:
        raise TypeError(
            f"backend: {name!r} works on {owner(name)} arrays, got {kind} arrays; "
            "nothing is copied between host and device unasked"
        )
    return name


def dtype_name(name: str, array: Array) -> str:
    """Canonical name of the array's type, or a TypeError that lists the types there are."""
    dtype: str = type_name(array.dtype)
    if dtype not in DTYPES:
        hint = "; cast it to uint8" if dtype == "bool" else ""
        raise TypeError(f"{name}: got dtype {dtype}, expected one of {', '.join(DTYPES)}{hint}")
    return dtype


def common_dtype(**arrays: Array) -> str:
    """The type NumPy promotes these arrays to; integers are never promoted to floats."""
    names = {name: dtype_name(name, array) for name, array in arrays.items() if array is not None}
    try:
        result = np.result_type(*(array.dtype for array in arrays.values() if array is not None)).name
    except TypeError:
        result = ""
    integers = all(DTYPES[dtype].kind in "iu" for dtype in names.values())
    if result not in DTYPES or (integers and DTYPES[result].kind == "f"):
        text = ", ".join(f"{name} {dtype}" for name, dtype in names.items())
        raise TypeError(
            f"dtype: got {text}, which NumPy has no common type for without loss; cast one of them"
        )
    return result


# Operands a matrix product reads row by row; images may have any strides. On a device a gradient of images in 16 bits may
# have its channels last, too: no matrix product of the array library takes these types there, and own kernels take any.
IN_C_ORDER = ("weight", "grad_output")


def is_ready(array: Array, shape: Shape) -> bool:
    """Whether a kernel can read `array` where it lies: right type, aligned, native, weights in C order."""
    if type_name(array.dtype) != shape.dtype:
        return False
    if shape.name in IN_C_ORDER and not array.flags.c_contiguous:
        free = not isinstance(array, np.ndarray) and shape.dtype in ("float16", "bfloat16")
        return free and shape.name == "grad_output" and _has_channels_last(array)
    return not isinstance(array, np.ndarray) or (array.flags.aligned and array.dtype.isnative)


def _has_channels_last(array: Array) -> bool:
    """Whether channels are neighbours in memory, and nothing lies between positions."""
    return bool(array.transpose(0, *range(2, array.ndim), 1).flags.c_contiguous)


def operand(array: Array, shape: Shape) -> Array:
    """`array` as a kernel can read it; the same array where it already is.

    Strides of images are left alone: views, transposed and reversed arrays are read in place.
    """
    if type(array) is not np.ndarray and isinstance(array, np.ndarray):
        array = array.view(np.ndarray)
    if is_ready(array, shape):
        return array
    dtype = array.dtype.newbyteorder("=") if array.dtype.name == shape.dtype else shape.dtype
    return array.astype(dtype, order="C" if shape.name in IN_C_ORDER else "K")


def check_out(out: Array, expected: Shape, kind: str) -> None:
    """Refuse an `out` that cannot take the result exactly."""
    if kind_of("out", out) != kind:
        raise TypeError(f"out: got a {kind_of('out', out)} array, expected a {kind} array like the operands")
    if tuple(out.shape) != expected.shape:
        raise ValueError(
            f"out: got shape {tuple(out.shape)}, expected {expected.shape} for the {expected.name}"
        )
    if out.dtype.name != expected.dtype:
        raise TypeError(f"out: got dtype {out.dtype.name}, expected {expected.dtype} for the {expected.name}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out: got a read-only array, expected one that can be written")
    if isinstance(out, np.ndarray) and _overlaps_itself(out):
        raise ValueError(
            f"out: got strides {out.strides} for shape {out.shape}, expected elements that do not share memory"
        )


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory: a step is shorter than what the finer axes span."""
    reach = array.itemsize
    for step, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if step < reach:
            return bool(array.size)
        reach += step * (n - 1)
    return False
