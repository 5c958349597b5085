"""Which backend is meant when a call names none: per call context, else the process, else the variable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from fastconv.backends import check

__all__ = ["get_backend", "set_backend", "use_backend"]

# Read once; a wrong name is reported by the first call that needs a backend, not by `import fastconv`.
_default = os.environ.get("FASTCONV_BACKEND") or "auto"
_chosen: ContextVar[str | None] = ContextVar("fastconv_backend", default=None)


def set_backend(name: str) -> None:
    """Make `name` the backend of every call that names none, in all threads without a ``use_backend``.

    Parameters
    ----------
    name : str
        One of the names of :func:`fastconv.backends`, or ``"auto"``: the best one for the arrays given.

    Raises
    ------
    ValueError
        If there is no such backend.
    BackendUnavailable
        If it cannot run here; the message says why and what to install.
    """
    global _default
    check(name, "name")
    _default = name


def get_backend() -> str:
    """Name of the backend that a call without ``backend=`` uses here and now."""
    return _chosen.get() or _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use backend `name` inside a ``with`` block, in this thread or async task only.

    Raises
    ------
    ValueError, BackendUnavailable
        As :func:`set_backend`.

    Examples
    --------
    >>> import fastconv as fc
    >>> with fc.use_backend("naive"):
    ...     fc.get_backend()
    'naive'
    """
    check(name, "name")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
