"""Laws that hold whatever the numbers: linearity, equivariance, adjoints, ranks, limits, threads."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import grad, testing
from fastconv.backends import Unsupported, algorithms, backends, owner
from fastconv.plan import plan
from fastconv.problems import PROBLEMS
from fastconv.spec import ConvSpec, Op, PoolSpec, parse

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
EDGES = [parse(text) for text in PROBLEMS["edges"]]
# In float64, where sums and products of small whole numbers are exact.
CONVS = [
    replace(spec, dtype="float64", out_dtype="float64")
    for spec in EDGES
    if isinstance(spec, ConvSpec) and spec.dtype == "float32"
]
POOLS = [
    replace(spec, dtype="float64")
    for spec in EDGES
    if isinstance(spec, PoolSpec) and spec.dtype in ("float32", "float64")
]

scale = 10 if settings.get_current_profile_name() == "nightly" else 1
often = settings(max_examples=40 * scale, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**16)
names = st.sampled_from(BACKENDS)
GRADIENTS = (Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def knowing(*ops: Op) -> st.SearchStrategy[str]:
    """Backends that know all of these ops; a refusal would skip the whole test, whatever else it drew."""
    return st.sampled_from([name for name in BACKENDS if all(algorithms(name, op) for op in ops)])


def pools(*modes: str) -> list[PoolSpec]:
    return [spec for spec in POOLS if spec.mode in modes]


def whole(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype("float64")


def run(spec: ConvSpec | PoolSpec, op: Op, backend: str, *operands: Any) -> Any:
    """`op` by plain sums, which are exact here."""
    return plan(spec, op, backend, "auto", "highest")(*operands)


# ---------------------------------------------------------------------------- adjoints


@each_backend
@pytest.mark.parametrize("spec", CONVS, ids=str)
def test_adjoint_identity(spec: ConvSpec, backend: str) -> None:
    """<conv x, dy> = <x, dx> = <w, dw>, exactly."""
    x, w, dy = whole(spec.input_shape, 1), whole(spec.weight_shape, 2), whole(spec.output_shape, 3)
    y = run(spec, Op.CONV, backend, x, w)
    dx = run(spec, Op.CONV_INPUT_GRAD, backend, dy, w)
    dw = run(spec, Op.CONV_WEIGHT_GRAD, backend, x, dy)
    assert np.vdot(y, dy) == np.vdot(x, dx) == np.vdot(w, dw)


@each_backend
@pytest.mark.parametrize("spec", CONVS, ids=str)
def test_unfold_and_fold_are_adjoint(spec: ConvSpec, backend: str) -> None:
    """<unfold x, c> = <x, fold c>, exactly."""
    x, columns = whole(spec.input_shape, 1), whole(spec.columns_shape, 2)
    unfolded, folded = run(spec, Op.UNFOLD, backend, x), run(spec, Op.FOLD, backend, columns)
    assert np.vdot(unfolded, columns) == np.vdot(x, folded)


@each_backend
@pytest.mark.parametrize("spec", CONVS, ids=str)
def test_unfolding_is_what_a_weight_meets(spec: ConvSpec, backend: str) -> None:
    """conv x = w @ unfold x, group by group."""
    x, w = whole(spec.input_shape, 1), whole(spec.weight_shape, 2)
    columns = run(spec, Op.UNFOLD, backend, x)
    columns = columns.reshape(spec.batch, spec.groups, math.prod(w.shape[1:]), math.prod(spec.out_size))
    product = w.reshape(1, spec.groups, -1, math.prod(w.shape[1:])) @ columns
    np.testing.assert_array_equal(run(spec, Op.CONV, backend, x, w), product.reshape(spec.output_shape))


@each_backend
@pytest.mark.parametrize("spec", pools("avg"), ids=str)
def test_average_and_its_gradient_are_adjoint(spec: PoolSpec, backend: str) -> None:
    """<pool x, dy> = <x, dx>, exactly: operands are multiples of every divisor."""
    divisors = map(math.prod, itertools.product(*map(spec.divisors, range(spec.rank))))
    multiple = spec.divisor_override or math.lcm(*divisors)
    x, dy = multiple * whole(spec.input_shape, 1), multiple * whole(spec.output_shape, 2)
    y, dx = run(spec, Op.POOL, backend, x), run(spec, Op.POOL_INPUT_GRAD, backend, dy, x)
    assert np.vdot(y, dy) == np.vdot(x, dx)


@each_backend
@pytest.mark.parametrize("spec", pools("max"), ids=str)
def test_maximum_and_its_gradient_are_adjoint(spec: PoolSpec, backend: str) -> None:
    """<pool x, dy> = <x, dx>, exactly: a maximum is one of its elements, with ties and without."""
    for x in (
        whole(spec.input_shape, 1),
        np.random.default_rng(2).permuted(np.arange(math.prod(spec.input_shape))),
    ):
        x = x.reshape(spec.input_shape).astype("float64")
        dy = whole(spec.output_shape, 3)
        y, indices = run(replace(spec, indices=True), Op.POOL, backend, x)
        by_value = run(replace(spec, indices=False), Op.POOL_INPUT_GRAD, backend, dy, x)
        by_index = run(replace(spec, indices=True), Op.POOL_INPUT_GRAD, backend, dy, indices)
        assert np.vdot(y, dy) == np.vdot(x, by_value)
        np.testing.assert_array_equal(by_value, by_index)


@each_backend
@pytest.mark.parametrize("spec", pools("lp"), ids=str)
def test_a_norm_is_its_slopes_times_its_elements(spec: PoolSpec, backend: str) -> None:
    """Euler: a norm is homogeneous, so <pool x, dy> = <x, dx>, within what rounding leaves of both."""
    forward, backward = plan(spec, Op.POOL, backend), plan(spec, Op.POOL_INPUT_GRAD, backend)
    (x,), dy = testing.operands(spec, Op.POOL), whole(spec.output_shape, 3)
    y, dx = forward(x), backward(dy, x)
    allowed = testing.tolerance(forward, (x,)) * np.abs(dy).sum()
    allowed += testing.tolerance(backward, (dy, x)) * np.abs(x).sum()
    assert abs(np.vdot(y, dy) - np.vdot(x, dx)) <= allowed


@each_backend
@pytest.mark.parametrize("spec", [spec for spec in pools("max") if spec.indices], ids=str)
def test_unpool_and_its_gradient_are_adjoint(spec: PoolSpec, backend: str) -> None:
    """<unpool y, dx> = <y, dy> where no two places are one, and what was put there is found again."""
    area, count = math.prod(spec.in_size), math.prod(spec.out_size)
    places = np.tile(np.arange(area), (spec.batch, spec.channels, 1))
    indices = np.random.default_rng(0).permuted(places, axis=2)[..., :count].reshape(spec.output_shape)
    y, dx = whole(spec.output_shape, 1), whole(spec.input_shape, 2)
    unpooled = run(spec, Op.UNPOOL, backend, y, indices)
    dy = run(spec, Op.UNPOOL_INPUT_GRAD, backend, dx, indices)
    assert np.vdot(unpooled, dx) == np.vdot(y, dy)
    np.testing.assert_array_equal(run(spec, Op.UNPOOL_INPUT_GRAD, backend, unpooled, indices), y)


# ---------------------------------------------------------------------------- equivariance


@often
@given(spec=st.sampled_from(CONVS), seed=seeds, a=st.integers(-3, 3), b=st.integers(-3, 3), name=names)
def test_linearity(spec: ConvSpec, seed: int, a: int, b: int, name: str) -> None:
    """In the input, in the weight, and of both gradients."""
    for op in filter(lambda op: algorithms(name, op), (Op.CONV, *GRADIENTS)):
        (x, w), (z, v) = (testing.operands(spec, op, "integers", seed + i) for i in range(2))
        first = run(spec, op, name, x, w)
        np.testing.assert_array_equal(
            run(spec, op, name, a * x + b * z, w), a * first + b * run(spec, op, name, z, w)
        )
        np.testing.assert_array_equal(
            run(spec, op, name, x, a * w + b * v), a * first + b * run(spec, op, name, x, v)
        )


@often
@given(seed=seeds, dy=st.integers(0, 2), dx=st.integers(0, 2), name=names)
def test_shift_equivariance(seed: int, dy: int, dx: int, name: str) -> None:
    x, w = whole((1, 2, 9, 9), seed), whole((2, 2, 3, 3), seed + 1)
    moved = np.zeros_like(x)
    moved[:, :, dy:, dx:] = x[:, :, : 9 - dy, : 9 - dx]
    with fc.use_backend(name):
        np.testing.assert_array_equal(
            fc.conv2d(moved, w)[:, :, dy:, dx:], fc.conv2d(x, w)[:, :, : 7 - dy, : 7 - dx]
        )
        around = fc.conv2d(x, w, padding=1, padding_mode="circular")
        rolled = fc.conv2d(np.roll(x, (dy, dx), (2, 3)), w, padding=1, padding_mode="circular")
        np.testing.assert_array_equal(rolled, np.roll(around, (dy, dx), (2, 3)))


@often
@given(
    seed=seeds, name=names, mode=st.sampled_from(("zeros", "reflect", "replicate", "circular", "symmetric")),
    before=st.integers(0, 2), after=st.integers(0, 2), d=st.integers(1, 2),
)  # fmt: skip
def test_a_mirrored_image_gives_a_mirrored_result(
    seed: int, name: str, mode: str, before: int, after: int, d: int
) -> None:
    x, w = whole((2, 2, 7, 6), seed), whole((3, 2, 3, 2), seed + 1)
    with fc.use_backend(name):
        y = fc.conv2d(x, w, padding=((before, after), (1, 2)), dilation=d, padding_mode=mode)
        mirrored = fc.conv2d(
            x[..., ::-1, ::-1],
            w[..., ::-1, ::-1],
            padding=((after, before), (2, 1)),
            dilation=d,
            padding_mode=mode,
        )
        np.testing.assert_array_equal(mirrored, y[..., ::-1, ::-1])


@often
@given(spec=st.sampled_from(CONVS), seed=seeds, name=names)
def test_images_and_output_channels_do_not_meet(spec: ConvSpec, seed: int, name: str) -> None:
    """Reordered images give reordered results, and each the bits it has alone; so do output channels of a group."""
    (x, w), rng = testing.operands(spec, Op.CONV, "integers", seed), np.random.default_rng(seed)
    y = run(spec, Op.CONV, name, x, w)
    order = rng.permutation(spec.batch)
    np.testing.assert_array_equal(run(spec, Op.CONV, name, x[order], w), y[order])
    outs = spec.out_channels // spec.groups
    channels = np.concatenate([group * outs + rng.permutation(outs) for group in range(spec.groups)])
    np.testing.assert_array_equal(run(spec, Op.CONV, name, x, w[channels]), y[:, channels])
    for n in range(spec.batch):
        np.testing.assert_array_equal(run(spec.with_batch(1), Op.CONV, name, x[n : n + 1], w), y[n : n + 1])


@often
@given(seed=seeds, s=st.integers(1, 4), size=st.integers(3, 11), name=names)
def test_stride_is_subsampling(seed: int, s: int, size: int, name: str) -> None:
    x, w = whole((2, 2, size, size), seed), whole((3, 2, 3, 3), seed + 1)
    with fc.use_backend(name):
        np.testing.assert_array_equal(fc.conv2d(x, w, stride=s), fc.conv2d(x, w)[:, :, ::s, ::s])
        np.testing.assert_array_equal(fc.max_pool2d(x, 3, s), fc.max_pool2d(x, 3, 1)[:, :, ::s, ::s])
        np.testing.assert_array_equal(fc.avg_pool2d(x, 2, s), fc.avg_pool2d(x, 2, 1)[:, :, ::s, ::s])


@often
@given(seed=seeds, d=st.integers(1, 3), k=st.integers(1, 3), name=names)
def test_dilation_is_a_kernel_with_zeros(seed: int, d: int, k: int, name: str) -> None:
    x, w = whole((2, 2, 9, 8), seed), whole((3, 2, k, k), seed + 1)
    spread = np.zeros((3, 2, d * (k - 1) + 1, d * (k - 1) + 1))
    spread[:, :, ::d, ::d] = w
    with fc.use_backend(name):
        np.testing.assert_array_equal(fc.conv2d(x, w, dilation=d), fc.conv2d(x, spread))


@often
@given(seed=seeds, s=st.integers(1, 3), k=st.integers(1, 3), name=knowing(Op.CONV, Op.CONV_INPUT_GRAD))
def test_transposed_convolution_is_a_convolution_of_a_spread_image(
    seed: int, s: int, k: int, name: str
) -> None:
    """Zeros between the elements, k - 1 around them, and the kernel turned."""
    x, w = whole((2, 3, 4, 5), seed), whole((3, 2, k, k), seed + 1)
    spread = np.zeros((2, 3, 3 * s + 1, 4 * s + 1))
    spread[:, :, ::s, ::s] = x
    with fc.use_backend(name):
        expected = fc.conv2d(spread, w.swapaxes(0, 1)[..., ::-1, ::-1], padding=k - 1)
        np.testing.assert_array_equal(fc.conv_transpose2d(x, w, stride=s), expected)


@often
@given(
    seed=seeds, name=knowing(Op.CONV, *GRADIENTS, Op.POOL), p=st.integers(0, 2), s=st.integers(1, 3),
    d=st.integers(1, 2),
)  # fmt: skip
def test_ranks_agree(seed: int, name: str, p: int, s: int, d: int) -> None:
    """conv1d is conv2d of one row is conv3d of one plane; so are gradients, transposes and pools."""
    x, w, pad = whole((2, 3, 9), seed), whole((4, 3, 3), seed + 1), min(p, 1)

    def raised(values: Any, rank: int, filler: int) -> Any:
        return (filler,) * (rank - 1) + (values,)

    def lift(array: Any, rank: int) -> Any:
        return array.reshape(*array.shape[:2], *(1,) * (rank - 1), array.shape[2])

    with fc.use_backend(name):
        line = fc.conv1d(x, w, None, s, p, d)
        dy = whole(line.shape, seed + 2)
        up = fc.conv_transpose1d(dy, w, None, s, p, 0, 1, d)
        dw = grad.conv1d_weight(x, w.shape, dy, s, p, d)
        pooled, places = fc.max_pool1d(x, 3, s, pad, return_indices=True)
        for rank in (2, 3):
            n = f"{rank}d"
            rest = {
                "stride": raised(s, rank, 1),
                "padding": raised(p, rank, 0),
                "dilation": raised(d, rank, 1),
            }
            lifted = [lift(array, rank) for array in (x, w, dy)]
            made: list[tuple[Any, Any]] = [
                (line, getattr(fc, f"conv{n}")(*lifted[:2], **rest)),
                (up, getattr(fc, f"conv_transpose{n}")(lifted[2], lifted[1], **rest)),
                (dw, getattr(grad, f"conv{n}_weight")(lifted[0], lifted[1].shape, lifted[2], **rest)),
            ]
            window = {
                "kernel_size": raised(3, rank, 1),
                "stride": raised(s, rank, 1),
                "padding": raised(pad, rank, 0),
            }
            values, indices = getattr(fc, f"max_pool{n}")(lifted[0], return_indices=True, **window)
            made += [(pooled, values), (places, indices)]
            made += [(fc.avg_pool1d(x, 3, s, pad), getattr(fc, f"avg_pool{n}")(lifted[0], **window))]
            made += [
                (
                    fc.adaptive_avg_pool1d(x, 4),
                    getattr(fc, f"adaptive_avg_pool{n}")(lifted[0], raised(4, rank, 1)),
                )
            ]
            for expected, got in made:
                np.testing.assert_array_equal(got, lift(expected, rank))


@often
@given(seed=seeds, name=knowing(Op.CONV, *GRADIENTS), groups=st.sampled_from((1, 2, 4)), p=st.integers(0, 1))
def test_groups_are_separate_convolutions(seed: int, name: str, groups: int, p: int) -> None:
    """Down to one channel each; forward and both gradients."""
    x, w = whole((2, 4, 5, 5), seed), whole((8, 4 // groups, 3, 3), seed + 1)
    share, outs = 4 // groups, 8 // groups

    def part(array: Any, g: int, size: int) -> Any:
        return array[:, g * size : (g + 1) * size]

    with fc.use_backend(name):
        y = fc.conv2d(x, w, groups=groups, padding=p)
        dy = whole(y.shape, seed + 2)
        dx = grad.conv2d_input(x.shape, w, dy, groups=groups, padding=p)
        dw = grad.conv2d_weight(x, w.shape, dy, groups=groups, padding=p)
        for g in range(groups):
            xg, wg, dyg = part(x, g, share), w[g * outs : (g + 1) * outs], part(dy, g, outs)
            np.testing.assert_array_equal(part(y, g, outs), fc.conv2d(xg, wg, padding=p))
            np.testing.assert_array_equal(part(dx, g, share), grad.conv2d_input(xg.shape, wg, dyg, padding=p))
            np.testing.assert_array_equal(
                dw[g * outs : (g + 1) * outs], grad.conv2d_weight(xg, wg.shape, dyg, padding=p)
            )


@each_backend
@pytest.mark.parametrize("spec", [*CONVS, *POOLS], ids=str)
def test_an_empty_batch_gives_an_empty_result(spec: ConvSpec | PoolSpec, backend: str) -> None:
    """And a weight gradient of zeros."""
    empty = spec.with_batch(0)
    for op in empty.ops:
        given_operands = testing.operands(empty, op)
        made = plan(empty, op, backend)(*given_operands)
        results = made if isinstance(made, tuple) else (made,)
        for result, shape in zip(results, empty.shapes(op)[-len(results) :], strict=True):
            assert result.shape == shape.shape
            assert result.dtype == shape.dtype
            assert not result.any()


# ---------------------------------------------------------------------------- settings change no number


@pytest.mark.parametrize(
    "problem",
    [
        "n3 c6x17x15 k8x3x3 s1 p1",
        "n2 c4x20x9 k6x5x3 s2 p2x1 d1x2 g2",
        "n1 c3x40 k5x7 s1 p3",
        "n1 c2x7x8x9 k3x3x2x3 s1 p1",
    ],
)
@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.UNFOLD, Op.FOLD])
def test_a_limit_does_not_change_the_numbers(problem: str, op: Op) -> None:
    """Whole ones at all, others by more than both plans' tolerance."""
    spec = parse(problem)
    free = plan(spec, op, "im2col", "auto", "highest")
    least = 0  # unfolding without padding needs nothing
    try:
        plan(spec, op, "im2col", "auto", "highest", 0)
    except Unsupported as refusal:
        least = refusal.workspace or 0
    for limit, kind in itertools.product(
        (least, 2 * least, 5 * least, free.workspace // 2 + least), ("integers", "normal")
    ):
        operands = testing.operands(spec, op, kind)
        made = plan(spec, op, "im2col", "auto", "highest", limit)
        assert made.workspace <= limit
        allowed = testing.tolerance(made, operands) + testing.tolerance(free, operands)
        assert allowed == 0 or kind == "normal"
        _, detail = testing.compare(made(*operands), free(*operands), allowed)
        assert not detail, detail


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = fc.get_num_threads()
    yield
    fc.set_num_threads(before)


# Several blocks each, so that threads have something to share; the loops of naive know no threads.
SHARED = [
    "n6 c16x40x40 k16x3x3 s1 p1 f32",
    "n3 c8x61x33 k12x5x3 s2x1 p2x1 g2 f64",
    "n2 c64x48x48 k64x1x1 s1 p0 f32",
    "n4 c2x96x96 k3x15x15 s1 p7 f32",
    "n2 c4x12x20x18 k6x3x3x3 s1 p1 replicate f32",
    "n4 c24x30x30 k8x3x3 s1 p1 f16",
    "n4 c24x30x30 k8x3x3 s1 p1 s8",
    "max n8 c16x40x40 k3x3 s2 p1 indices f32",
    "avg n8 c16x40x40 k3x3 s1 p1 f32",
    "lp3 n8 c16x40x40 k3x3 s2 p0 f32",
    "avg n8 c16x40x40 o7x5 f32",
]


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "naive"])
@pytest.mark.parametrize("problem", SHARED)
def test_same_bits_with_one_thread_and_several(problem: str, backend: str) -> None:
    """Every op by every algorithm."""
    spec, most = parse(problem), 1
    for op in spec.ops:
        operands = testing.operands(spec, op)
        for algorithm in algorithms(backend, op):
            bits = []
            try:
                chosen = plan(spec, op, backend, algorithm)
            except Unsupported:
                continue
            most = max(most, chosen.run.at_once)
            for threads in (1, 2, 3):
                fc.set_num_threads(threads)
                made = chosen(*operands)
                bits.append([part.tobytes() for part in (made if isinstance(made, tuple) else (made,))])
            assert all(other == bits[0] for other in bits), f"{op} by {algorithm}"
    assert most > 1 or isinstance(spec, PoolSpec), "nothing was shared"


