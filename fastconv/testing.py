"""What agreement means: operands, the exact answer, and how far from it a result may be.

Everything that compares results goes through here: the conformance test, ``fastconv check``, the comparison
report and the benchmarks. No tolerance is typed in anywhere; each follows from the operands, the number of
summed terms and the accumulation type, and is zero where the arithmetic is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastconv.backends import Unsupported, algorithms, backends, fetch, put
from fastconv.plan import Plan, plan
from fastconv.problems import PROBLEMS
from fastconv.spec import DTYPES, ConvSpec, Op, PoolSpec, Spec, parse

__all__ = [
    "PROBLEMS",
    "Agreement",
    "assert_agrees",
    "check_plan",
    "checks",
    "compare",
    "operands",
    "reference",
    "tolerance",
]

Array = Any

# Unit roundoff of each float type: half the distance from 1 to the next number.
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# The c of `tolerance`: at 10, a right result is refused less than once in a billion times 1e12 terms.
CONFIDENCE = 10


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of this name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def operands(spec: Spec, op: Op, kind: str = "normal", seed: int = 0) -> tuple[Array, ...]:
    """Random operands of `op` in call order.

    Parameters
    ----------
    spec : Spec
    op : Op
    kind : {"normal", "integers"}
        Standard normal numbers, or integers from -4 to 4 (0 to 4 if unsigned), whose sums floats hold exactly
        and which tie often.
    seed : int

    Returns
    -------
    tuple of array
        For a gradient that takes indices, they are the forward pool's own.
    """
    rng = np.random.default_rng([seed, *str(spec).encode(), *op.value.encode()])
    made: list[Array] = []
    for shape in _operand_shapes(spec, op):
        row = DTYPES[shape.dtype]
        if shape.name == "indices":
            made.append(_indices(spec, seed))  # type: ignore[arg-type]
        elif kind == "integers" or row.kind != "f":
            low = 0 if row.kind == "u" else -4
            made.append(rng.integers(low, 5, shape.shape).astype(numpy_dtype(shape.dtype)))
        elif kind == "normal":
            made.append(rng.standard_normal(shape.shape).astype(numpy_dtype(shape.dtype)))
        else:
            raise ValueError(f"kind: got {kind!r}, expected 'normal' or 'integers'")
    return tuple(made)


def _operand_shapes(spec: Spec, op: Op) -> Sequence[Any]:
    shapes = spec.shapes(op)
    return shapes[: -2 if op is Op.POOL and len(shapes) == 3 else -1]


def _indices(spec: PoolSpec, seed: int) -> Array:
    (x,) = operands(spec, Op.POOL, "normal", seed)
    # `naive`, which the pool itself is held against, takes 8 s where this takes 0.1.
    return plan(replace(spec, mode="max", indices=True), Op.POOL, "im2col")(x)[1]


def _widened(spec: Spec) -> Spec:
    """The same problem in float64, unless it is one of integers."""
    if DTYPES[spec.dtype].kind != "f":
        return spec
    if isinstance(spec, ConvSpec):
        return replace(spec, dtype="float64", out_dtype="float64")
    return replace(spec, dtype="float64")


def reference(
    spec: Spec, op: Op, given: Sequence[Array], bias: Array | None = None, backend: str = "naive"
) -> Any:
    """The answer: the definition on these very operands, in float64 (exactly for integers).

    Parameters
    ----------
    backend : str
        Another backend than ``"naive"`` may stand in where its loops would take too long.
    """
    wide = _widened(spec)
    cast = [
        array if shape.name == "indices" else array.astype(numpy_dtype(shape.dtype))
        for array, shape in zip(given, wide.shapes(op), strict=False)
    ]
    if bias is not None:
        bias = bias.astype(wide.shapes(op)[-1].dtype)
    return plan(wide, op, backend, "auto", "highest")(*cast, bias=bias)


def _sizes(array: Array) -> Array:
    """Absolute values in float64, 0 for what is not finite."""
    return np.abs(np.nan_to_num(array.astype("float64"), nan=0.0, posinf=0.0, neginf=0.0))


def _largest(array: Array) -> float:
    return float(_sizes(array).max(initial=0))


def _whole(array: Array) -> bool:
    return array.dtype.kind in "iu" or bool(np.all(np.rint(array) == array))


def _magnitude(spec: ConvSpec, op: Op, values: Sequence[Array], terms: int) -> float:
    """Bound on the sum of its terms' absolute values, for any element: ``terms * max|a| * mean|b|``.

    The mean is that of the terms of one result, the largest there is. Of normal operands it is a quarter of the
    maximum, or less.
    """
    if op is Op.FOLD or not all(array.size for array in values):
        return terms * math.prod(map(_largest, values))
    a, b = values
    if op is Op.CONV_WEIGHT_GRAD:
        means = _sizes(b).reshape(*b.shape[:2], -1).mean(axis=(0, 2))
    else:
        groups = (spec.groups, spec.out_channels // spec.groups, b.shape[1], -1)
        means = _sizes(b).reshape(groups).mean(axis=(2, 3) if op is Op.CONV else (1, 3))
    return terms * _largest(a) * float(means.max())


def _roundings(terms: float) -> float:
    """How many roundoffs of its terms' absolute values a sum of so many terms may be off by."""
    return min(terms, CONFIDENCE * math.sqrt(terms))


