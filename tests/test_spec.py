"""Specs: sizes by brute force, strings that read back, geometry without meaning refused."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.problems import PROBLEMS
from fastconv.spec import DTYPES, ConvSpec, Op, PoolSpec, parse

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
