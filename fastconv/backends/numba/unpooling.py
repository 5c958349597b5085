"""What goes by indices, planned: unpooling, its gradient, and the gradient of a max pool whose indices were kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fastconv.backends import Run, check_indices
from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.kernels import scatter as kernels
from fastconv.backends.numba.kernels.scatter import ADD, FIELD, PUT
from fastconv.backends.numba.operands import Array, set_fields
from fastconv.backends.numba.planes import Part, moved, planes_of, task
from fastconv.spec import DTYPES, PoolSpec

# What is moved without arithmetic is told apart by its size alone.
SIZES = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
MOVED = (*jit.COMPUTED, "int16", "int8")

SCATTER = {ADD: jit.Kernel(kernels.scatter(ADD)), PUT: jit.Kernel(kernels.scatter(PUT), MOVED)}
GATHER = jit.Kernel(kernels.gather, MOVED)

# Cycles of an index that is followed, and of a plane, of which small ones are taken together.
INDEX_CYCLES, PLANE_CYCLES = 2.7, 5

X, Y, INDICES, COUNT, WRONG = map(FIELD.__getitem__, ("x", "y", "indices", "planes", "wrong"))


def by_indices(
    spec: PoolSpec,
    limit: int | None,
    kernel: jit.Kernel,
    wide: str,
    dtype: str,
    *,
    cycles: float = 0,
    template: Array | None = None,
) -> Run:
    """The run of a kernel between planes (x) and what their indices name (y), of `dtype` each.

    Operands are y, indices, x, and for a gather the other way round.

    Parameters
    ----------
    cycles : float
        Of a plane; without them each index is followed.
    template : structured array of one
        The kernel's arguments, if it has more than all: these come first.
    """
    plane, outputs = math.prod(spec.in_size), math.prod(spec.out_size)
    large, small = Part(plane, dtype, wide), Part(outputs, dtype, wide)
    places = Part(outputs, "int64", "int64")
    gathers = kernel is GATHER
    operands = (large, places, small) if gathers else (small, places, large)
    planes = planes_of(spec.batch, spec.channels, limit, *operands)
    cycles = cycles or outputs * INDEX_CYCLES + PLANE_CYCLES
    each = max(cycles * cost.CYCLE, moved(sum(part.nbytes for part in operands), planes.planes))
    step = task(each, planes.planes)
    template = np.zeros(1, kernels.ARGUMENTS) if template is None else template
    group = 1 if gathers else min(kernels.CHUNK // outputs, kernels.TOGETHER_BYTES // large.nbytes, step)
    set_fields(template, plane=plane, outputs=outputs, planes_step=step, group=max(group, 1))
    fields = template.view(np.int64)
    first, last = (X, Y) if gathers else (Y, X)

    def compute(at: Sequence[int], count: int) -> None:
        a = fields.copy()
        a[first], a[INDICES], a[last] = at
        a[COUNT] = count
        tasks = -(-count // step)
        threads.launch(kernel.address(wide), a, tasks, threads.workers(tasks), count * each)
        if a[WRONG]:
            raise IndexError

    return Run(
        call=in_words(planes.call(compute), spec),
        seconds=planes.planes * each + cost.CALL_SECONDS,
        at_once=max(-(-planes.planes // step), 1),
        shared=planes.shared,
        note=planes.note,
        checks_indices=True,
    )


def in_words(call: Callable[..., None], spec: PoolSpec) -> Callable[..., None]:
    """A call that says what is wrong with its indices where a kernel met one outside its plane."""

    def told(source: Array, indices: Array, result: Array) -> None:
        try:
            call(source, indices, result)
        except IndexError:
            check_indices(indices, spec.in_size)
            raise

    return told


def scatter(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unpool: planes are cleared and filled while they lie in the cache."""
    wide = as_moved(spec.dtype)
    return by_indices(spec, workspace_limit, SCATTER[PUT], wide, wide)


def gather(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unpool's gradient: read where each index points."""
    wide = as_moved(spec.dtype)
    return by_indices(spec, workspace_limit, GATHER, wide, wide)


def as_moved(dtype: str) -> str:
    """What elements are taken for: floats and ints of 4 and 8 bytes for themselves, others for ints of their size."""
    return dtype if dtype in jit.COMPUTED else SIZES[DTYPES[dtype].itemsize]