def tolerance(plan: Plan, given: Sequence[Array], bias: Array | None = None) -> float:
    """How far `plan`'s result on these operands may be from the exact one, at any element.

    A sum of K products in arithmetic of unit roundoff u, in any order, is off by at most ``K u S`` to first order,
    S being the sum of the products' absolute values (Higham, Accuracy and Stability, 2002, section 3.1). Each of
    its roundings is a factor ``1 + d``, ``|d| <= u``, on terms that pass through K of them at most. Where the d
    are independent and of mean zero, as those of a correct kernel on operands without a pattern are, most of them
    cancel: a product of K such factors is off by more than ``c sqrt(K) u`` with a probability of at most
    ``2 exp(-c**2 / 2)`` (Higham and Mary, A new approach to probabilistic rounding error analysis, 2019, theorem 2.4).
    So ``min(K, c sqrt(K)) u S`` is allowed, with ``c = CONFIDENCE``: no chance is taken up to 100 terms. S is at most
    ``K max|a|`` times the mean of ``|b|`` over one result's terms.

    The definition sums in float64, whose u is added, and is rounded to the result's type, as are narrow results
    from the type they were summed in. A transform may add twice its stated bound. Whole numbers whose sums the
    accumulation type holds exactly must come out exactly.
    """
    spec, op = plan.spec, plan.op
    row = DTYPES[spec.dtype]
    selects = op in (Op.UNFOLD, Op.UNPOOL, Op.UNPOOL_INPUT_GRAD) or (
        isinstance(spec, PoolSpec) and spec.mode == "max" and op is Op.POOL
    )
    if selects or (row.kind != "f" and isinstance(spec, ConvSpec)):
        return 0.0
    values = [array for array, shape in zip(given, spec.shapes(op), strict=False) if shape.name != "indices"]
    accumulate = row.accumulate if row.kind == "f" else "float64"
    out = spec.shapes(op)[-1].dtype
    u = ROUNDOFF[accumulate] + ROUNDOFF["float64"]
    u_out = ROUNDOFF.get(out, 0.0) * (1 if out == accumulate else 2)
    terms = spec.dot_length(op)
    if isinstance(spec, PoolSpec):
        return _pool_tolerance(spec, op, values, terms, u, u_out)
    magnitude = _magnitude(spec, op, values, terms)
    bound = terms * math.prod(map(_largest, values))
    if bias is not None:
        values, terms = [*values, bias], terms + 1
        magnitude, bound = magnitude + _largest(bias), bound + _largest(bias)
    if not plan.run.error and magnitude * u < 1 and all(map(_whole, values)):
        return 0.0
    return (_roundings(terms) * u + u_out) * magnitude + 2 * plan.run.error * bound


