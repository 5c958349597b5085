"""How a problem will be solved: the only selection loop, and the only cache of its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from fastconv.backends import (
    TF32_ERROR,
    Run,
    Unsupported,
    by_name,
    check_indices,
    device,
    get,
    owner,
    put,
    wait,
)
from fastconv.spec import Op, Shape, Spec, type_name
from fastconv.threads import get_num_threads

__all__ = ["Plan", "plan"]

# Plans are small (no arrays), but a service that sees ever new image sizes must not grow for ever.
CACHED_PLANS = 1024

# The normwise error precision="default" lets a transform add, relative to max|result|.
MAX_ERROR = 6e-6

# Instead of an algorithm's name: the one that is estimated, or measured, to be the fastest.
CHOICES = ("auto", "measure")

# Overflow, NaN and Inf are answers here, as they are in torch; NumPy would print warnings. What it does about them
# is part of a context: to run in a copy of one takes 0.03 us, to enter np.errstate 0.7.
QUIET = Context()
QUIET.run(np.seterr, all="ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A spec made ready to run: call it with arrays, print it to see what will happen.

    Attributes
    ----------
    spec : Spec
    op : Op
    backend, algorithm : str
    declined : Mapping[str, str]
        Every algorithm that was asked and refused, with its reason.
    estimates : Mapping[str, float]
        The cost model's seconds for each algorithm that accepted.
    measured : Mapping[str, float]
        With ``algorithm="measure"``, the seconds each of them took here; empty where there was no choice.
    run : Run
        The function and what it costs.
    """

    spec: Spec
    op: Op
    backend: str
    algorithm: str
    run: Run = field(repr=False)
    declined: Mapping[str, str]
    estimates: Mapping[str, float]
    measured: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def workspace(self) -> int:
        """Peak bytes of scratch above operands and results, with the threads a call may use now."""
        return self.run.workspace * min(self.run.at_once, get_num_threads()) + self.run.shared

    def pack(self, weight: Any) -> Any:
        """The weight in the form this plan's kernel reads; compute it once, pass it to :meth:`run_packed`."""
        return weight if self.run.pack is None else self.run.pack(weight)

    def __call__(self, *operands: Any, bias: Any = None, out: Any = None) -> Any:
        """Compute `op` on `operands`, which must have the shapes of ``spec.shapes(op)``.

        Returns
        -------
        array, or (values, indices) for a max pool that returns indices.
        """
        expected = self.spec.shapes(self.op)[: -self._results]
        if len(operands) != len(expected):
            raise TypeError(f"operands: got {len(operands)}, expected {len(expected)}")
        for operand, shape in zip(operands, expected, strict=True):
            _check(shape.name, operand, shape)
            # A kernel that finds out has written to its result by then, which is nobody's but where one was given.
            if shape.name == "indices" and (out is not None or not self.run.checks_indices):
                check_indices(operand, self.spec.in_size)
        if bias is not None:
            result = self.spec.shapes(self.op)[-1]
            _check("bias", bias, result._replace(shape=result.shape[1:2]))
        if self.op in (Op.CONV, Op.CONV_INPUT_GRAD):
            data, weight = operands
            return self.run_packed(data, self.pack(weight), bias=bias, out=out)
        return self._finish(operands, out)

    @property
    def _results(self) -> int:
        """How many of the spec's shapes are results: a pool may also return indices."""
        return 2 if self.op is Op.POOL and len(self.spec.shapes(self.op)) == 3 else 1

    def run_packed(self, data: Any, packed: Any, *, bias: Any = None, out: Any = None) -> Any:
        """As calling the plan, with a weight that :meth:`pack` has prepared."""
        return self._finish((data, packed, bias), out)

    def _finish(self, operands: tuple[Any, ...], out: Any) -> Any:
        count = self._results
        shapes = self.spec.shapes(self.op)[-count:]
        outs = out if isinstance(out, tuple) else (out,) * count
        empty = get(self.backend).empty
        results = []
        for shape, given in zip(shapes, outs, strict=True):
            if given is not None:
                _check("out", given, shape)
                if not given.flags.c_contiguous:
                    raise ValueError("out: got an array that is not in C order, expected one that is")
            results.append(empty(shape.shape, shape.dtype) if given is None else given)
        QUIET.copy().run(self.run.call, *operands, *results)
        return results[0] if count == 1 else tuple(results)

    def __str__(self) -> str:
        op, spec, run = self.op, self.spec, self.run
        lines = [
            f"{op} of {spec}",
            f"  runs as    {self.backend}/{self.algorithm}" + (f": {run.note}" if run.note else ""),
            f"  arithmetic {spec.flops(op):,} operations, operands and result {spec.nbytes(op):,} bytes",
            f"  workspace  {self.workspace:,} bytes",
            f"  error      {'plain sum' if not run.error else f'plain sum + {run.error:.1e} of max|result|'}",
        ]
        if self.measured:
            lines.append("  chosen     by measurement on this machine")
        times = self.measured or self.estimates
        for name in sorted(times, key=times.__getitem__):
            beside = f", measured {times[name] * 1e3:.3g} ms" if self.measured else ""
            lines.append(f"  estimate   {name}: {self.estimates[name] * 1e3:.3g} ms{beside}")
        lines += [f"  declined   {name}: {why}" for name, why in self.declined.items()]
        return "\n".join(lines)


