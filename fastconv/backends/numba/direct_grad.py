"""The gradient of a convolution's weights as direct products, with vectors along the output channels.

::

    dw[o, c, k] = sum_n sum_q dy[n, o, q] * x[n, c, at[q] + offset[k]]

is, image by image, what ``direct`` computes: an image's gradient stands where weights do, its positions are the terms, and the
places of a weight (a channel, a tap) are the positions. So nothing of the input is turned or gathered, only the output's
gradient is packed, and what each image adds is written once and summed in their order.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm
from fastconv.backends.numba import cost, direct, jit, slabs, threads
from fastconv.backends.numba.direct import GIVEN
from fastconv.backends.numba.geometry import geometry, strides
from fastconv.backends.numba.kernels import direct as kernels
from fastconv.backends.numba.kernels.positions import ARGUMENTS
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, begun, scratch, set_fields
from fastconv.backends.numba.planes import CACHED_BYTES
from fastconv.backends.numba.slabs import C_TASKS, COPIED, FIELD, X
from fastconv.backends.numba.winograd import round_up
from fastconv.spec import DTYPES, ConvSpec

GROUPS = FIELD["groups"]

# What is packed of some images, and what they add: they stay in the shared cache.
ROUND_BYTES = 4 << 20

# Terms of a sum that is rounded at each: more are better cut in blocks, as ``implicit_gemm`` does.
MOST_TERMS = 4096

# Cycles to pack a vector of the output's gradient.
PACK_CYCLES = 5


@algorithm("direct")
def weights(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Direct products of an input and the output's gradient, with vectors along the output channels."""
    if spec.dtype != spec.out_dtype or spec.dtype not in jit.COMPUTED:
        raise Unsupported(f"sums types it computes in as they are, got {spec.dtype} to {spec.out_dtype}")
    if spec.groups > 1 or spec.rank > 2:
        raise Unsupported("needs one group and at most two axes")
    g, itemsize, lanes = geometry(spec), DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype)
    positions, vectors = math.prod(g.out), -(-g.o // lanes)
    if positions > MOST_TERMS:
        raise Unsupported(f"sums at most {MOST_TERMS} positions of an image, got {positions}")
    if (places := g.K) < (least := kernels.WIDTHS[0]):
        raise Unsupported(f"needs {least} places of a weight, which a tile computes, got {places}")
    added, packed = g.o * g.K * itemsize, vectors * host().width * positions
    images = 1 if workspace_limit is not None else max(min(ROUND_BYTES // (added + packed), spec.batch), 1)
    # What the direct kernel computes: a group for each image, a term for each position.
    product = ConvSpec(
        batch=1, in_channels=images * positions, out_channels=images * g.o, in_size=(g.K,), kernel_size=(1,), groups=images,
        dtype=spec.dtype, out_dtype=spec.dtype,
    )  # fmt: skip
    terms = geometry(product)
    cut = direct.choose(product, terms, packed=True)
    template, held, image = np.zeros(1, ARGUMENTS), None, 0
    if any(g.before + g.after):
        whole = direct.with_rows_whole(g)
        held = slabs.slab_of(spec, whole, whole.out)
        set_fields(template, **held.fields)
        image = held.fields["copied_n"] * itemsize
        channel, (_, row, one) = held.fields["pitch_c"], strides(whole.slab(whole.out)[3:])
    else:
        channel, (_, row, one) = math.prod(g.size), strides(g.size)
        set_fields(template, x_group=g.c * channel)
    at = np.indices(g.out[1:]).reshape(2, -1).T @ (g.stride[1] * row, g.stride[2] * one)
    if at.max(initial=0) >= 2**31:
        raise Unsupported("an image spans 2**31 elements or more")
    offsets = at.astype(np.int32)
    grid = (g.kernel[1], g.kernel[2], channel, g.dilation[1] * row, g.dilation[2] * one)
    if g.taps == 1:  # in one row
        grid = (1, g.c, 0, 0, channel)
    p_tasks, o_tasks = -(-g.K // cut.p_step), -(-vectors // cut.o_step)
    bias_at, sums_at, nbytes = direct.worker(cut, spec.dtype)
    set_fields(
        template, batch=images, groups=images, o=g.o, c=g.c, K=positions, y_c=g.K, w_group=vectors * positions,
        v_stop=vectors, out_h=grid[0], out_w=grid[1], step_d=grid[2], step_h=grid[3], step_w=grid[4], o_step=cut.o_step,
        o_tasks=o_tasks, positions=g.K, p_step=cut.p_step, p_tasks=p_tasks, k_block=direct.part_terms(terms),
        bias_at=bias_at, sums_at=sums_at, scratch_size=nbytes, offsets=address(offsets),
    )  # fmt: skip
    fields = template.view(np.int64)
    one_by_one = images == 1 == spec.batch
    # Scratch: copied images, their packed gradients, and what each adds.
    parts = [
        round_up(part, ALIGNMENT)
        for part in (image * images + host().width, packed * images, 0 if one_by_one else added * images)
    ]
    shared = ALIGNMENT + sum(parts)
    if workspace_limit is not None and (need := nbytes + shared) > workspace_limit:
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    each = p_tasks * o_tasks
    at_once = max(each, vectors) * images
    if workspace_limit is not None:
        at_once = max(min(at_once, (workspace_limit - shared) // nbytes), 1)
    rounds = -(-spec.batch // images)
    share = cut.seconds / images
    pack_seconds = vectors * positions * PACK_CYCLES * cost.CYCLE
    seconds = (
        spec.batch * (share + pack_seconds + (0 if one_by_one else 2 * added / CACHED_BYTES))
        + rounds * cost.CALL_SECONDS
    )
    if spec.batch * packed > cost.SHARED_CACHE:
        seconds += spec.batch * packed / cost.BYTES
    if held is not None:
        seconds += slabs.copy_seconds(spec, whole, whole.out, spec.in_channels) * spec.batch

    def call(x: Array, dy: Array, dw: Array) -> None:
        if not spec.batch:
            dw[...] = 0
            return
        dy = np.ascontiguousarray(dy)
        if held is None:
            x = np.ascontiguousarray(x)
        workers = threads.workers(at_once)
        memory, begin = scratch(shared - ALIGNMENT + workers * nbytes)
        at_copied, at_packed, at_added = itertools.accumulate((begin, *parts[:2]))
        at_worker = at_added + parts[2]
        a = begun(fields, 0, at_packed, 0, address(dw) if one_by_one else at_added, at_worker)
        slabs.set_strides(a, x, spec)
        for n in range(0, spec.batch, images):
            count = min(images, spec.batch - n)
            a[X], a[GIVEN], a[GROUPS] = address(x) + n * x.strides[0], address(dy) + n * dy.strides[0], count
            if held is not None:
                a[COPIED] = at_copied
                moved = cost.moving(count * image)
                threads.launch(slabs.COPY.address(spec.dtype), a, int(a[C_TASKS]) * count, workers, moved)
            threads.launch(direct.PACK.address(spec.dtype), a, count * vectors, workers, count * pack_seconds)
            threads.launch(
                direct.DIRECT[cut.most].address(spec.dtype), a, each * count, workers, count * share
            )
            if not one_by_one:
                first = at_added - address(memory)
                made = memory[first : first + count * added].view(dw.dtype).reshape(count, *dw.shape)
                if n:
                    made[0] += dw
                np.add.reduce(made, axis=0, dtype=dw.dtype, out=dw)

    call.tables = held, offsets  # type: ignore[attr-defined]
    return Run(
        call=call,
        seconds=seconds + cost.CALL_SECONDS,
        workspace=nbytes,
        at_once=at_once,
        shared=shared,
        note=("reads the input where it lies" if held is None else "copies what it reads, padded")
        + ", vectors along the output channels",
    )
