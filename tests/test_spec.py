"""Specs: sizes by brute force, strings that read back, geometry without meaning refused."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastconv.problems import PROBLEMS
from fastconv.spec import DTYPES, PADDING_MODES, ConvSpec, Op, PoolSpec, parse, source

ALL = sorted({text for problems in PROBLEMS.values() for text in problems})
SMALL = list(itertools.product((1, 4, 7), (1, 2, 3), (1, 2, 3), ((0, 0), (1, 1), (0, 2)), (1, 2)))


def line(size: int, k: int, s: int, pads: tuple[int, int], d: int, **fields: Any) -> ConvSpec:
    return ConvSpec(
        batch=1, in_channels=1, out_channels=1, in_size=(size,), kernel_size=(k,), stride=(s,), padding=(pads,),
        dilation=(d,), **fields,
    )  # fmt: skip


@pytest.mark.parametrize(("size", "k", "s", "pads", "d"), SMALL)
def test_output_size_by_counting(size: int, k: int, s: int, pads: tuple[int, int], d: int) -> None:
    padded = size + sum(pads)
    starts = [i for i in range(0, padded, s) if i + d * (k - 1) < padded]
    if not starts:
        with pytest.raises(ValueError, match="kernel_size"):
            line(size, k, s, pads, d)
    else:
        assert line(size, k, s, pads, d).out_size == (len(starts),)


@pytest.mark.parametrize(
    ("size", "k", "s", "p"), list(itertools.product((1, 4, 5, 8), (2, 3), (1, 2, 3), (0, 1)))
)
def test_ceil_size_by_counting(size: int, k: int, s: int, p: int) -> None:
    starts = [i for i in range(-p, size + p, s) if i == -p or i < size]
    wanted = [i for n, i in enumerate(starts) if n == 0 or starts[n - 1] + k < size + p]
    fields = {
        "mode": "max",
        "batch": 1,
        "channels": 1,
        "in_size": (size,),
        "kernel_size": (k,),
        "stride": (s,),
    }
    least = size + 2 * p - k + s - 1
    if least < 0:
        with pytest.raises(ValueError, match="kernel_size"):
            PoolSpec(**fields, padding=((p, p),), ceil_mode=True)  # type: ignore[arg-type]
        return
    assert PoolSpec(**fields, padding=((p, p),), ceil_mode=True).out_size == (len(wanted),)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ALL)
def test_strings_read_back(text: str) -> None:
    spec = parse(text)
    assert parse(str(spec)) == spec
    assert hash(parse(str(spec))) == hash(spec)


@given(
    batch=st.integers(0, 9), channels=st.integers(1, 9), groups=st.integers(1, 3), size=st.integers(9, 30),
    k=st.integers(1, 4), s=st.integers(1, 3), before=st.integers(0, 3), after=st.integers(0, 3), d=st.integers(1, 2),
    mode=st.sampled_from(("zeros", "reflect", "circular")), dtype=st.sampled_from(sorted(DTYPES)),
)  # fmt: skip
def test_any_spec_reads_back(
    batch: int,
    channels: int,
    groups: int,
    size: int,
    k: int,
    s: int,
    before: int,
    after: int,
    d: int,
    mode: str,
    dtype: str,
) -> None:
    spec = ConvSpec(
        batch=batch, in_channels=groups * channels, out_channels=groups, in_size=(size, size + 1), kernel_size=(k, 2),
        stride=(s, 1), padding=((before, after), (0, 1)), dilation=(d, d), groups=groups, padding_mode=mode, dtype=dtype,
    )  # fmt: skip
    assert parse(str(spec)) == spec


def test_specs_are_frozen_and_canonical() -> None:
    spec = parse("n1 c3x8x8 k4x3x3")
    assert spec == parse("n1 c3x8x8 k4x3x3 s1x1 p0:0 d1 g1 f32")
    with pytest.raises(FrozenInstanceError):
        spec.batch = 2  # type: ignore[misc]


def test_windows_are_what_their_definition_says() -> None:
    spec = parse("avg n1 c1x5x7 k3x2 s2x3 p1x0 d1 ceil f32")
    assert isinstance(spec, PoolSpec)
    assert spec.windows(0) == (range(2), range(1, 4), range(3, 5))
    assert spec.divisors(0) == (3, 3, 3)
    assert spec.windows(1) == (range(2), range(3, 5), range(6, 7))
    assert spec.divisors(1) == (2, 2, 1)
    assert replace(spec, count_include_pad=False).divisors(0) == (2, 3, 2)


@pytest.mark.parametrize(
    ("text", "include", "exclude"),
    [
        ("avg n1 c1x5 k4 s1 p0:2", (4, 4, 4, 4), (4, 4, 3, 2)),
        ("avg n1 c1x5 k4 s1 p2:0", (4, 4, 4, 4), (2, 3, 4, 4)),
        ("avg n1 c1x5 k4 s3 p0:1 ceil", (4, 3), (4, 2)),
        ("avg n1 c1x5 k4 s3 p1:0 ceil", (4, 3), (3, 3)),
    ],
)
def test_divisors_of_uneven_padding(text: str, include: tuple[int, ...], exclude: tuple[int, ...]) -> None:
    """Counted to the end of the padding that follows the input, not of the one before it."""
    for words, expected in ((text, include), (f"{text} exclude_pad", exclude)):
        spec = parse(words)
        assert isinstance(spec, PoolSpec)
        assert spec.divisors(0) == expected


def test_operation_counts() -> None:
    """VGG16's convolutions at 224x224 take 15,346,630,656 multiplications."""
    convs = [
        (3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56),
        (256, 512, 28), (512, 512, 28), (512, 512, 28), (512, 512, 14), (512, 512, 14), (512, 512, 14),
    ]  # fmt: skip
    specs = [parse(f"n1 c{c}x{n}x{n} k{o}x3x3 s1 p1 f32") for c, o, n in convs]
    assert sum(spec.flops() for spec in specs) == 2 * 15_346_630_656
    assert {str(spec) for spec in specs} == {text for text in PROBLEMS["vgg16"] if not text.startswith("max")}
    conv1_2 = specs[1]
    assert isinstance(conv1_2, ConvSpec)
    assert conv1_2.columns_nbytes == 115_605_504


