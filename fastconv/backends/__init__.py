"""Where things are computed: backend names, the modules behind them, and what a planner is.

A backend is a module with two names: ``PLANNERS``, a table ``Op -> planners, best first``, and ``empty``,
which allocates an array of its kind. One that owns arrays of a device has four more: ``put``, ``fetch``, ``wait`` and ``device``.
It is imported when it is first needed. A planner is a plain function
``(spec, precision, workspace_limit) -> Run`` that raises :class:`Unsupported` with a reason when it
declines; its ``__name__`` is the algorithm's name.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from fastconv import gpu
from fastconv.spec import Op

__all__ = [
    "BackendUnavailable",
    "Run",
    "Unsupported",
    "backends",
    "check",
    "check_indices",
    "default_for",
    "get",
    "reason",
]

T = TypeVar("T", bound=Callable[..., Any])

PRECISIONS = ("default", "highest", "tf32")

# What precision="tf32" may cost: each operand is rounded to the 11 significant bits of tensor cores.
TF32_ERROR = 2.0**-11


class BackendUnavailable(RuntimeError):
    """The backend cannot run on this machine; the message says why and what to do."""


class Unsupported(ValueError):
    """An algorithm, or every algorithm of a backend, declines a problem.

    Attributes
    ----------
    reasons : Mapping[str, str]
        Each algorithm's own words (empty for a single planner's refusal).
    workspace : int or None
        Where only ``workspace_limit`` stands in the way: the bytes that would be enough.
    """

    def __init__(
        self, message: str, *, reasons: Mapping[str, str] | None = None, workspace: int | None = None
    ) -> None:
        super().__init__(message)
        self.reasons = MappingProxyType(dict(reasons or {}))
        self.workspace = workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a planner returns: the function that does the work, and what it costs.

    Attributes
    ----------
    call : callable
        Operands first, results last: ``call(x, weight, bias, y)``. It writes every element of its results.
    seconds : float
        The cost model's estimate on the reference machine; only comparisons between algorithms count.
    workspace : int
        Peak bytes of scratch that one thread of `call` allocates, for operands in C order.
    at_once : int
        How many threads may work side by side, each with its own `workspace`.
    shared : int
        Bytes of scratch allocated once, however many threads: packed weights, sums.
    note : str
        What was decided and why, for people.
    error : float
        Bound on max|error| / max|result| beyond what the plain sum has; 0 for the plain sum.
    finite_only : bool
        A transform that would spread one NaN, or overflow, over its neighbours: chosen on its own only for
        data that rules this out.
    pack : callable or None
        ``weight -> packed``, applied once by a prepared call; `call` receives the packed weight.
    packing : hashable
        Names the format `pack` makes: runs with equal `packing` can share packed weights.
    prepared : Run or None
        What runs instead where weights are packed once and used often; None where that changes nothing.
    checks_indices : bool
        Whether `call` itself refuses indices outside their plane, having written nothing but its results.
    """

    call: Callable[..., None]
    seconds: float
    workspace: int = 0
    at_once: int = 1
    shared: int = 0
    note: str = ""
    error: float = 0.0
    finite_only: bool = False
    pack: Callable[[Any], Any] | None = None
    packing: Hashable = None
    prepared: Run | None = None
    checks_indices: bool = False


def check_indices(indices: Any, plane: tuple[int, ...]) -> None:
    """Refuse indices that point outside a plane: a kernel would write wherever they point."""
    low, high = (int(indices.min()), int(indices.max())) if indices.size else (0, 0)
    last = math.prod(plane) - 1
    if low < 0 or high > last:
        raise ValueError(
            f"indices: got values from {low} to {high}, expected 0 to {last} for planes of {plane}"
        )


def algorithm(name: str, by_name: bool = False) -> Callable[[T], T]:
    """Name a planner where the function cannot bear the algorithm's name itself.

    One that is taken `by_name` alone is not even asked by ``"auto"`` and ``"measure"``.
    """

    def rename(planner: T) -> T:
        planner.__name__ = name
        planner.__dict__["by_name"] = by_name
        return planner

    return rename