@pytest.mark.usefixtures("threads_restored")
@pytest.mark.parametrize("op", [Op.CONV, Op.CONV_INPUT_GRAD, Op.CONV_WEIGHT_GRAD, Op.UNFOLD, Op.FOLD])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_ragged_blocks_on_several_threads(monkeypatch: pytest.MonkeyPatch, op: Op, dtype: str) -> None:
    """Blocks of unequal size, in whatever order threads take them."""
    from fastconv.backends.im2col import gemm

    monkeypatch.setattr(gemm, "TARGET_BYTES", 20_000)
    fc.set_num_threads(4)
    made = plan.__wrapped__(parse(f"n3 c8x7x7 k8x3x3 s1 p1 {dtype}"), op, "im2col", "auto", "highest")
    for seed in range(20):
        testing.assert_agrees(made, "integers", seed % 3)


def test_calls_from_many_threads_at_once() -> None:
    """Concurrent calls of different ops give the bits each gives alone, and BLAS keeps its thread count."""
    from threadpoolctl import threadpool_info

    def blas_threads() -> list[int]:
        return [row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas"]

    before = blas_threads()
    jobs = []
    for problem in (
        "n4 c16x20x20 k16x3x3 s1 p1 f32",
        "n2 c64x24x24 k64x1x1 s1 p0 f32",
        "max n4 c16x40x40 k3x3 s2 p1 f32",
    ):
        spec = parse(problem)
        jobs += [(plan(spec, op, "im2col"), testing.operands(spec, op)) for op in spec.ops]
    expected = [made(*operands).tobytes() for made, operands in jobs]
    barrier = threading.Barrier(6)

    def call(first: int) -> bool:
        """Every job ten times, each thread beginning with another."""
        barrier.wait()
        order = [*range(first, len(jobs)), *range(first)] * 10
        return all(jobs[i][0](*jobs[i][1]).tobytes() == expected[i] for i in order)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(6)))
    assert blas_threads() == before