def _pool_tolerance(
    spec: PoolSpec, op: Op, values: Sequence[Array], terms: int, u: float, u_out: float
) -> float:
    if spec.mode == "max":  # a gradient that adds where windows overlap
        bound = terms * _largest(values[0])
        return 0.0 if bound * u < 1 and _whole(values[0]) else (_roundings(terms) * u + u_out) * bound
    if spec.mode == "avg":
        bound = _largest(values[0]) * max(1.0, terms / (spec.divisor_override or terms))
        if op is Op.POOL_INPUT_GRAD:  # up to `terms` quotients meet in one element
            least = spec.divisor_override or math.prod(min(spec.divisors(axis)) for axis in range(spec.rank))
            bound = terms * _largest(values[0]) / least
        return (_roundings(terms + 1) * u + u_out) * bound
    # A power and a root each cost a few roundoffs of a number whose exponent they scale.
    p = spec.norm_type
    growth = terms ** (1 / p) if op is Op.POOL else terms * max(1.0, float(math.prod(spec.kernel_size)))
    bound = growth * _largest(values[0])
    return (2 * _roundings(terms) * u + 2 * (4 * max(p, 1 / p) + 4) * u + u_out) * bound


@dataclass(frozen=True, slots=True)
class Agreement:
    """One comparison of a plan with the definition.

    Attributes
    ----------
    plan : Plan or None
        None if no algorithm of `backend` took the problem.
    spec, op, backend, algorithm
    kind : str
        Kind of operands.
    error, allowed : float
        Largest absolute difference found, and the tolerance.
    detail : str
        Where they differ, in words; empty if they agree.
    """

    plan: Plan | None
    spec: Spec
    op: Op
    backend: str
    algorithm: str
    kind: str
    error: float
    allowed: float
    detail: str

    @property
    def ok(self) -> bool:
        """Whether plan and definition agree."""
        return not self.detail

    @property
    def repeat(self) -> str:
        """The command that repeats this comparison."""
        return f'fastconv check --backend {self.backend} --problem "{self.spec}"'


def compare(result: Array, expected: Array, allowed: float) -> tuple[float, str]:
    """Largest absolute difference, and where it is too large in words (empty if nowhere).

    `expected` is rounded to `result`'s type first. NaN must meet NaN, and Inf the same Inf.
    """
    if tuple(result.shape) != tuple(expected.shape):
        return math.inf, f"shape {tuple(result.shape)}, expected {tuple(expected.shape)}"
    with np.errstate(all="ignore"):
        rounded = expected.astype(result.dtype)
        if result.dtype.kind in "iu":
            wrong = result != rounded
            gap = np.abs(result.astype("float64") - rounded.astype("float64"))
        else:
            a, b = result.astype("float64"), rounded.astype("float64")
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            gap = np.where(same, 0.0, np.abs(a - b))
            gap = np.where(np.isnan(gap), math.inf, gap)
            wrong = gap > allowed
    error = float(gap.max(initial=0.0))
    if not wrong.any():
        return error, ""
    at = tuple(map(int, np.unravel_index(np.argmax(np.where(wrong, gap, -1)), wrong.shape)))
    return error, (
        f"{int(wrong.sum())} of {wrong.size} elements differ; at {at} got {result[at]}, "
        f"expected {expected[at]} within {allowed:.3g}"
    )


def poisoned(shape: Any) -> Array:
    """An array full of what no result holds, so that an element left unwritten is seen."""
    dtype = numpy_dtype(shape.dtype)
    value = np.nan if DTYPES[shape.dtype].kind == "f" else np.iinfo(dtype).max - 7
    return np.full(shape.shape, value, dtype)


