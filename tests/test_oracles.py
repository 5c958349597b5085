"""Independent answers: SciPy, torch and ONNX's reference evaluator agree on problems hypothesis makes.

More than 1,000 problems a run (``--hypothesis-profile nightly`` makes ten times as many), whole-numbered operands compared
exactly and random ones within the derived tolerance; values, shapes, types, indices, and refusals alike.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import grad, testing
from fastconv.backends import backends, owner
from fastconv.plan import plan
from fastconv.spec import ConvSpec, Op, PoolSpec

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
NUMPY_MODES = {
    "zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap", "symmetric": "symmetric",
}  # fmt: skip

quietly = settings(deadline=None, suppress_health_check=list(HealthCheck))


def often(examples: int) -> settings:
    """So many examples in the default run, ten times as many with ``--hypothesis-profile nightly``."""
    scale = settings.default.max_examples // 100 if settings.default else 1
    return settings(quietly, max_examples=examples * scale)


@st.composite
def conv_specs(
    draw: Any, ranks: tuple[int, ...] = (1, 2, 3), modes: tuple[str, ...] = ("zeros",)
) -> ConvSpec:
    """Small convolutions with every option."""
    rank = draw(st.sampled_from(ranks))
    axes = {"min_size": rank, "max_size": rank}
    kernel = tuple(draw(st.lists(st.integers(1, 3 if rank > 1 else 5), **axes)))
    dilation = tuple(draw(st.lists(st.integers(1, 2), **axes)))
    padding = tuple((p, p) for p in draw(st.lists(st.integers(0, 2), **axes)))
    extra = draw(st.lists(st.integers(0, 4), **axes))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(
        max(e - 2 * p[0], 3 if modes != ("zeros",) else 1) + x
        for e, p, x in zip(extent, padding, extra, strict=True)
    )
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    return ConvSpec(
        batch=draw(st.integers(0, 2)),
        in_channels=groups * draw(st.integers(1, 2)),
        out_channels=groups * draw(st.integers(1, 3)),
        in_size=size,
        kernel_size=kernel,
        stride=tuple(draw(st.lists(st.integers(1, 3), **axes))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=draw(st.sampled_from(modes)),
        dtype=draw(st.sampled_from(("float32", "float64"))),
    )


def arrays_for(spec: Any, op: Op, kind: str, seed: int) -> tuple[Any, ...]:
    return testing.operands(spec, op, kind, seed)


def agree(result: Any, expected: Any, allowed: float) -> None:
    _, detail = testing.compare(result, np.asarray(expected), allowed)
    assert not detail, detail


# What torch refuses and fastconv computes (docs: semantics): padding up to half of what a *dilated* kernel spans,
# and 3-D pools whose kernel is larger than the input but not than the padded input.
ONLY_TORCH_REFUSES = ("half of kernel size", "half of effective kernel size", "smaller than kernel size")


def refused_alike(error: Exception, call: Any) -> None:
    """Torch refused with `error`: fastconv must refuse too, unless it is documented to go further."""
    if any(words in str(error) for words in ONLY_TORCH_REFUSES):
        with contextlib.suppress(ValueError):
            call()
    else:
        with pytest.raises(ValueError, match=r"kernel_size|padding"):
            call()


kinds = st.sampled_from(("integers", "normal"))
seeds = st.integers(0, 2**16)
names = st.sampled_from(BACKENDS)


# ---------------------------------------------------------------------------- SciPy


def scipy_conv(spec: ConvSpec, x: Any, w: Any) -> Any:
    """The convolution by scipy.signal.correlate, one pair of channels at a time."""
    from scipy.signal import correlate

    x = np.pad(x, ((0, 0), (0, 0), *spec.padding), mode=NUMPY_MODES[spec.padding_mode])  # type: ignore[call-overload]
    spread = np.zeros((*w.shape[:2], *spec.kernel_extent), w.dtype)
    taps: tuple[Any, ...] = tuple(slice(None, None, d) for d in spec.dilation)
    spread[(..., *taps)] = w
    y = np.zeros(spec.output_shape, x.dtype)
    share, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for n in range(spec.batch):
        for o in range(spec.out_channels):
            for c in range(share):
                full = correlate(x[n, o // outs * share + c], spread[o, c], "valid", method="direct")
                y[n, o] += full[tuple(slice(None, None, s) for s in spec.stride)]
    return y


@often(400)
@given(spec=conv_specs(modes=tuple(NUMPY_MODES)), kind=kinds, seed=seeds, name=names)
def test_scipy_agrees_on_convolution(spec: ConvSpec, kind: str, seed: int, name: str) -> None:
    x, w = arrays_for(spec, Op.CONV, kind, seed)
    made = plan(spec, Op.CONV, name)
    result = getattr(fc, f"conv{spec.rank}d")(
        x, w, stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups,
        padding_mode=spec.padding_mode, backend=name,
    )  # fmt: skip
    assert result.dtype == x.dtype
    agree(result, scipy_conv(spec, x, w), 2 * testing.tolerance(made, (x, w)))


# ---------------------------------------------------------------------------- torch


def torch_module() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")


@often(400)
@given(spec=conv_specs(), kind=kinds, seed=seeds, name=names)
def test_torch_agrees_on_convolution_and_its_gradients(
    spec: ConvSpec, kind: str, seed: int, name: str
) -> None:
    torch = torch_module()
    x, w = arrays_for(spec, Op.CONV, kind, seed)
    (dy, _) = arrays_for(spec, Op.CONV_INPUT_GRAD, kind, seed)
    bias = (
        testing.operands(replace(spec, batch=1), Op.CONV, kind, seed)[1][:, 0]
        .reshape(spec.out_channels, -1)[:, 0]
        .copy()
    )
    d = f"{spec.rank}d"
    padding = tuple(before for before, _ in spec.padding)
    rest = {"stride": spec.stride, "padding": padding, "dilation": spec.dilation, "groups": spec.groups}
    tx, tw, tb = (torch.from_numpy(a).requires_grad_() for a in (x, w, bias))
    ty = getattr(torch.nn.functional, f"conv{d}")(tx, tw, tb, **rest)
    ty.backward(torch.from_numpy(dy))
    with fc.use_backend(name):
        y = getattr(fc, f"conv{d}")(x, w, bias, **rest)
        dx = getattr(grad, f"conv{d}_input")(x.shape, w, dy, **rest)
        dw = getattr(grad, f"conv{d}_weight")(x, w.shape, dy, **rest)
        db = getattr(grad, f"conv{d}_bias")(dy)
    for op, result, expected, used in (
        (Op.CONV, y, ty, (x, w)), (Op.CONV_INPUT_GRAD, dx, tx.grad, (dy, w)), (Op.CONV_WEIGHT_GRAD, dw, tw.grad, (x, dy)),
    ):  # fmt: skip
        allowed = 2 * testing.tolerance(plan(spec, op, name), used, bias if op is Op.CONV else None)
        assert result.dtype == expected.detach().numpy().dtype
        agree(result, expected.detach().numpy(), allowed)
    ones = replace(
        spec,
        in_channels=spec.groups,
        kernel_size=(1,) * spec.rank,
        padding=(),
        stride=(),
        dilation=(),
        in_size=spec.out_size,
    )
    agree(
        db,
        tb.grad.numpy(),
        2
        * testing.tolerance(plan(ones, Op.CONV_WEIGHT_GRAD, name), (np.ones_like(dy[:, : spec.groups]), dy)),
    )


@often(150)
@given(spec=conv_specs(), kind=kinds, seed=seeds, name=names, data=st.data())
def test_torch_agrees_on_transposed_convolution(
    spec: ConvSpec, kind: str, seed: int, name: str, data: Any
) -> None:
    torch = torch_module()
    x, w = arrays_for(spec, Op.CONV_INPUT_GRAD, kind, seed)
    extra = tuple(
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(spec.stride, spec.dilation, strict=True)
    )
    rest = {
        "stride": spec.stride, "padding": tuple(p for p, _ in spec.padding), "output_padding": extra,
        "groups": spec.groups, "dilation": spec.dilation,
    }  # fmt: skip
    function = f"conv_transpose{spec.rank}d"
    try:
        expected = getattr(torch.nn.functional, function)(
            torch.from_numpy(x), torch.from_numpy(w), **rest
        ).numpy()
    except RuntimeError as error:
        refused_alike(error, lambda: getattr(fc, function)(x, w, backend=name, **rest))
        return
    if 0 in expected.shape[2:]:  # documented: torch makes an image without pixels where the batch is empty
        with pytest.raises(ValueError, match="output of size"):
            getattr(fc, function)(x, w, backend=name, **rest)
        return
    result = getattr(fc, function)(x, w, backend=name, **rest)
    assert result.dtype == expected.dtype
    agree(result, expected, 2 * testing.tolerance(plan(spec, Op.CONV_INPUT_GRAD, name), (x, w)))


@st.composite
def pool_arguments(draw: Any) -> dict[str, Any]:
    rank = draw(st.sampled_from((1, 2, 3)))
    axes = {"min_size": rank, "max_size": rank}
    return {
        "rank": rank,
        "size": tuple(draw(st.lists(st.integers(1, 8 if rank < 3 else 5), **axes))),
        "kernel_size": tuple(draw(st.lists(st.integers(1, 4), **axes))),
        "stride": tuple(draw(st.lists(st.integers(1, 4), **axes))),
        "padding": tuple(draw(st.lists(st.integers(0, 2), **axes))),
        "dilation": tuple(draw(st.lists(st.integers(1, 2), **axes))),
        "ceil_mode": draw(st.booleans()),
        "batch": draw(st.integers(1, 2)),
    }


def pool_input(arguments: dict[str, Any], kind: str, seed: int, dtype: str = "float64") -> Any:
    rng = np.random.default_rng(seed)
    shape = (arguments["batch"], 2, *arguments["size"])
    values = rng.integers(-3, 4, shape) if kind == "integers" else rng.standard_normal(shape)
    x = values.astype(dtype)
    if seed % 5 == 0:
        x[rng.random(shape) < 0.2] = np.nan
    if seed % 7 == 0:
        x[rng.random(shape) < 0.3] = -np.inf
    return x


@often(200)
@given(arguments=pool_arguments(), kind=kinds, seed=seeds, name=names)
def test_torch_agrees_on_max_pooling(arguments: dict[str, Any], kind: str, seed: int, name: str) -> None:
    torch = torch_module()
    x = pool_input(arguments, kind, seed)
    rest = {key: arguments[key] for key in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
    function = f"max_pool{arguments['rank']}d"
    tx = torch.from_numpy(x).requires_grad_()
    try:
        values, indices = getattr(torch.nn.functional, function)(tx, return_indices=True, **rest)
    except RuntimeError as error:
        refused_alike(error, lambda: getattr(fc, function)(x, backend=name, **rest))
        return
    if values.shape and any(
        d > 1 and p >= n
        for d, p, n in zip(arguments["dilation"], arguments["padding"], arguments["size"], strict=True)
    ):  # documented: windows that may see only padding can be refused
        with contextlib.suppress(ValueError):
            getattr(fc, function)(x, backend=name, **rest)
        return
    ours = getattr(fc, function)(x, return_indices=True, backend=name, **rest)
    np.testing.assert_array_equal(ours[0], values.detach().numpy())
    np.testing.assert_array_equal(ours[1], indices.numpy())
    np.testing.assert_array_equal(ours[0], getattr(fc, function)(x, backend=name, **rest))
    dy = np.random.default_rng(seed).integers(-3, 4, ours[0].shape).astype(x.dtype)
    values.backward(torch.from_numpy(dy))
    np.testing.assert_array_equal(getattr(grad, function)(dy, x, backend=name, **rest), tx.grad.numpy())
    by_index = getattr(grad, function)(dy, x, indices=ours[1], backend=name, **rest)
    np.testing.assert_array_equal(by_index, tx.grad.numpy())


@often(200)
@given(
    arguments=pool_arguments(),
    kind=kinds,
    seed=seeds,
    name=names,
    include=st.booleans(),
    override=st.none() | st.integers(1, 9),
)
def test_torch_agrees_on_average_pooling(
    arguments: dict[str, Any], kind: str, seed: int, name: str, include: bool, override: int | None
) -> None:
    torch = torch_module()
    x = np.nan_to_num(pool_input(arguments, kind, seed), neginf=0)
    rank = arguments["rank"]
    rest = {key: arguments[key] for key in ("kernel_size", "stride", "padding", "ceil_mode")}
    rest |= {"count_include_pad": include} | ({"divisor_override": override} if rank > 1 else {})
    function = f"avg_pool{rank}d"
    tx = torch.from_numpy(x).requires_grad_()
    try:
        expected = getattr(torch.nn.functional, function)(tx, **rest)
    except RuntimeError as error:
        refused_alike(error, lambda: getattr(fc, function)(x, backend=name, **rest))
        return
    result = getattr(fc, function)(x, backend=name, **rest)
    spec = pool_spec("avg", arguments, include, override if rank > 1 else None)
    agree(result, expected.detach().numpy(), 2 * testing.tolerance(plan(spec, Op.POOL, name), (x,)))
    dy = np.random.default_rng(seed).integers(-3, 4, result.shape).astype(x.dtype)
    expected.backward(torch.from_numpy(dy))
    allowed = 2 * testing.tolerance(plan(spec, Op.POOL_INPUT_GRAD, name), (dy, x))
    agree(getattr(grad, function)(dy, x, backend=name, **rest), tx.grad.numpy(), allowed)


def pool_spec(
    mode: str, arguments: dict[str, Any], include: bool = True, override: int | None = None
) -> PoolSpec:
    return PoolSpec(
        mode=mode, batch=arguments["batch"], channels=2, in_size=arguments["size"],
        kernel_size=arguments["kernel_size"], stride=arguments["stride"],
        padding=tuple((p, p) for p in arguments["padding"]), ceil_mode=arguments["ceil_mode"],
        count_include_pad=include, divisor_override=override or 0, dtype="float64",
    )  # fmt: skip


@often(80)
@given(arguments=pool_arguments(), seed=seeds, name=names, p=st.sampled_from((1.0, 2.0, 3.0, 1.5)))
def test_torch_agrees_on_lp_pooling_of_positive_numbers(
    arguments: dict[str, Any], seed: int, name: str, p: float
) -> None:
    torch = torch_module()
    x = np.random.default_rng(seed).uniform(0.5, 2, (arguments["batch"], 2, *arguments["size"]))
    rest = {key: arguments[key] for key in ("kernel_size", "stride", "ceil_mode")}
    if arguments["rank"] == 1:  # torch takes only ints here
        rest |= {"kernel_size": arguments["kernel_size"][0], "stride": arguments["stride"][0]}
    function = f"lp_pool{arguments['rank']}d"
    tx = torch.from_numpy(x).requires_grad_()
    try:
        expected = getattr(torch.nn.functional, function)(tx, p, **rest)
    except RuntimeError as error:
        refused_alike(error, lambda: getattr(fc, function)(x, p, backend=name, **rest))
        return
    spec = replace(pool_spec("lp", arguments | {"padding": (0,) * arguments["rank"]}), norm_type=p)
    result = getattr(fc, function)(x, p, backend=name, **rest)
    agree(result, expected.detach().numpy(), 2 * testing.tolerance(plan(spec, Op.POOL, name), (x,)))
    dy = np.random.default_rng(seed + 1).standard_normal(result.shape)
    expected.backward(torch.from_numpy(dy))
    allowed = 2 * testing.tolerance(plan(spec, Op.POOL_INPUT_GRAD, name), (dy, x))
    agree(getattr(grad, function)(dy, x, p, backend=name, **rest), tx.grad.numpy(), allowed)


@often(80)
@given(arguments=pool_arguments(), kind=kinds, seed=seeds, name=names, data=st.data())
def test_torch_agrees_on_adaptive_pooling_and_unpooling(
    arguments: dict[str, Any], kind: str, seed: int, name: str, data: Any
) -> None:
    torch = torch_module()
    x = np.nan_to_num(pool_input(arguments, kind, seed), neginf=0)
    rank = arguments["rank"]
    size = tuple(data.draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank)))
    tx = torch.from_numpy(x).requires_grad_()
    expected = getattr(torch.nn.functional, f"adaptive_avg_pool{rank}d")(tx, size)
    spec = PoolSpec(
        mode="avg", batch=x.shape[0], channels=2, in_size=x.shape[2:], output_size=size, dtype="float64"
    )
    with fc.use_backend(name):
        result = getattr(fc, f"adaptive_avg_pool{rank}d")(x, size)
        agree(result, expected.detach().numpy(), 2 * testing.tolerance(plan(spec, Op.POOL, name), (x,)))
        dy = np.random.default_rng(seed).integers(-3, 4, result.shape).astype(x.dtype)
        expected.backward(torch.from_numpy(dy))
        allowed = 2 * testing.tolerance(plan(spec, Op.POOL_INPUT_GRAD, name), (dy, x))
        agree(getattr(grad, f"adaptive_avg_pool{rank}d")(dy, x, size), tx.grad.numpy(), allowed)
        values, indices = getattr(torch.nn.functional, f"adaptive_max_pool{rank}d")(
            torch.from_numpy(x), size, return_indices=True
        )
        ours = getattr(fc, f"adaptive_max_pool{rank}d")(x, size, return_indices=True)
        np.testing.assert_array_equal(ours[0], values.numpy())
        np.testing.assert_array_equal(ours[1], indices.numpy())


@often(60)
@given(arguments=pool_arguments(), kind=kinds, seed=seeds, name=names)
def test_torch_agrees_on_unpooling(arguments: dict[str, Any], kind: str, seed: int, name: str) -> None:
    torch = torch_module()
    x = np.nan_to_num(pool_input(arguments, kind, seed), neginf=0)
    rank, kernel = arguments["rank"], arguments["kernel_size"]
    if any(k > n for k, n in zip(kernel, x.shape[2:], strict=True)):
        return
    pooled, indices = getattr(fc, f"max_pool{rank}d")(x, kernel, return_indices=True)
    expected = getattr(torch.nn.functional, f"max_unpool{rank}d")(
        torch.from_numpy(pooled), torch.from_numpy(indices), kernel, output_size=x.shape[2:]
    )
    result = getattr(fc, f"max_unpool{rank}d")(pooled, indices, kernel, output_size=x.shape[2:], backend=name)
    np.testing.assert_array_equal(result, expected.numpy())
    back = getattr(grad, f"max_unpool{rank}d")(result, indices, backend=name)
    np.testing.assert_array_equal(back, pooled)


@often(60)
@given(spec=conv_specs(ranks=(2,)), kind=kinds, seed=seeds, name=names)
def test_torch_agrees_on_unfold_and_fold(spec: ConvSpec, kind: str, seed: int, name: str) -> None:
    torch = torch_module()
    (x,) = arrays_for(spec, Op.UNFOLD, kind, seed)
    if not spec.batch:
        return
    padding = tuple(p for p, _ in spec.padding)
    rest: dict[str, Any] = {"dilation": spec.dilation, "padding": padding, "stride": spec.stride}
    expected = torch.nn.functional.unfold(torch.from_numpy(x), spec.kernel_size, **rest).numpy()
    columns = fc.unfold(x, spec.kernel_size, backend=name, **rest)
    np.testing.assert_array_equal(columns, expected)
    folded = torch.nn.functional.fold(
        torch.from_numpy(expected), spec.in_size, spec.kernel_size, **rest
    ).numpy()
    allowed = 2 * testing.tolerance(plan(replace(spec, out_channels=1, groups=1), Op.FOLD, name), (columns,))
    agree(fc.fold(columns, spec.in_size, spec.kernel_size, backend=name, **rest), folded, allowed)


# ---------------------------------------------------------------------------- ONNX


def onnx_run(operator: str, inputs: list[Any], outputs: int = 1, **attributes: Any) -> list[Any]:
    """One operator of ONNX's own reference evaluator."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
    from onnx.reference import ReferenceEvaluator

    names_in = [f"i{number}" for number in range(len(inputs))]
    names_out = [f"o{number}" for number in range(outputs)]
    node = onnx.helper.make_node(operator, names_in, names_out, **attributes)
    typed = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in zip(names_in, inputs, strict=True)
    ]
    untyped = [onnx.helper.make_empty_tensor_value_info(name) for name in names_out]
    graph = onnx.helper.make_graph([node], "one", typed, untyped)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    result: list[Any] = ReferenceEvaluator(model).run(None, dict(zip(names_in, inputs, strict=True)))
    return result


