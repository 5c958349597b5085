"""Independent answers: SciPy, torch and ONNX's reference evaluator agree on problems hypothesis makes.

Every problem runs on every backend. Whole-numbered operands are compared exactly, random ones within the derived
tolerance; shapes, types, indices and refusals count as much as values. SciPy, which is always there, answers more
than 1,000 problems a run; ``-m nightly`` makes ten times as many.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import grad, testing
from fastconv.backends import backends, owner
from fastconv.backends.fft import fast_length
from fastconv.plan import Plan
from fastconv.spec import ConvSpec, Op, PoolSpec

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
NUMPY_MODES = {
    "zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap", "symmetric": "symmetric",
}  # fmt: skip

Keywords = dict[str, Any]

kinds = st.sampled_from(("integers", "normal"))
seeds = st.integers(0, 2**16)

# How many problems each oracle is asked to answer in a default run.
ASKED: Counter[str] = Counter()


def often(oracle: str, examples: int) -> settings:
    """So many problems in a default run, ten times as many with ``-m nightly``."""
    ASKED[oracle] += examples
    scale = 10 if settings.get_current_profile_name() == "nightly" else 1
    return settings(max_examples=examples * scale, suppress_health_check=list(HealthCheck))


# ---------------------------------------------------------------------------- problems


def per_axis(draw: Any, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))


def pads_of(draw: Any, rank: int, most: tuple[int, ...], asymmetric: bool) -> Any:
    before = tuple(draw(st.integers(0, most[axis])) for axis in range(rank))
    if not asymmetric or draw(st.booleans()):
        return tuple((pad, pad) for pad in before)
    return tuple((pad, draw(st.integers(0, most[axis]))) for axis, pad in enumerate(before))


@st.composite
def conv_specs(
    draw: Any,
    ranks: tuple[int, ...] = (1, 2, 3),
    modes: tuple[str, ...] = ("zeros",),
    dtypes: tuple[str, ...] = ("float32", "float64"),
    asymmetric: bool = False,
    least_batch: int = 0,
) -> ConvSpec:
    """Small convolutions with every option."""
    rank = draw(st.sampled_from(ranks))
    kernel = per_axis(draw, rank, 1, (5, 3, 2)[rank - 1])
    dilation = per_axis(draw, rank, 1, 3 if rank < 3 else 2)
    padding = pads_of(draw, rank, (2,) * rank, asymmetric)
    mode = draw(st.sampled_from(modes))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    # What the kernel needs, and what a padding mode needs to reach as far as `padding` says.
    reach = {"zeros": 0, "replicate": 0, "reflect": 1}.get(mode, 0)
    least = [
        max(e - sum(pads), 1, 0 if mode in ("zeros", "replicate") else max(pads) + reach)
        for e, pads in zip(extent, padding, strict=True)
    ]
    return ConvSpec(
        batch=draw(st.integers(least_batch, 2)),
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 2)),
        in_size=tuple(n + draw(st.integers(0, (6, 4, 2)[rank - 1])) for n in least),
        kernel_size=kernel,
        stride=per_axis(draw, rank, 1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
        dtype=draw(st.sampled_from(dtypes)),
    )


@st.composite
def pool_specs(
    draw: Any,
    mode: str,
    ranks: tuple[int, ...] = (1, 2, 3),
    dtypes: tuple[str, ...] = ("float32", "float64"),
    asymmetric: bool = False,
    padded: bool = True,
) -> PoolSpec:
    """Small pools with every option; padding at most half the kernel before dilation, as everybody takes it."""
    rank = draw(st.sampled_from(ranks))
    kernel = per_axis(draw, rank, 1, 4 if rank < 3 else 3)
    dilation = per_axis(draw, rank, 1, 3 if rank < 3 else 2) if mode == "max" else (1,) * rank
    padding = pads_of(draw, rank, tuple(k // 2 if padded else 0 for k in kernel), asymmetric)
    # torch's 3-D pools want the kernel to fit the input without its padding.
    least = [
        max(d * (k - 1) + 1 - (sum(pads) if rank < 3 else 0), 1)
        for d, k, pads in zip(dilation, kernel, padding, strict=True)
    ]
    try:
        return PoolSpec(
            mode=mode,
            batch=draw(st.integers(1, 2)),
            channels=draw(st.integers(1, 2)),
            in_size=tuple(n + draw(st.integers(0, (7, 5, 3)[rank - 1])) for n in least),
            kernel_size=kernel,
            stride=per_axis(draw, rank, 1, 4),
            padding=padding,
            dilation=dilation,
            ceil_mode=draw(st.booleans()),
            count_include_pad=mode != "avg" or draw(st.booleans()),
            divisor_override=draw(st.sampled_from((0, 0, 1, 5))) if mode == "avg" and rank > 1 else 0,
            norm_type=draw(st.sampled_from((1.0, 2.0, 3.0, 1.5, 0.5))) if mode == "lp" else 2.0,
            indices=mode == "max",
            dtype=draw(st.sampled_from(dtypes)),
        )
    except ValueError as error:
        if "without any input element" in str(error):  # two taps of one window, both in the padding
            reject()
        raise


def conv_keywords(spec: ConvSpec) -> Keywords:
    """The arguments of a convolution, without pairs where none are needed."""
    even = all(before == after for before, after in spec.padding)
    padding = tuple(before for before, _ in spec.padding) if even else spec.padding
    return {"stride": spec.stride, "padding": padding, "dilation": spec.dilation, "groups": spec.groups}


def pool_keywords(spec: PoolSpec, *names: str) -> Keywords:
    even = all(before == after for before, after in spec.padding)
    all_of_them = {
        "kernel_size": spec.kernel_size,
        "stride": spec.stride,
        "padding": tuple(before for before, _ in spec.padding) if even else spec.padding,
        "dilation": spec.dilation,
        "ceil_mode": spec.ceil_mode,
        "count_include_pad": spec.count_include_pad,
        "divisor_override": spec.divisor_override or None,
        "return_indices": True,
    }
    return {name: all_of_them[name] for name in ("kernel_size", "stride", "ceil_mode", *names)}


def numbers(shape: Any, kind: str, seed: int, dtype: str = "float64") -> Any:
    rng = np.random.default_rng(seed)
    made = rng.integers(-3, 4, shape) if kind == "integers" else rng.standard_normal(shape)
    return made.astype(testing.numpy_dtype(dtype))


# ---------------------------------------------------------------------------- comparing


def allowed(plan: Plan, args: tuple[Any, ...]) -> float:
    """Twice the plan's tolerance: fastconv and the oracle may each be off by as much."""
    arrays = [array for array in args if isinstance(array, np.ndarray)]
    count = 2 if isinstance(plan.spec, ConvSpec) else len(plan.spec.shapes(plan.op)) - 1
    operands = arrays[:count]
    if isinstance(
        args[0], tuple
    ):  # an input's size: its gradient's function takes the weight first, its plan last
        operands.reverse()
    return 2 * testing.tolerance(plan, operands, arrays[2] if len(arrays) > 2 else None)