def check_plan(plan: Plan, kind: str = "integers", seed: int = 0) -> Agreement:
    """Run `plan` on random operands into a poisoned output and compare it with the definition."""
    spec, op = plan.spec, plan.op
    given = operands(spec, op, kind, seed)
    bias = None
    if op in (Op.CONV, Op.CONV_INPUT_GRAD):
        channels = spec.shapes(op)[-1].shape[1]
        values = np.random.default_rng(seed).integers(-4, 5, channels)
        bias = values.astype(numpy_dtype(spec.shapes(op)[-1].dtype))
    kept = [array.copy() for array in given]
    shapes = spec.shapes(op)[len(given) :]
    outs = tuple(poisoned(shape) for shape in shapes)
    there = [put(plan.backend, array) for array in outs]
    lent = [put(plan.backend, array) for array in given]
    plan(
        *lent,
        bias=None if bias is None else put(plan.backend, bias),
        out=tuple(there) if len(there) == 2 else there[0],
    )
    outs = tuple(fetch(plan.backend, array) for array in there)
    returned = [fetch(plan.backend, array) for array in lent]
    expected = reference(spec, op, given, bias)
    allowed = tolerance(plan, given, bias)
    error, details = 0.0, []
    for shape, result, answer in zip(shapes, outs, expected if len(outs) == 2 else (expected,), strict=True):
        gap, detail = compare(result, answer, 0.0 if shape.name == "indices" else allowed)
        error = max(error, gap)
        details += [f"{shape.name}: {detail}"] * bool(detail)
    details += [
        "an operand was written to"
        for array, copy in zip(returned, kept, strict=True)
        if array.tobytes() != copy.tobytes()
    ]
    return Agreement(plan, spec, op, plan.backend, plan.algorithm, kind, error, allowed, "; ".join(details))


def assert_agrees(plan: Plan, kind: str = "integers", seed: int = 0) -> None:
    """Raise an AssertionError with the line that repeats it if `plan` disagrees with the definition."""
    agreement = check_plan(plan, kind, seed)
    if not agreement.ok:
        raise AssertionError(
            f"{agreement.backend}/{agreement.algorithm} {agreement.op}: {agreement.detail}\n{agreement.repeat}"
        )


def plans(spec: Spec, op: Op, backend: str) -> Iterator[Plan | Unsupported]:
    """One plan for each algorithm of `backend` that takes the problem; if none does, the refusal.

    Nothing for an op that the backend does not know.
    """
    refusals = []
    names = algorithms(backend, op)
    for name in names:
        try:
            yield plan(spec, op, backend, name)
        except Unsupported as refusal:
            refusals.append(refusal)
    if refusals and len(refusals) == len(names):
        yield refusals[0]


def checks(
    names: Iterable[str] | None = None,
    problems: Iterable[str] | None = None,
    ops: Iterable[Op] | None = None,
    kinds: Sequence[str] = ("integers", "normal"),
) -> Iterator[Agreement]:
    """Compare every backend x algorithm x op x problem with the definition.

    Parameters
    ----------
    names : iterable of str, optional
        Backends; every available one by default.
    problems : iterable of str, optional
        Problem strings, ``PROBLEMS["edges"]`` by default.
    ops : iterable of Op, optional
        Every op of each problem by default.
    kinds : sequence of str
        Kinds of operands.
    """
    if names is None:
        names = [name for name, state in backends().items() if state == "available"]
    chosen, wanted = list(names), None if ops is None else set(ops)
    for problem in PROBLEMS["edges"] if problems is None else problems:
        spec = parse(problem)
        for op in spec.ops:
            if wanted is not None and op not in wanted:
                continue
            for name in chosen:
                for made in plans(spec, op, name):
                    if isinstance(made, Unsupported):
                        yield Agreement(None, spec, op, name, "none", "", math.inf, 0.0, str(made))
                    else:
                        for kind in kinds:
                            yield check_plan(made, kind)