@often(120)
@given(spec=conv_specs(ranks=(1, 2)), kind=kinds, seed=seeds, name=names)
def test_onnx_agrees_on_convolution(spec: ConvSpec, kind: str, seed: int, name: str) -> None:
    if not spec.batch:
        return
    x, w = arrays_for(spec, Op.CONV, kind, seed)
    pads = [p for p, _ in spec.padding] + [p for _, p in spec.padding]
    (expected,) = onnx_run(
        "Conv", [x, w], dilations=list(spec.dilation), group=spec.groups, kernel_shape=list(spec.kernel_size), pads=pads,
        strides=list(spec.stride),
    )  # fmt: skip
    result = plan(spec, Op.CONV, name)(x, w)
    assert result.dtype == expected.dtype
    agree(result, expected, 2 * testing.tolerance(plan(spec, Op.CONV, name), (x, w)))


@often(60)
@given(spec=conv_specs(ranks=(2,)), seed=seeds, name=names, upper=st.booleans())
def test_onnx_agrees_on_same_padding(spec: ConvSpec, seed: int, name: str, upper: bool) -> None:
    if not spec.batch:
        return
    spec = replace(
        spec,
        dilation=(1, 1),
        groups=1,
        in_channels=2,
        out_channels=2,
        padding=((0, 0), (0, 0)),
        in_size=tuple(n + 3 for n in spec.in_size),
    )
    x, w = arrays_for(spec, Op.CONV, "integers", seed)
    (expected,) = onnx_run(
        "Conv",
        [x, w],
        auto_pad="SAME_UPPER" if upper else "SAME_LOWER",
        kernel_shape=list(spec.kernel_size),
        strides=list(spec.stride),
    )
    result = fc.conv2d(x, w, stride=spec.stride, padding="same" if upper else "same_lower", backend=name)
    np.testing.assert_array_equal(result, expected)