def test_calls_after_fork() -> None:
    """A forked child computes what its parent does."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system does not fork")
    code = (
        "import multiprocessing as m, numpy as np, fastconv as fc\n"
        "x = np.ones((4, 8, 90, 90), 'f4'); w = np.ones((8, 8, 3, 3), 'f4')\n"
        "here = fc.conv2d(x, w, backend='im2col')\n"
        "def child(queue): queue.put(bool((fc.conv2d(x, w, backend='im2col') == 72).all()))\n"
        "c = m.get_context('fork'); q = c.Queue(); p = c.Process(target=child, args=(q,)); p.start()\n"
        "assert q.get(timeout=60); p.join(); assert (here == 72).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_overflow_and_invalid_are_answers_not_warnings() -> None:
    """Inf and NaN come out as torch gives them, also from other threads, without a warning."""
    x = np.full((64, 1, 64, 64), 3e38, "f4")
    w = np.full((1, 1, 1, 2), 2, "f4")
    assert np.isinf(fc.conv2d(x, w, backend="im2col")).all()
    assert np.isinf(fc.avg_pool2d(x, 2, backend="im2col")).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_functions_match_plans(backend: str) -> None:
    """The public gradients are the plans of the forward call's spec."""
    spec = parse("n2 c4x7x6 k6x3x2 s2x1 p1 d1x2 g2 f32")
    assert isinstance(spec, ConvSpec)
    (dy, w), (x, _) = testing.operands(spec, Op.CONV_INPUT_GRAD), testing.operands(spec, Op.CONV)
    rest = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": 2,
        "backend": backend,
    }
    dx = grad.conv2d_input(spec.input_shape, w, dy, **rest)  # type: ignore[arg-type]
    dw = grad.conv2d_weight(x, spec.weight_shape, dy, **rest)  # type: ignore[arg-type]
    np.testing.assert_array_equal(dx, plan(spec, Op.CONV_INPUT_GRAD, backend)(dy, w))
    np.testing.assert_array_equal(dw, plan(spec, Op.CONV_WEIGHT_GRAD, backend)(x, dy))