def check(function: Callable[..., Any], expected: Any, *args: Any, **keywords: Any) -> None:
    """`function` gives `expected` on every backend: values, shape and type."""
    for name in BACKENDS:
        try:
            plan = fc.explain(function, *args, backend=name, **keywords)
        except fc.Unsupported as refusal:
            if not UNKNOWN.search(str(refusal)):
                raise
            continue
        given = function(*args, backend=name, **keywords)
        pairs = zip(given, expected, strict=True) if isinstance(given, tuple) else [(given, expected)]
        for result, answer in pairs:
            assert result.dtype == answer.dtype, f"{name}: {result.dtype}, expected {answer.dtype}"
            _, detail = testing.compare(result, answer, allowed(plan, args))
            assert not detail, f"{name}: {detail}\n{plan}"


# ---------------------------------------------------------------------------- SciPy


def padded(spec: ConvSpec, x: Any) -> Any:
    mode: Any = NUMPY_MODES[spec.padding_mode]
    return np.pad(x, ((0, 0), (0, 0), *spec.padding), mode=mode)


def every(steps: tuple[int, ...]) -> Any:
    """The index that takes every so-manieth element along the last axes."""
    return (..., *(slice(None, None, step) for step in steps))


def spread(spec: ConvSpec, w: Any) -> Any:
    """`w` with its dilation's zeros written out."""
    wide = np.zeros((*w.shape[:2], *spec.kernel_extent), w.dtype)
    wide[every(spec.dilation)] = w
    return wide


def channel_pairs(spec: ConvSpec) -> Iterator[tuple[int, int, int, int]]:
    """Image, output channel, channel of the input, channel of the weight."""
    share, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for n, o, c in itertools.product(range(spec.batch), range(spec.out_channels), range(share)):
        yield n, o, o // outs * share + c, c


def scipy_conv(spec: ConvSpec, x: Any, w: Any) -> Any:
    """The convolution by scipy.signal.correlate, one pair of channels at a time."""
    from scipy.signal import correlate

    x, w, y = padded(spec, x), spread(spec, w), np.zeros(spec.output_shape, x.dtype)
    for n, o, i, c in channel_pairs(spec):
        y[n, o] += correlate(x[n, i], w[o, c], "valid", method="direct")[every(spec.stride)]
    return y


def scipy_gradients(spec: ConvSpec, x: Any, w: Any, dy: Any) -> tuple[Any, Any]:
    """Both gradients by scipy.signal: a full convolution, and a correlation with the spread grad_output."""
    from scipy.signal import convolve, correlate

    x, wide, dw = padded(spec, x), spread(spec, w), np.zeros_like(w)
    unstrided = [n - e + 1 for n, e in zip(x.shape[2:], spec.kernel_extent, strict=True)]
    z = np.zeros((*dy.shape[:2], *unstrided), dy.dtype)
    z[every(spec.stride)] = dy
    dx_padded = np.zeros_like(x)
    for n, o, i, c in channel_pairs(spec):
        dx_padded[n, i] += convolve(z[n, o], wide[o, c], "full", method="direct")
        dw[o, c] += correlate(x[n, i], z[n, o], "valid", method="direct")[every(spec.dilation)]
    # Every padded element gives its gradient to the element it was copied from; a zero, to nobody.
    area = math.prod(spec.in_size)
    mode: Any = NUMPY_MODES[spec.padding_mode]
    constant = {"constant_values": area} if mode == "constant" else {}
    place = np.pad(np.arange(area).reshape(spec.in_size), spec.padding, mode=mode, **constant)
    dx = np.zeros((*spec.input_shape[:2], area + 1), x.dtype)
    for n, i in np.ndindex(dx.shape[:2]):
        np.add.at(dx[n, i], place, dx_padded[n, i])
    return dx[..., :area].reshape(spec.input_shape), dw


@often("scipy", 450)
@given(spec=conv_specs(modes=tuple(NUMPY_MODES), asymmetric=True), kind=kinds, seed=seeds)
def test_scipy_agrees_on_convolution(spec: ConvSpec, kind: str, seed: int) -> None:
    x, w = testing.operands(spec, Op.CONV, kind, seed)
    rest = conv_keywords(spec) | {"padding_mode": spec.padding_mode}
    check(getattr(fc, f"conv{spec.rank}d"), scipy_conv(spec, x, w), x, w, **rest)


@often("scipy", 250)
@given(spec=conv_specs(modes=tuple(NUMPY_MODES), asymmetric=True), kind=kinds, seed=seeds)
def test_scipy_agrees_on_gradients(spec: ConvSpec, kind: str, seed: int) -> None:
    x, w = testing.operands(spec, Op.CONV, kind, seed)
    dy, _ = testing.operands(spec, Op.CONV_INPUT_GRAD, kind, seed)
    rest = conv_keywords(spec) | {"padding_mode": spec.padding_mode}
    dx, dw = scipy_gradients(spec, x, w, dy)
    check(getattr(grad, f"conv{spec.rank}d_input"), dx, x.shape, w, dy, **rest)
    check(getattr(grad, f"conv{spec.rank}d_weight"), dw, x, w.shape, dy, **rest)


@often("scipy", 100)
@given(
    spec=conv_specs(dtypes=("int8", "uint8", "int16", "int32", "int64", "uint64"), asymmetric=True),
    seed=seeds,
)
def test_scipy_agrees_on_integers(spec: ConvSpec, seed: int) -> None:
    x, w = testing.operands(spec, Op.CONV, "integers", seed)
    wide = np.dtype(spec.out_dtype)
    expected = scipy_conv(spec, x.astype(wide), w.astype(wide))
    check(getattr(fc, f"conv{spec.rank}d"), expected, x, w, **conv_keywords(spec))


def starts(spec: PoolSpec, axis: int) -> list[int]:
    """Where windows begin along an axis, found by walking along it."""
    size, (before, after), step = spec.in_size[axis], spec.padding[axis], spec.stride[axis]
    end = spec.dilation[axis] * (spec.kernel_size[axis] - 1) + 1
    walked = [at for at in range(-before, size + after, step) if at + end <= size + after]
    following = walked[-1] + step
    if spec.ceil_mode and walked[-1] + end < size + after and following < size:
        walked.append(following)
    return walked