@often(60)
@given(arguments=pool_arguments(), seed=seeds, name=names)
def test_onnx_agrees_on_max_pooling(arguments: dict[str, Any], seed: int, name: str) -> None:
    # Without ceil mode and padding, where runtimes have disagreed for years (docs: semantics).
    if arguments["rank"] != 2 or any(
        d * (k - 1) + 1 > n
        for d, k, n in zip(arguments["dilation"], arguments["kernel_size"], arguments["size"], strict=True)
    ):
        return
    x = np.random.default_rng(seed).standard_normal((arguments["batch"], 2, *arguments["size"])).astype("f4")
    (expected,) = onnx_run(
        "MaxPool",
        [x],
        kernel_shape=list(arguments["kernel_size"]),
        strides=list(arguments["stride"]),
        dilations=list(arguments["dilation"]),
    )
    result = fc.max_pool2d(
        x, arguments["kernel_size"], arguments["stride"], 0, arguments["dilation"], backend=name
    )
    np.testing.assert_array_equal(result, expected)


@often(30)
@given(seed=seeds, name=names, x_type=st.sampled_from(("u1", "i1")), w_type=st.sampled_from(("u1", "i1")))
def test_onnx_agrees_on_integers(seed: int, name: str, x_type: str, w_type: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(np.iinfo(x_type).min, np.iinfo(x_type).max + 1, (2, 3, 6, 5)).astype(x_type)
    w = rng.integers(np.iinfo(w_type).min, np.iinfo(w_type).max + 1, (4, 3, 3, 2)).astype(w_type)
    (expected,) = onnx_run("ConvInteger", [x, w], kernel_shape=[3, 2])
    result = fc.conv2d(x, w, backend=name)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected)


def test_enough_problems_are_made() -> None:
    """At least 1,000 a run, counted from this module's own settings."""
    made = [
        value for key, value in globals().items() if key.startswith("test_") and hasattr(value, "hypothesis")
    ]
    count = sum(value._hypothesis_internal_use_settings.max_examples for value in made)
    assert count >= 1000, count
    assert math.isfinite(count)