def _check(name: str, array: Any, expected: Shape) -> None:
    """Refuse what a kernel would misread: a plan is called without the interface's conversions."""
    if not hasattr(array, "dtype"):
        raise TypeError(f"{name}: got {array!r:.60}, a {type(array).__name__}, expected an array")
    if tuple(array.shape) != expected.shape:
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected {expected.shape}")
    if type_name(array.dtype) != expected.dtype:
        raise TypeError(f"{name}: got dtype {array.dtype.name}, expected {expected.dtype}")


@lru_cache(maxsize=CACHED_PLANS)
def plan(
    spec: Spec,
    op: Op,
    backend: str,
    algorithm: str = "auto",
    precision: str = "default",
    workspace_limit: int | None = None,
    prepared: bool = False,
) -> Plan:
    """Ask every algorithm of `backend` and keep the cheapest that accepts (the first among equals).

    With ``algorithm="measure"`` the cheapest is the one that measures as the fastest, see ``fastconv/measured.py``.
    With `prepared`, weights are packed once and used often, which costs nothing in the estimates.

    Raises
    ------
    ValueError
        If `algorithm` is not one of the backend's for this op.
    Unsupported
        If every algorithm declines; the message holds each one's reason.
    """
    planners = get(backend).PLANNERS.get(op, ())
    names = [planner.__name__ for planner in planners]
    if not names:
        raise Unsupported(f"backend {backend!r} has no algorithm for {op}")
    if algorithm not in (*CHOICES, *names):
        raise ValueError(
            f"algorithm: got {algorithm!r}, expected one of {', '.join([*CHOICES, *names])} "
            f"({op} on backend {backend!r})"
        )
    runs: dict[str, Run] = {}
    refusals: dict[str, Unsupported] = {}
    for planner in planners:
        if algorithm in (*CHOICES, planner.__name__):
            try:
                if algorithm in CHOICES and by_name(planner):
                    raise Unsupported(f"it is taken only by name, algorithm={planner.__name__!r}")
                run = planner(spec, precision, workspace_limit)
                if prepared and run.prepared is not None:
                    run = run.prepared
                _check_transform(run, spec, algorithm, precision)
                runs[planner.__name__] = run
            except Unsupported as refusal:
                refusals[planner.__name__] = refusal
    declined = MappingProxyType({name: str(refusal) for name, refusal in refusals.items()})
    if not runs:
        raise _nobody(spec, op, backend, refusals, workspace_limit)
    estimates = MappingProxyType({name: run.seconds for name, run in runs.items()})
    chosen = min(runs, key=lambda name: runs[name].seconds)
    made = Plan(
        spec=spec, op=op, backend=backend, algorithm=chosen, run=runs[chosen], declined=declined, estimates=estimates
    )  # fmt: skip
    if algorithm != "measure" or len(runs) == 1:
        return made
    from fastconv import measured  # what it imports would make `import fastconv` slower

    plans = {name: replace(made, algorithm=name, run=run) for name, run in runs.items()}
    times = measured.seconds(
        (spec, op, backend, device(backend), precision, workspace_limit, prepared),
        spec.shapes(op)[: -made._results],
        {name: partial(_bound, plan, prepared) for name, plan in plans.items()},
    )
    return replace(plans[min(plans, key=times.__getitem__)], measured=MappingProxyType(times))


def _bound(made: Plan, prepared: bool, operands: Sequence[Any]) -> Callable[[], Any]:
    """A call of a plan on these operands, with the weight packed ahead where it is `prepared`."""
    placed = [put(made.backend, array) for array in operands]
    call = partial(made, *placed)
    if prepared:
        data, weight = placed
        call = partial(made.run_packed, data, made.pack(weight))
    if owner(made.backend) == "numpy":
        return call

    def finished() -> None:
        call()
        wait(made.backend)

    return finished


def _check_transform(run: Run, spec: Spec, algorithm: str, precision: str) -> None:
    """Transforms are for precision "default", and float64 takes them only when asked to by name."""
    if run.error and precision == "highest":
        raise Unsupported("it is a transform, and precision='highest' asks for the plain sum")
    if run.error and spec.dtype == "float64" and algorithm in CHOICES:
        raise Unsupported("it is a transform, which float64 takes only by name")
    allowed = TF32_ERROR if precision == "tf32" else MAX_ERROR
    if run.error > allowed and algorithm in CHOICES:
        raise Unsupported(f"its error bound is {run.error:.1e}, needs {allowed:.0e}")


def _nobody(
    spec: Spec, op: Op, backend: str, refusals: Mapping[str, Unsupported], workspace_limit: int | None
) -> Unsupported:
    reasons = {name: str(refusal) for name, refusal in refusals.items()}
    needs = [refusal.workspace for refusal in refusals.values() if refusal.workspace is not None]
    text = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    if needs:
        text = f"workspace_limit: got {workspace_limit}, expected at least {min(needs)} bytes ({text})"
    message = f"backend {backend!r} cannot run {op} of '{spec}': {text}"
    return Unsupported(message, reasons=reasons, workspace=min(needs, default=None))