def by_name(planner: Planner) -> bool:
    """Whether only who names this planner's algorithm gets it."""
    return bool(getattr(planner, "by_name", False))


class Planner(Protocol):
    """A plain function; its ``__name__`` is the algorithm's name."""

    __name__: str

    def __call__(self, spec: Any, precision: str, workspace_limit: int | None) -> Run: ...


class Backend(Protocol):
    """What a backend module holds; the last four only where its arrays are not NumPy's."""

    PLANNERS: Mapping[Op, tuple[Planner, ...]]

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: str) -> Any: ...

    @staticmethod
    def put(array: Any) -> Any: ...

    @staticmethod
    def fetch(array: Any) -> Any: ...

    @staticmethod
    def wait() -> None: ...

    @staticmethod
    def device() -> str: ...


class _Row(NamedTuple):
    module: str
    arrays: str
    missing: Callable[[], str | None] = lambda: None


# Order matters: "auto" takes the first available row that owns the arrays it was given and knows the op.
_BACKENDS = {
    "numba": _Row("fastconv.backends.numba", "numpy"),
    "cupy": _Row("fastconv.backends.cupy", "cupy", gpu.missing),
    "im2col": _Row("fastconv.backends.im2col", "numpy"),
    "naive": _Row("fastconv.backends.naive", "numpy"),
}


def reason(name: str) -> str | None:
    """Why backend `name` cannot run here, or None if it can."""
    return _BACKENDS[name].missing()


def backends() -> dict[str, str]:
    """Every backend's name with ``"available"``, or the reason why it cannot run here.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.backends()["im2col"]
    'available'
    """
    return {name: reason(name) or "available" for name in _BACKENDS}


def check(name: object, argument: str = "backend") -> None:
    """Refuse a backend that does not exist or cannot run here."""
    if not isinstance(name, str) or (name != "auto" and name not in _BACKENDS):
        raise ValueError(f"{argument}: got {name!r}, expected one of {', '.join(['auto', *_BACKENDS])}")
    if name != "auto" and (why := reason(name)):
        raise BackendUnavailable(f"{argument}: {name!r} is not available: {why}")


def default_for(arrays: str, op: Op) -> str:
    """The backend that "auto" means for `op` on arrays of this kind."""
    for name, row in _BACKENDS.items():
        if row.arrays == arrays and reason(name) is None and algorithms(name, op):
            return name
    whys = [f"{name}: {reason(name)}" for name, row in _BACKENDS.items() if row.arrays == arrays]
    raise BackendUnavailable(f"no backend can take {arrays} arrays here ({'; '.join(whys)})")


def owner(name: str) -> str:
    """The kind of arrays backend `name` works on."""
    return _BACKENDS[name].arrays


def get(name: str) -> Backend:
    """The module of backend `name`, imported on first use."""
    check(name)
    module: Any = importlib.import_module(_BACKENDS[name].module)
    backend: Backend = module
    return backend


def put(name: str, array: Any) -> Any:
    """A NumPy array as backend `name` takes it: itself, or a copy on the device. For tests and measurements."""
    return array if owner(name) == "numpy" else get(name).put(array)


def fetch(name: str, array: Any) -> Any:
    """A backend's array as a NumPy array: itself, or a copy on the host, made once it is computed."""
    return array if owner(name) == "numpy" else get(name).fetch(array)


def wait(name: str) -> None:
    """Return once everything backend `name` has been asked for is computed: at once on the host."""
    if owner(name) != "numpy":
        get(name).wait()


def device(name: str) -> str:
    """What backend `name` computes on, where that is not this machine's processor."""
    return "" if owner(name) == "numpy" else get(name).device()


def algorithms(name: str, op: Op) -> tuple[str, ...]:
    """Names of backend `name`'s algorithms for `op`, best first; none where it does not know the op."""
    return tuple(planner.__name__ for planner in get(name).PLANNERS.get(op, ()))