def ndimage_windows(spec: PoolSpec, plane: Any, fill: float, reduce: str) -> Any:
    """Every window of a plane reduced by a filter of scipy.ndimage, `fill` standing around it."""
    from scipy import ndimage

    extent = [d * (k - 1) + 1 for d, k in zip(spec.dilation, spec.kernel_size, strict=True)]
    taps = np.zeros(extent, bool)
    taps[every(spec.dilation)] = True
    margin = [2 * e + s for e, s in zip(extent, spec.stride, strict=True)]
    wide = np.pad(plane, [(m, m) for m in margin], constant_values=fill)
    if reduce == "max":
        filtered = ndimage.maximum_filter(wide, footprint=taps)
    else:
        filtered = ndimage.correlate(wide, taps.astype(wide.dtype))
    # A filter's window begins extent // 2 before the element it belongs to.
    places = [
        [at + m + e // 2 for at in starts(spec, axis)]
        for axis, (m, e) in enumerate(zip(margin, extent, strict=True))
    ]
    return filtered[np.ix_(*places)]


@often("scipy", 250)
@given(
    spec=st.sampled_from(("max", "avg", "lp")).flatmap(
        lambda mode: pool_specs(mode, dtypes=("float64",), asymmetric=mode != "lp", padded=mode != "lp")
    ),
    kind=kinds,
    seed=seeds,
)
def test_scipy_agrees_on_pools(spec: PoolSpec, kind: str, seed: int) -> None:
    (x,) = testing.operands(spec, Op.POOL, kind, seed)
    y = np.empty(spec.output_shape, x.dtype)
    inside, padding = np.ones(spec.in_size), [*spec.padding]
    kept = ndimage_windows(spec, inside, 0, "sum")
    paper = PoolSpec(  # the padded input as an input of its own, to count what a window covers of it
        mode="avg", batch=1, channels=1, in_size=tuple(n + sum(p) for n, p in zip(spec.in_size, padding, strict=True)),
        kernel_size=spec.kernel_size, stride=spec.stride, dilation=spec.dilation, ceil_mode=spec.ceil_mode,
    )  # fmt: skip
    for n, c in np.ndindex(y.shape[:2]):
        if spec.mode == "max":
            y[n, c] = ndimage_windows(spec, x[n, c], -np.inf, "max")
        elif spec.mode == "avg":
            covered = ndimage_windows(paper, np.ones(paper.in_size), 0, "sum")
            covered = covered[tuple(map(slice, y.shape[2:]))]
            divisor = spec.divisor_override or (covered if spec.count_include_pad else kept)
            y[n, c] = ndimage_windows(spec, x[n, c], 0, "sum") / divisor
        else:
            total = ndimage_windows(spec, np.abs(x[n, c]) ** spec.norm_type, 0, "sum")
            y[n, c] = (total * math.prod(spec.kernel_size) / kept) ** (1 / spec.norm_type)
    function = getattr(fc, f"{spec.mode}_pool{spec.rank}d")
    if spec.mode == "max":
        check(function, y, x, **pool_keywords(spec, "padding", "dilation"))
    elif spec.mode == "avg":
        check(function, y, x, **pool_keywords(spec, "padding", "count_include_pad", "divisor_override"))
    else:
        check(function, y, x, spec.norm_type, **pool_keywords(spec))


@given(st.integers(1, 2**31))
def test_scipy_agrees_on_fast_lengths(least: int) -> None:
    from scipy.fft import next_fast_len

    for n in (least, least % 2000 + 1):
        assert fast_length(n) == next_fast_len(n, real=True)


# ---------------------------------------------------------------------------- torch


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")


class Answer(NamedTuple):
    """What torch computed: the result, the gradient it was given, and the operands' gradients."""

    y: Any
    dy: Any
    grads: tuple[Any, ...]


def to_torch(torch: Any, array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(torch: Any, tensor: Any) -> Any:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(testing.numpy_dtype("bfloat16"))
    return tensor.detach().numpy()


def ask_torch(
    torch: Any, function: Callable[..., Any], arrays: Any, kind: str, seed: int, **keywords: Any
) -> Answer:
    """`function` of these arrays, and the gradient of <result, dy> by torch's autograd."""
    tensors = [to_torch(torch, array).requires_grad_() for array in arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an even kernel with padding="same" makes torch copy, and say so
        made = function(*tensors, **keywords)
    y = made[0] if isinstance(made, tuple) else made
    dy = numbers(tuple(y.shape), kind, seed + 1, arrays[0].dtype.name)
    y.backward(to_torch(torch, dy))
    found = tuple(from_torch(torch, tensor.grad) for tensor in tensors)
    results = tuple(from_torch(torch, part) for part in made) if isinstance(made, tuple) else None
    return Answer(results or from_torch(torch, y), dy, found)


def check_bias_gradient(spec: ConvSpec, dy: Any, expected: Any) -> None:
    """The bias's gradient is the weight's for an input of ones, whose tolerance it has."""
    result = getattr(grad, f"conv{spec.rank}d_bias")(dy)
    assert result.dtype == expected.dtype
    ones = ConvSpec(
        batch=dy.shape[0], in_channels=1, out_channels=dy.shape[1], in_size=dy.shape[2:], kernel_size=(1,) * spec.rank,
        dtype=spec.dtype,
    )  # fmt: skip
    plan = fc.explain(ones, op="conv weight grad", backend="naive")
    _, detail = testing.compare(result, expected, 2 * testing.tolerance(plan, (np.ones(1), dy)))
    assert not detail, detail


@pytest.mark.oracle
@often("torch", 200)
@given(spec=conv_specs(), kind=kinds, seed=seeds, biased=st.booleans())
def test_torch_agrees_on_convolution(torch: Any, spec: ConvSpec, kind: str, seed: int, biased: bool) -> None:
    """Forward, autograd's three gradients, and torch.nn.grad's two."""
    x, w = testing.operands(spec, Op.CONV, kind, seed)
    arrays = (x, w, numbers(spec.out_channels, kind, seed, spec.dtype)) if biased else (x, w)
    d, rest = f"{spec.rank}d", conv_keywords(spec)
    answer = ask_torch(torch, getattr(torch.nn.functional, f"conv{d}"), arrays, kind, seed, **rest)
    check(getattr(fc, f"conv{d}"), answer.y, *arrays, **rest)
    check(getattr(grad, f"conv{d}_input"), answer.grads[0], x.shape, w, answer.dy, **rest)
    check(getattr(grad, f"conv{d}_weight"), answer.grads[1], x, w.shape, answer.dy, **rest)
    if biased:
        check_bias_gradient(spec, answer.dy, answer.grads[2])
    tx, tw, tdy = map(torch.from_numpy, (x, w, answer.dy))
    dx = getattr(torch.nn.grad, f"conv{d}_input")(x.shape, tw, tdy, **rest).numpy()
    dw = getattr(torch.nn.grad, f"conv{d}_weight")(tx, w.shape, tdy, **rest).numpy()
    check(getattr(grad, f"conv{d}_input"), dx, x.shape, w, answer.dy, **rest)
    check(getattr(grad, f"conv{d}_weight"), dw, x, w.shape, answer.dy, **rest)


@pytest.mark.oracle
@often("torch", 100)
@given(
    spec=conv_specs(modes=("zeros", "reflect", "replicate", "circular"), asymmetric=True, least_batch=1),
    kind=kinds,
    seed=seeds,
)
def test_torch_agrees_on_padding_modes(torch: Any, spec: ConvSpec, kind: str, seed: int) -> None:
    """torch pads first, and its autograd goes through that."""
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    pads = [pad for pair in reversed(spec.padding) for pad in pair]
    d, functional = f"{spec.rank}d", torch.nn.functional
    rest = conv_keywords(spec) | {"padding_mode": spec.padding_mode}

    def padded_first(x: Any, w: Any) -> Any:
        wide = functional.pad(x, pads, mode)
        return getattr(functional, f"conv{d}")(wide, w, None, spec.stride, 0, spec.dilation, spec.groups)

    x, w = testing.operands(spec, Op.CONV, kind, seed)
    answer = ask_torch(torch, padded_first, (x, w), kind, seed)
    check(getattr(fc, f"conv{d}"), answer.y, x, w, **rest)
    check(getattr(grad, f"conv{d}_input"), answer.grads[0], x.shape, w, answer.dy, **rest)
    check(getattr(grad, f"conv{d}_weight"), answer.grads[1], x, w.shape, answer.dy, **rest)


@pytest.mark.oracle
@often("torch", 80)
@given(
    spec=conv_specs(least_batch=1),
    seed=seeds,
    padding=st.sampled_from(("same", "valid")),
    batched=st.booleans(),
)
def test_torch_agrees_on_named_padding_and_single_images(
    torch: Any, spec: ConvSpec, seed: int, padding: str, batched: bool
) -> None:
    x, w = testing.operands(spec, Op.CONV, "integers", seed)
    x = x if batched else x[0]
    # "same" keeps every size; "valid" wants the kernel to fit without padding.
    if padding == "valid":
        x = np.pad(x, ((0, 0),) * (x.ndim - spec.rank) + spec.padding, mode="edge")
    stride = (1,) * spec.rank if padding == "same" else spec.stride
    d, rest = f"{spec.rank}d", conv_keywords(spec) | {"padding": padding, "stride": stride}
    answer = ask_torch(torch, getattr(torch.nn.functional, f"conv{d}"), (x, w), "integers", seed, **rest)
    check(getattr(fc, f"conv{d}"), answer.y, x, w, **rest)
    check(getattr(grad, f"conv{d}_input"), answer.grads[0], x.shape, w, answer.dy, **rest)
    check(getattr(grad, f"conv{d}_weight"), answer.grads[1], x, w.shape, answer.dy, **rest)


@pytest.mark.oracle
@often("torch", 60)
@given(spec=conv_specs(dtypes=("float16", "bfloat16", "int16", "int32", "int64"), least_batch=1), seed=seeds)
def test_torch_agrees_on_other_types(torch: Any, spec: ConvSpec, seed: int) -> None:
    """Halves keep their type; whole numbers give 64 bits where torch wraps (docs: semantics), so it gets 64."""
    x, w = testing.operands(spec, Op.CONV, "integers", seed)
    wide = "int64" if x.dtype.kind == "i" else spec.dtype
    tensors = [to_torch(torch, array.astype(testing.numpy_dtype(wide))) for array in (x, w)]
    rest = conv_keywords(spec)
    y = getattr(torch.nn.functional, f"conv{spec.rank}d")(*tensors, **rest)
    check(getattr(fc, f"conv{spec.rank}d"), from_torch(torch, y), x, w, **rest)


@pytest.mark.oracle
@often("torch", 150)
@given(spec=conv_specs(), kind=kinds, seed=seeds, biased=st.booleans(), batched=st.booleans(), data=st.data())
def test_torch_agrees_on_transposed_convolution(
    torch: Any, spec: ConvSpec, kind: str, seed: int, biased: bool, batched: bool, data: Any
) -> None:
    x, w = testing.operands(spec, Op.CONV_INPUT_GRAD, kind, seed)
    extra = tuple(
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(spec.stride, spec.dilation, strict=True)
    )
    rest = conv_keywords(spec) | {"output_padding": extra}
    x = x if batched or not spec.batch else x[0]
    arrays = (x, w, numbers(spec.in_channels, kind, seed, spec.dtype)) if biased else (x, w)
    d = f"{spec.rank}d"
    if (
        min(transposed_size(spec, extra)) < 1
    ):  # documented: torch makes an image without pixels where the batch is empty
        with pytest.raises(ValueError, match="output of size"):
            getattr(fc, f"conv_transpose{d}")(*arrays, **rest)
        return
    answer = ask_torch(torch, getattr(torch.nn.functional, f"conv_transpose{d}"), arrays, kind, seed, **rest)
    check(getattr(fc, f"conv_transpose{d}"), answer.y, *arrays, **rest)
    check(getattr(grad, f"conv_transpose{d}_input"), answer.grads[0], x.shape, w, answer.dy, **rest)
    check(getattr(grad, f"conv_transpose{d}_weight"), answer.grads[1], x, w.shape, answer.dy, **rest)
    if biased and x.ndim == spec.rank + 2:
        check_bias_gradient(spec, answer.dy, answer.grads[2])


def transposed_size(spec: ConvSpec, extra: tuple[int, ...]) -> list[int]:
    """What comes out of the transposed convolution of `spec`: less than 1 where the padding eats it all."""
    axes = zip(spec.out_size, spec.stride, spec.padding, spec.kernel_extent, extra, strict=True)
    return [(n - 1) * s - sum(pads) + extent + more for n, s, pads, extent, more in axes]


def with_specials(x: Any, seed: int) -> Any:
    """NaN in some inputs, -inf in others."""
    rng = np.random.default_rng(seed)
    if seed % 5 == 0:
        x[rng.random(x.shape) < 0.2] = np.nan
    if seed % 7 == 0:
        x[rng.random(x.shape) < 0.3] = -np.inf
    return x


@pytest.mark.oracle
@often("torch", 200)
@given(spec=pool_specs("max"), kind=kinds, seed=seeds)
def test_torch_agrees_on_max_pooling(torch: Any, spec: PoolSpec, kind: str, seed: int) -> None:
    """Maxima, their places, and the gradient, found anew and from the places; ties, NaN and -inf included."""
    x = with_specials(testing.operands(spec, Op.POOL, kind, seed)[0], seed)
    name, rest = f"max_pool{spec.rank}d", pool_keywords(spec, "padding", "dilation")
    answer = ask_torch(
        torch, getattr(torch.nn.functional, name), (x,), "integers", seed, return_indices=True, **rest
    )
    check(getattr(fc, name), answer.y, x, return_indices=True, **rest)
    check(getattr(fc, name), answer.y[0], x, **rest)
    check(getattr(grad, name), answer.grads[0], answer.dy, x, **rest)
    check(getattr(grad, name), answer.grads[0], answer.dy, x, indices=answer.y[1], **rest)


@pytest.mark.oracle
@often("torch", 40)
@given(spec=pool_specs("max", dtypes=("float16", "bfloat16", "uint8", "int8", "int64")), seed=seeds)
def test_torch_agrees_on_max_pooling_of_other_types(torch: Any, spec: PoolSpec, seed: int) -> None:
    (x,) = testing.operands(spec, Op.POOL, "integers", seed)
    name, rest = f"max_pool{spec.rank}d", pool_keywords(spec, "padding", "dilation", "return_indices")
    if spec.dtype in ("uint8", "int8", "int64") and spec.rank != 2:
        tensor = torch.from_numpy(x.astype("float64"))  # torch pools whole numbers in two dimensions only
    else:
        tensor = to_torch(torch, x)
    values, indices = getattr(torch.nn.functional, name)(tensor, **rest)
    check(getattr(fc, name), (from_torch(torch, values).astype(x.dtype), indices.numpy()), x, **rest)


@pytest.mark.oracle
@often("torch", 150)
@given(spec=pool_specs("avg"), kind=kinds, seed=seeds)
def test_torch_agrees_on_average_pooling(torch: Any, spec: PoolSpec, kind: str, seed: int) -> None:
    (x,) = testing.operands(spec, Op.POOL, kind, seed)
    extra = ("padding", "count_include_pad", *(["divisor_override"] if spec.rank > 1 else []))
    name, rest = f"avg_pool{spec.rank}d", pool_keywords(spec, *extra)
    answer = ask_torch(torch, getattr(torch.nn.functional, name), (x,), kind, seed, **rest)
    check(getattr(fc, name), answer.y, x, **rest)
    check(getattr(grad, name), answer.grads[0], answer.dy, x, **rest)


@pytest.mark.oracle
@often("torch", 80)
@given(spec=pool_specs("lp", padded=False), seed=seeds, signed=st.booleans())
def test_torch_agrees_on_lp_pooling(torch: Any, spec: PoolSpec, seed: int, signed: bool) -> None:
    """Documented: torch leaves the absolute value out, so it is given it, and the sign's slope follows."""
    shape, p = spec.input_shape, spec.norm_type
    x = np.random.default_rng(seed).uniform(0.5, 2, shape).astype(spec.dtype)
    if signed:
        x *= np.where(np.random.default_rng(seed + 1).random(shape) < 0.5, -1, 1).astype(spec.dtype)
    name, rest = f"lp_pool{spec.rank}d", pool_keywords(spec)
    theirs = dict(rest)
    if spec.rank == 1:  # torch takes ints alone here
        theirs |= {"kernel_size": spec.kernel_size[0], "stride": spec.stride[0]}
    answer = ask_torch(
        torch,
        lambda v: getattr(torch.nn.functional, name)(v.abs(), p, **theirs),
        (x,),
        "normal",
        seed,
    )
    check(getattr(fc, name), answer.y, x, p, **rest)
    check(getattr(grad, name), answer.grads[0], answer.dy, x, p, **rest)


@pytest.mark.oracle
@often("torch", 100)
@given(rank=st.sampled_from((1, 2, 3)), kind=kinds, seed=seeds, batched=st.booleans(), data=st.data())
def test_torch_agrees_on_adaptive_pooling(
    torch: Any, rank: int, kind: str, seed: int, batched: bool, data: Any
) -> None:
    shape = (*([2] if batched else []), 2, *per_axis(data.draw, rank, 1, (9, 7, 4)[rank - 1]))
    wanted = per_axis(data.draw, rank, 1, 5 if rank < 3 else 3)
    # None keeps an axis; torch takes it in two and three dimensions.
    kept = data.draw(st.integers(0, rank)) if rank > 1 else rank
    size: Any = tuple(None if axis == kept else n for axis, n in enumerate(wanted))
    size = wanted[0] if data.draw(st.booleans()) else size
    x = numbers(shape, kind, seed)
    average, maximum = f"adaptive_avg_pool{rank}d", f"adaptive_max_pool{rank}d"
    functional = torch.nn.functional
    answer = ask_torch(torch, getattr(functional, average), (x,), kind, seed, output_size=size)
    check(getattr(fc, average), answer.y, x, size)
    check(getattr(grad, average), answer.grads[0], answer.dy, x, size)
    answer = ask_torch(
        torch, getattr(functional, maximum), (x,), "integers", seed, output_size=size, return_indices=True
    )
    check(getattr(fc, maximum), answer.y, x, size, return_indices=True)
    check(getattr(grad, maximum), answer.grads[0], answer.dy, x, size)
    check(getattr(grad, maximum), answer.grads[0], answer.dy, x, size, indices=answer.y[1])


@pytest.mark.oracle
@often("torch", 80)
@given(spec=pool_specs("max"), seed=seeds, data=st.data())
def test_torch_agrees_on_unpooling(torch: Any, spec: PoolSpec, seed: int, data: Any) -> None:
    """Places of a real pool, each used once: where several point to one element, torch leaves open who stays."""
    name = f"max_unpool{spec.rank}d"
    usual = [
        (n - 1) * s - 2 * before + k
        for n, s, (before, _), k in zip(
            spec.out_size, spec.stride, spec.padding, spec.kernel_size, strict=True
        )
    ]
    size = tuple(
        max(n + data.draw(st.integers(1 - s, s - 1)), 1) for n, s in zip(usual, spec.stride, strict=True)
    )
    assume(math.prod(size) >= math.prod(spec.out_size) and min(usual) >= 1)
    rng = np.random.default_rng(seed)
    planes = [
        rng.permutation(math.prod(size))[: math.prod(spec.out_size)]
        for _ in range(spec.batch * spec.channels)
    ]
    indices = np.stack(planes).reshape(spec.output_shape)
    y = numbers(spec.output_shape, "normal", seed, spec.dtype)
    rest = {
        "kernel_size": spec.kernel_size, "stride": spec.stride, "padding": tuple(p for p, _ in spec.padding),
        "output_size": size,
    }  # fmt: skip
    answer = ask_torch(
        torch,
        lambda v: getattr(torch.nn.functional, name)(v, torch.from_numpy(indices), **rest),
        (y,),
        "normal",
        seed,
    )
    check(getattr(fc, name), answer.y, y, indices, **rest)
    check(getattr(grad, name), answer.grads[0], answer.dy, indices)


@pytest.mark.oracle
@often("torch", 80)
@given(spec=conv_specs(ranks=(2,), least_batch=1), kind=kinds, seed=seeds, batched=st.booleans())
def test_torch_agrees_on_unfold_and_fold(
    torch: Any, spec: ConvSpec, kind: str, seed: int, batched: bool
) -> None:
    (x,) = testing.operands(spec, Op.UNFOLD, kind, seed)
    x = x if batched else x[0]
    rest = {name: conv_keywords(spec)[name] for name in ("dilation", "padding", "stride")}
    functional, kernel = torch.nn.functional, spec.kernel_size
    unfolded = ask_torch(torch, functional.unfold, (x,), kind, seed, kernel_size=kernel, **rest)
    check(fc.unfold, unfolded.y, x, kernel, **rest)
    check(grad.unfold, unfolded.grads[0], unfolded.dy, spec.in_size, kernel, **rest)
    folded = ask_torch(
        torch,
        functional.fold,
        (unfolded.y,),
        kind,
        seed,
        output_size=spec.in_size,
        kernel_size=kernel,
        **rest,
    )
    check(fc.fold, folded.y, unfolded.y, spec.in_size, kernel, **rest)
    check(grad.fold, folded.grads[0], folded.dy, kernel, **rest)


# ---------------------------------------------------------------------------- refusals

# Where the two part, in the words of the one that refuses; each is in docs/semantics.md or a choice of fastconv's.
ONLY_TORCH_REFUSES = (
    "padding='same' is not supported for strided convolutions",
    "half of kernel size",  # torch counts the kernel without its dilation
    "half of effective kernel size",
    "smaller than kernel size",  # its 3-D pools do not count the padding
    "output_size' must be tuple of ints",  # None keeps an axis, in one dimension too
    r"output_size' \(position 2\) must be tuple of ints",
    "must be Tensor, not tuple",  # its lp_pool1d takes an int alone
    "expected kernel_size equals to 2",  # its unfold has two axes
)
UNKNOWN = re.compile("has no algorithm for")

ONLY_FASTCONV_REFUSES = (
    r"with 1 entries",  # one entry for several axes, which torch repeats
    r"padding: got .* leaves a window without any input element",
    r"divisor_override: got (0|-\d+), expected at least 1",  # torch refuses 0 alone
    r"(in_size: got|input: got spatial size) .* at least 1",  # images without pixels, and bins of nothing
    r"output_size: got 0, expected at least 1",
    r"padding: got .* leaves an output of size .*\b0\b.*",  # torch makes an image without pixels
    r"input: got shape .* axes, expected",  # torch's adaptive average takes one axis more, if of length 1
    r"(stride|padding): got .* with \d entries",  # torch's unpool reads the first entries
    r"padding: got -\d, expected at least 0",  # torch's unpool takes less than no padding
    r"(kernel_size|stride): got (0|-\d+), expected at least 1",  # and windows of no size, or that do not move
)
# Where nothing is to be computed, torch checks less: the batch is empty.
NOTHING_TO_DO = (r"dilation: got 0", r"output_padding: got")

ERRORS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)


class Called(NamedTuple):
    """One call, sensible or not."""

    name: str
    arrays: tuple[Any, ...]
    keywords: Keywords


@st.composite
def calls(draw: Any) -> Called:
    """A call of any function, in which every argument is wrong now and then."""
    rank = draw(st.sampled_from((1, 2, 3)))

    def rarely() -> bool:
        return bool(draw(st.integers(0, 24)) == 24)

    def entry(low: int, high: int, axes: int = rank) -> Any:
        """An int or one for each axis, with an entry too small or one too many now and then."""
        low = low - 1 - rarely() if rarely() else low
        if draw(st.booleans()):
            return draw(st.integers(low, high))
        return per_axis(draw, axes + rarely(), low, high)

    def array(shape: tuple[int, ...]) -> Any:
        return numbers(shape, "integers", draw(seeds))

    family = draw(
        st.sampled_from(
            ("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool",
             "max_unpool", "unfold", "fold")
        )
    )  # fmt: skip
    rank = 2 if family in ("unfold", "fold") else rank
    groups = draw(st.sampled_from((1, 1, 2)))
    channels = groups * draw(st.integers(1, 2)) + rarely()
    batch = draw(st.sampled_from(((), (1,), (2,), (2,), (0,))))
    size = tuple(draw(st.integers(0 if rarely() else 1, 6)) for _ in range(rank))
    x = array((*batch, *([1] if rarely() else []), channels, *size))
    arrays: tuple[Any, ...] = (x,)
    keywords: Keywords
    name = family if family in ("unfold", "fold") else f"{family}{rank}d"
    match family:
        case "conv" | "conv_transpose":
            transposed = family == "conv_transpose"
            kernel = per_axis(draw, rank + rarely(), 1, 3)
            outs = groups * draw(st.integers(1, 2)) + rarely()
            w = array(
                (channels + rarely(), outs // groups, *kernel)
                if transposed
                else (outs, max(channels // groups, 1) + rarely(), *kernel)
            )
            bias_size = (outs // groups * groups if transposed else outs) + rarely()
            arrays = (x, w, array((bias_size,))) if draw(st.booleans()) else (x, w)
            keywords = {
                "stride": entry(1, 3), "dilation": entry(1, 2), "padding": entry(0, 2),
                "groups": draw(st.integers(-1, 3)) if rarely() else groups,
            }  # fmt: skip
            if transposed:
                keywords["output_padding"] = entry(0, 2) if draw(st.booleans()) else 0
            elif rarely():
                keywords["padding"] = draw(st.sampled_from(("same", "valid", "full")))
        case "max_pool" | "avg_pool" | "lp_pool":
            keywords = {
                "kernel_size": entry(1, 3),
                "stride": entry(1, 3) if draw(st.booleans()) else None,
                "ceil_mode": draw(st.booleans()),
            }
            if family == "lp_pool":
                arrays, keywords["norm_type"] = (np.abs(x) + 1,), 2.0
            else:
                keywords["padding"] = entry(0, 2)
            if family == "max_pool":
                keywords |= {"dilation": entry(1, 2), "return_indices": True}
            if family == "avg_pool":
                keywords["count_include_pad"] = draw(st.booleans())
                if rank > 1:
                    keywords["divisor_override"] = draw(st.sampled_from((None, None, 3, 0, -1)))
        case "adaptive_max_pool" | "adaptive_avg_pool":
            keywords = {"output_size": entry(1, 4)}
        case "max_unpool":
            places = np.tile(
                np.arange(math.prod(x.shape[-rank:])).reshape(x.shape[-rank:]),
                (*x.shape[:-rank], *(1,) * rank),
            )
            arrays = (x, places + (draw(st.integers(-2, 9)) if rarely() else 0))
            keywords = {"kernel_size": entry(1, 2), "stride": entry(1, 3) if draw(st.booleans()) else None}
            if draw(st.booleans()):
                keywords["padding"] = entry(0, 1)
            if draw(st.booleans()):
                keywords["output_size"] = per_axis(draw, rank, 1, 12)
        case "unfold":
            keywords = {
                "kernel_size": entry(1, 3),
                "dilation": entry(1, 2),
                "padding": entry(0, 2),
                "stride": entry(1, 3),
            }
        case _:
            kernel, stride, padding = (
                per_axis(draw, 2, 1, 3),
                per_axis(draw, 2, 1, 2),
                per_axis(draw, 2, 0, 1),
            )
            counts = [
                max((n + 2 * p - k) // s + 1, 0)
                for n, p, k, s in zip(size, padding, kernel, stride, strict=True)
            ]
            rows = channels * math.prod(kernel) + rarely()
            arrays = (array((*batch, rows, math.prod(counts) + rarely())),)
            keywords = {"output_size": size, "kernel_size": kernel, "stride": stride, "padding": padding}
    return Called(name, arrays, keywords)


def parted_ways(words: tuple[str, ...], error: Exception | None) -> bool:
    return error is not None and any(re.search(pattern, str(error)) for pattern in words)


def refusal_of(function: Callable[..., Any], *args: Any, **keywords: Any) -> Exception | None:
    try:
        function(*args, **keywords)
    except (ValueError, TypeError) as error:
        return error
    return None


@pytest.mark.oracle
@often("torch", 500)
@given(call=calls())
def test_torch_refuses_what_fastconv_refuses(torch: Any, call: Called) -> None:
    """And what neither refuses has the same values; what fastconv refuses, it names."""
    name, arrays, keywords = call
    theirs: Any = None
    refusal: Exception | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = getattr(torch.nn.functional, name)(*map(torch.from_numpy, arrays), **keywords)
    except ERRORS as error:
        refusal = error
    kept = [array.copy() for array in arrays]
    refusals = [refusal_of(getattr(fc, name), *arrays, backend=backend, **keywords) for backend in BACKENDS]
    # A backend that does not know the op yet has nothing to say about the call.
    refusals = [ours for ours in refusals if not (ours and UNKNOWN.search(str(ours)))]
    for ours in refusals:
        if ours is None:
            assert refusal is None or parted_ways(ONLY_TORCH_REFUSES, refusal), refusal
        else:
            # Geometry without a meaning is told in the words of the spec.
            named = {"input", "weight", "bias", "indices", "in_size", "kernel_size", "in_channels", *keywords}
            assert str(ours).partition(":")[0] in named, ours
            empty = 0 in arrays[0].shape[:1] and parted_ways(NOTHING_TO_DO, ours)
            assert refusal or empty or parted_ways(ONLY_FASTCONV_REFUSES, ours), ours
    if refusal is None and not any(refusals):
        parts = tuple(part.numpy() for part in (theirs if isinstance(theirs, tuple) else (theirs,)))
        check(getattr(fc, name), parts if len(parts) > 1 else parts[0], *arrays, **keywords)
    for array, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


# ---------------------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def onnx() -> Any:
    return pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")


def ask_onnx(onnx: Any, operator: str, *arrays: Any, outputs: int = 1, **attributes: Any) -> Any:
    """One operator of ONNX's own reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    given_names = [f"i{number}" for number in range(len(arrays))]
    made_names = [f"o{number}" for number in range(outputs)]
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()}
    node = onnx.helper.make_node(operator, given_names, made_names, **listed)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(given_names, arrays, strict=True)
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in made_names],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    result = ReferenceEvaluator(model).run(None, dict(zip(given_names, arrays, strict=True)))
    return tuple(result) if outputs > 1 else result[0]


def onnx_pads(spec: ConvSpec | PoolSpec) -> tuple[int, ...]:
    """First what comes before each axis, then what comes after."""
    return (*(before for before, _ in spec.padding), *(after for _, after in spec.padding))


def onnx_geometry(spec: ConvSpec | PoolSpec) -> Keywords:
    return {"kernel_shape": spec.kernel_size, "strides": spec.stride, "dilations": spec.dilation}


@pytest.mark.oracle
@often("onnx", 100)
@given(spec=conv_specs(asymmetric=True, least_batch=1), kind=kinds, seed=seeds, biased=st.booleans())
def test_onnx_agrees_on_convolution(onnx: Any, spec: ConvSpec, kind: str, seed: int, biased: bool) -> None:
    x, w = testing.operands(spec, Op.CONV, kind, seed)
    arrays = (x, w, numbers(spec.out_channels, kind, seed, spec.dtype)) if biased else (x, w)
    expected = ask_onnx(onnx, "Conv", *arrays, group=spec.groups, pads=onnx_pads(spec), **onnx_geometry(spec))
    check(getattr(fc, f"conv{spec.rank}d"), expected, *arrays, **conv_keywords(spec))


@pytest.mark.oracle
@often("onnx", 80)
@given(spec=conv_specs(ranks=(1, 2), least_batch=1), seed=seeds, lower=st.booleans())
def test_onnx_agrees_on_same_padding(onnx: Any, spec: ConvSpec, seed: int, lower: bool) -> None:
    x, w = testing.operands(spec, Op.CONV, "integers", seed)
    rest = conv_keywords(spec) | {"padding": "same_lower" if lower else "same"}
    expected = ask_onnx(
        onnx,
        "Conv",
        x,
        w,
        group=spec.groups,
        auto_pad="SAME_LOWER" if lower else "SAME_UPPER",
        **onnx_geometry(spec),
    )
    check(getattr(fc, f"conv{spec.rank}d"), expected, x, w, **rest)


@pytest.mark.oracle
@often("onnx", 80)
@given(spec=conv_specs(asymmetric=True, least_batch=1), kind=kinds, seed=seeds, data=st.data())
def test_onnx_agrees_on_transposed_convolution(
    onnx: Any, spec: ConvSpec, kind: str, seed: int, data: Any
) -> None:
    """Without groups: the evaluator cuts the weight by output channels, where its first axis is the input's."""
    spec = replace(spec, groups=1)
    x, w = testing.operands(spec, Op.CONV_INPUT_GRAD, kind, seed)
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in spec.stride)
    assume(min(transposed_size(spec, extra)) >= 1)
    expected = ask_onnx(
        onnx,
        "ConvTranspose",
        x,
        w,
        pads=onnx_pads(spec),
        output_padding=extra,
        **onnx_geometry(spec),
    )
    function = getattr(fc, f"conv_transpose{spec.rank}d")
    check(function, expected, x, w, **conv_keywords(spec) | {"output_padding": extra})


@pytest.mark.oracle
@often("onnx", 30)
@given(
    spec=conv_specs(ranks=(1, 2), dtypes=("int8", "uint8"), asymmetric=True, least_batch=1),
    seed=seeds,
    mixed=st.booleans(),
)
def test_onnx_agrees_on_integers(onnx: Any, spec: ConvSpec, seed: int, mixed: bool) -> None:
    """Both types of byte, mixed too, from end to end of their range."""
    rng = np.random.default_rng(seed)
    other = {"int8": "uint8", "uint8": "int8"}[spec.dtype] if mixed else spec.dtype
    x, w = (
        rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
        for dtype, shape in ((spec.dtype, spec.input_shape), (other, spec.weight_shape))
    )
    expected = ask_onnx(
        onnx, "ConvInteger", x, w, group=spec.groups, pads=onnx_pads(spec), **onnx_geometry(spec)
    )
    check(getattr(fc, f"conv{spec.rank}d"), expected, x, w, **conv_keywords(spec))


@pytest.mark.oracle
@often("onnx", 80)
@given(spec=pool_specs("max", dtypes=("float32",), asymmetric=True), kind=kinds, seed=seeds)
def test_onnx_agrees_on_max_pooling(onnx: Any, spec: PoolSpec, kind: str, seed: int) -> None:
    """Indices too, which ONNX counts through batch and channels (docs: semantics).

    Where stride and dilation are all 1 the evaluator takes another path, which places maxima wrongly, reads 2-D pads
    in another order than ONNX, and 1-D and 3-D ones not at all.
    """
    assume(max((*spec.stride, *spec.dilation)) > 1)
    (x,) = testing.operands(spec, Op.POOL, kind, seed)
    values, indices = ask_onnx(
        onnx,
        "MaxPool",
        x,
        outputs=2,
        pads=onnx_pads(spec),
        ceil_mode=int(spec.ceil_mode),
        **onnx_geometry(spec),
    )
    per_plane = indices % math.prod(spec.in_size)
    rest = pool_keywords(spec, "padding", "dilation", "return_indices")
    check(getattr(fc, f"max_pool{spec.rank}d"), (values, per_plane), x, **rest)


@pytest.mark.oracle
@often("onnx", 80)
@given(spec=pool_specs("avg", dtypes=("float32",), asymmetric=True), kind=kinds, seed=seeds)
def test_onnx_agrees_on_average_pooling(onnx: Any, spec: PoolSpec, kind: str, seed: int) -> None:
    """Without ceil mode: the evaluator moves every window then, and averages other elements."""
    spec = replace(spec, ceil_mode=False, divisor_override=0)
    (x,) = testing.operands(spec, Op.POOL, kind, seed)
    expected = ask_onnx(
        onnx, "AveragePool", x, pads=onnx_pads(spec), count_include_pad=int(spec.count_include_pad),
        kernel_shape=spec.kernel_size, strides=spec.stride,
    )  # fmt: skip
    rest = pool_keywords(spec, "padding", "count_include_pad")
    check(getattr(fc, f"avg_pool{spec.rank}d"), expected, x, **rest)


@pytest.mark.oracle
@often("onnx", 40)
@given(spec=pool_specs("lp", dtypes=("float32",), padded=False), kind=kinds, seed=seeds, p=st.integers(1, 4))
def test_onnx_agrees_on_lp_pooling(onnx: Any, spec: PoolSpec, kind: str, seed: int, p: int) -> None:
    """With the absolute value; without ceil mode, where ONNX does not scale (docs: semantics)."""
    (x,) = testing.operands(spec, Op.POOL, kind, seed)
    expected = ask_onnx(onnx, "LpPool", x, p=p, kernel_shape=spec.kernel_size, strides=spec.stride)
    rest = pool_keywords(spec) | {"ceil_mode": False}
    check(getattr(fc, f"lp_pool{spec.rank}d"), expected, x, p, **rest)


@pytest.mark.oracle
@often("onnx", 30)
@given(spec=conv_specs(asymmetric=True, least_batch=1), kind=kinds, seed=seeds)
def test_onnx_agrees_on_fold(onnx: Any, spec: ConvSpec, kind: str, seed: int) -> None:
    (columns,) = testing.operands(spec, Op.FOLD, kind, seed)
    expected = ask_onnx(
        onnx, "Col2Im", columns, np.array(spec.in_size), np.array(spec.kernel_size), pads=onnx_pads(spec), strides=spec.stride,
        dilations=spec.dilation,
    )  # fmt: skip
    rest = {name: conv_keywords(spec)[name] for name in ("dilation", "padding", "stride")}
    check(fc.fold, expected, columns, spec.in_size, spec.kernel_size, **rest)


def test_enough_is_asked() -> None:
    """More than 1,000 problems a run without any library but SciPy."""
    assert ASKED["scipy"] >= 1000