def test_shapes_follow_the_op() -> None:
    spec = parse("n2 c4x7x6 k6x3x2 s2x1 p1 g2 f32")
    assert [shape.shape for shape in spec.shapes(Op.CONV)] == [(2, 4, 7, 6), (6, 2, 3, 2), (2, 6, 4, 7)]
    assert [shape.shape for shape in spec.shapes(Op.CONV_INPUT_GRAD)] == [
        (2, 6, 4, 7),
        (6, 2, 3, 2),
        (2, 4, 7, 6),
    ]
    with pytest.raises(ValueError, match="op"):
        spec.shapes(Op.POOL)


# --------------------------------------------------------------------------- any spec, by definition


@st.composite
def conv_specs(draw: st.DrawFn) -> ConvSpec:
    """Any convolution of one to three axes, an output padding (negative padding after) among them."""
    rank = draw(st.integers(1, 3))

    def entries(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    groups = draw(st.integers(1, 3))
    mode = draw(st.sampled_from(PADDING_MODES))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    fields: dict[str, Any] = {
        "batch": draw(st.integers(0, 9)), "in_channels": groups * draw(st.integers(1, 4)),
        "out_channels": groups * draw(st.integers(1, 4)), "in_size": entries(1, 12), "kernel_size": entries(1, 5),
        "stride": entries(1, 4), "dilation": entries(1, 3), "groups": groups, "padding_mode": mode, "dtype": dtype,
        "padding": tuple(zip(entries(0, 4), entries(-1 if mode == "zeros" else 0, 4), strict=True)),
        "out_dtype": draw(st.sampled_from(["", *sorted(DTYPES)])),
    }  # fmt: skip
    try:
        return ConvSpec(**fields)
    except ValueError:
        assume(False)
        raise


@st.composite
def pool_specs(draw: st.DrawFn) -> PoolSpec:
    """Any pool of one to three axes, adaptive ones among them."""
    rank = draw(st.integers(1, 3))

    def entries(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    mode = draw(st.sampled_from(("max", "avg", "lp")))
    fields: dict[str, Any] = {
        "mode": mode, "batch": draw(st.integers(0, 9)), "channels": draw(st.integers(1, 9)), "in_size": entries(1, 12),
        "dtype": draw(st.sampled_from(sorted(DTYPES))), "indices": draw(st.booleans()),
    }  # fmt: skip
    if mode == "lp":
        fields["norm_type"] = draw(st.floats(0, 1e9, exclude_min=True, allow_subnormal=False))
    if draw(st.booleans()):
        return PoolSpec(**fields, output_size=entries(1, 9))
    fields |= {
        "kernel_size": entries(1, 5), "stride": entries(1, 4), "dilation": entries(1, 3),
        "padding": tuple(zip(entries(0, 2), entries(0, 2), strict=True)), "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()), "divisor_override": draw(st.integers(0, 9)),
    }  # fmt: skip
    try:
        return PoolSpec(**fields)
    except ValueError:
        assume(False)
        raise


@given(conv_specs() | pool_specs())
def test_every_spec_reads_back(spec: ConvSpec | PoolSpec) -> None:
    assert parse(str(spec)) == spec
    assert hash(parse(str(spec))) == hash(spec)
    assert str(parse(str(spec))) == str(spec)
    shuffled = str(spec).split()
    assert parse(" ".join(reversed(shuffled))) == spec


@given(conv_specs())
def test_conv_sizes_by_counting(spec: ConvSpec) -> None:
    """Windows counted one by one along each axis of the padded input."""
    for axis, count in enumerate(spec.out_size):
        before, after = spec.padding[axis]
        padded = range(-before, spec.in_size[axis] + after)
        taps = [k * spec.dilation[axis] for k in range(spec.kernel_size[axis])]
        starts = [q for q in padded[:: spec.stride[axis]] if all(q + tap in padded for tap in taps)]
        assert count == len(starts) >= 1


@given(pool_specs())
def test_pool_windows_by_counting(spec: PoolSpec) -> None:
    """Sizes, windows and divisors from their definitions, torch's ceil rule included; no window is empty."""
    for axis in range(spec.rank):
        size = spec.in_size[axis]
        if spec.output_size:
            o = spec.output_size[axis]
            windows = [set(range(i * size // o, -((i + 1) * size // -o))) for i in range(o)]
            divisors = list(map(len, windows))
        else:
            before, after = spec.padding[axis]
            step, extent = spec.stride[axis], spec.kernel_extent[axis]
            taps = [k * spec.dilation[axis] for k in range(spec.kernel_size[axis])]
            starts: list[int] = []
            for start in range(-before, size + after, step):
                fits = start + extent <= size + after
                hangs_over = (starts and start - step + extent < size + after) or not starts
                if fits or (spec.ceil_mode and hangs_over and start < size):
                    starts.append(start)
            windows = [{s + t for t in taps if 0 <= s + t < size} for s in starts]
            divisors = [min(s + extent, size + after) - s for s in starts]
            if not spec.count_include_pad:
                divisors = list(map(len, windows))
        assert [set(window) for window in spec.windows(axis)] == windows
        assert all(windows)
        assert list(spec.lengths(axis)) == list(map(len, windows))
        assert list(spec.divisors(axis)) == divisors
        assert spec.out_size[axis] == len(windows)


@st.composite
def lines(draw: st.DrawFn) -> PoolSpec:
    """Any pool of one axis: long strides, dilations and paddings, windows longer than the input."""
    fields: dict[str, Any] = {
        "mode": "avg",
        "batch": 1,
        "channels": 1,
        "in_size": (draw(st.integers(1, 40)),),
    }
    if draw(st.booleans()):
        return PoolSpec(**fields, output_size=(draw(st.integers(1, 60)),))
    k, d = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    half = (d * (k - 1) + 1) // 2
    fields |= {"kernel_size": (k,), "dilation": (d,), "stride": (draw(st.integers(1, 12)),)}
    fields |= {"padding": (draw(st.tuples(*[st.integers(0, half)] * 2)),), "ceil_mode": draw(st.booleans())}
    try:
        return PoolSpec(**fields)
    except ValueError:
        assume(False)
        raise


@settings(max_examples=500)
@given(lines())
def test_window_counts_by_counting(spec: PoolSpec) -> None:
    """The largest window, the most windows that meet in one element, and the elements of all windows."""
    windows = spec.windows(0)
    meetings = Counter(i for window in windows for i in window)
    assert all(windows)
    assert spec.lengths(0) == tuple(map(len, windows))
    assert spec.dot_length(Op.POOL) == max(map(len, windows))
    assert spec.dot_length(Op.POOL_INPUT_GRAD) == max(meetings.values())
    assert spec.flops() == meetings.total()


@pytest.mark.parametrize(
    "text", [f"avg n1 c1x{10**12} k3 s1 p1 exclude_pad ceil", f"avg n1 c1x{10**12} o{10**11 + 1}"]
)
def test_no_window_is_walked(text: str) -> None:
    """A billion windows take no longer than one: counts are computed, not counted."""
    spec = parse(text)
    assert isinstance(spec, PoolSpec)
    assert spec.flops() == (3 * 10**12 - 2 if spec.kernel_size else 10**12 + 10**11)
    assert spec.dot_length(Op.POOL) == (3 if spec.kernel_size else 11)
    assert spec.dot_length(Op.POOL_INPUT_GRAD) == (3 if spec.kernel_size else 2)


NUMPY_MODES = {
    "zeros": "constant",
    "replicate": "edge",
    "circular": "wrap",
    "reflect": "reflect",
    "symmetric": "symmetric",
}


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_padding_modes_are_numpys(mode: str, size: int) -> None:
    """What stands at each padded position is what numpy.pad puts there, as far as each mode may reach."""
    reach = {"reflect": size - 1, "circular": size, "symmetric": size}.get(mode, 7)
    keywords: dict[str, Any] = {"constant_values": -1} if mode == "zeros" else {}
    padded = np.pad(np.arange(size), reach, mode=NUMPY_MODES[mode], **keywords)  # type: ignore[call-overload]
    ours = [source(i, size, mode) for i in range(-reach, size + reach)]
    assert [-1 if i is None else i for i in ours] == padded.tolist()


@pytest.mark.parametrize("mode", ["reflect", "circular", "symmetric"])
def test_padding_reaches_no_further_than_it_means_something(mode: str) -> None:
    reach = 3 if mode == "reflect" else 4
    line(4, 1, 1, (reach, reach), 1, padding_mode=mode)
    for pads in ((reach + 1, 0), (0, reach + 1)):
        with pytest.raises(
            ValueError, match=rf"padding: got \({pads[0]}, {pads[1]}\) along axis 0 .* at most {reach}"
        ):
            line(4, 1, 1, pads, 1, padding_mode=mode)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("c3x8x8 k4x3x3", "n1 c3x8x8 k4x3x3 s1 p0 f32"),
        ("f64 k4x3x3 c3x8x8 s2x2 p1:1x1:1 d1x1 g1 n1 zeros", "n1 c3x8x8 k4x3x3 s2 p1 f64"),
        ("c4x8 k6x3 g2 p0:1 s8>f32", "n1 c4x8 k6x3 s1 p0:1 g2 s8>f32"),
        ("max c3x8x8 k2", "max n1 c3x8x8 k2x2 s2 p0 f32"),
        ("lp2.5 c3x8 k2 s1 ceil", "lp2.5 n1 c3x8 k2 s1 p0 ceil f32"),
        ("lp1e-07 c3x8 k2", "lp1e-07 n1 c3x8 k2 s2 p0 f32"),
        ("lp0.1234567890123 c3x8 k2", "lp0.1234567890123 n1 c3x8 k2 s2 p0 f32"),
        ("avg c3x8x8 o2 indices bf16", "avg n1 c3x8x8 o2x2 indices bf16"),
        ("avg c3x8 k2 divisor5 exclude_pad", "avg n1 c3x8 k2 s2 p0 exclude_pad divisor5 f32"),
    ],
)
def test_any_spelling_becomes_the_canonical_one(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(text) == parse(canonical)


def test_a_batch_is_all_that_with_batch_changes() -> None:
    for text in ("n1 c3x8x8 k4x3x3 s2 p1 f64", "max n1 c3x8x8 k2x2 indices"):
        spec = parse(text)
        assert spec.with_batch(7) == parse(text.replace("n1", "n7"))


def test_specs_are_values() -> None:
    """Hashable, comparable, usable as a key, and holding nothing but plain Python."""
    spec = parse("n1 c3x8x8 k4x3x3")
    assert {spec: 1}[parse("n1 c3x8x8 k4x3x3 s1")] == 1
    assert spec != parse("n1 c3x8x8 k4x3x3 s2")
    assert parse("max n1 c3x8x8 k2x2") != parse("avg n1 c3x8x8 k2x2")
    with pytest.raises(FrozenInstanceError):
        parse("max n1 c3x8x8 k2x2").mode = "avg"  # type: ignore[union-attr, misc]
    for value in (getattr(spec, name) for name in spec.__slots__):
        assert type(value) in (int, str, tuple)


@pytest.mark.parametrize(
    "text",
    ["n2 c4x7x6 k6x3x2 s2x1 p1 g2 f32", "max n2 c3x9x8 k3x2 s2 p1 indices f16", "avg n2 c3x9 o4 s8"],
)
def test_counts_by_counting(text: str) -> None:
    """Bytes and operations follow from the shapes; nothing is stored twice."""
    spec = parse(text)
    for op in spec.ops:
        *operands, result = spec.shapes(op)
        expected = sum(int(np.prod(s.shape)) * DTYPES[s.dtype].itemsize for s in (*operands, result))
        assert spec.nbytes(op) == expected
        assert spec.dot_length(op) >= 1
    if isinstance(spec, ConvSpec):
        products = (
            int(np.prod(spec.output_shape)) * spec.in_channels // spec.groups * int(np.prod(spec.kernel_size))
        )
        assert (
            spec.flops(Op.CONV)
            == spec.flops(Op.CONV_INPUT_GRAD)
            == spec.flops(Op.CONV_WEIGHT_GRAD)
            == 2 * products
        )
    else:
        taps = [sum(map(len, spec.windows(axis))) for axis in range(spec.rank)]
        assert spec.flops() == spec.batch * spec.channels * int(np.prod(taps))


def test_the_largest_array_there_can_be() -> None:
    """2**63 - 1 bytes and no more, for every operand and the result."""
    fits = f"n1 c1x{2**61 - 1} k1x1 s1 f32"
    assert parse(fits).nbytes(Op.CONV) > 2**62
    for text, name in (
        (f"n1 c1x{2**61} k1x1 f32", "input"),
        (f"n1 c1x{2**61 - 1} k1x1 p1 f32", "output"),
        (f"n1 c1x{2**61 - 1} k2x1 f32", "output"),
        (f"max n1 c1x{2**61 - 1} k1 s1 indices f32", "indices|output"),
        (f"avg n1 c1x4 o{2**61} f32", "output"),
    ):
        with pytest.raises(ValueError, match=rf"({name}): an array of shape .* 2\*\*63"):
            parse(text)
