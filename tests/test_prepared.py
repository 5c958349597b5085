"""Prepared convolutions give what the plain call gives, for any image, from their own copy of the weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends import backends, owner

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]


def random(*shape: int, dtype: str = "f4") -> Any:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_any_batch_and_size(backend: str, dtype: str) -> None:
    w, b = random(4, 2, 3, 3, dtype=dtype), random(4, dtype=dtype)
    keywords: dict[str, Any] = {"stride": 2, "padding": "same", "groups": 2, "backend": backend}
    prepared = fc.prepare_conv2d(w, b, **keywords)
    for shape in ((1, 4, 5, 6), (3, 4, 8, 3), (4, 7, 7)):
        x = random(*shape, dtype=dtype)
        np.testing.assert_array_equal(prepared(x), fc.conv2d(x, w, b, **keywords))
    out = np.empty((4, 4, 4), dtype)
    assert prepared(x, out=out) is out


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_rank_and_the_transpose(rank: int) -> None:
    x, w = random(2, 4, *(6, 5, 4)[:rank]), random(4, 3, *(2,) * rank)
    conv, transposed = getattr(fc, f"conv{rank}d"), getattr(fc, f"conv_transpose{rank}d")
    forward = w.swapaxes(0, 1).copy()
    np.testing.assert_array_equal(getattr(fc, f"prepare_conv{rank}d")(forward)(x), conv(x, forward))
    prepared = getattr(fc, f"prepare_conv_transpose{rank}d")(w, stride=2, output_padding=1)
    np.testing.assert_array_equal(prepared(x), transposed(x, w, stride=2, output_padding=1))


def test_weights_are_its_own() -> None:
    w, b, x = random(2, 3, 3, 3), random(2), random(1, 3, 6, 6)
    prepared = fc.prepare_conv2d(w, b)
    expected = prepared(x)
    w[...], b[...] = 0, 0
    np.testing.assert_array_equal(prepared(x), expected)
    assert np.any(expected)


def test_packing_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastconv.backends.im2col import gemm

    packed = []
    pack = getattr(gemm, "pack")  # noqa: B009 - the name gemm's planners call, wherever it is defined

    def counted(s: Any, weight: Any) -> Any:
        packed.append(weight.shape)
        return pack(s, weight)

    monkeypatch.setattr(gemm, "pack", counted)
    prepared = fc.prepare_conv2d(random(2, 3, 3, 3, dtype="f2"), backend="im2col", algorithm="im2col")
    for size in (5, 6, 7, 5):
        prepared(random(1, 3, size, size, dtype="f2"))
    assert len(packed) == 1


def test_many_threads() -> None:
    prepared = fc.prepare_conv2d(random(4, 3, 3, 3, dtype="f2"))
    x = random(2, 3, 9, 9, dtype="f2")
    expected = prepared(x).tobytes()
    with ThreadPoolExecutor(8) as pool:
        assert all(result.tobytes() == expected for result in pool.map(lambda _: prepared(x), range(64)))


def test_it_says_what_it_is() -> None:
    assert repr(fc.prepare_conv2d(random(2, 3, 3, 3))) == "<PreparedConv weight (2, 3, 3, 3) float32>"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("weight", "inputs"),
    [
        ("f4", ("f8", "f4", "f2", "f8")),
        ("f2", ("f8", "f2", "f4", "f2")),
        ("i1", ("i2", "i1", "u1", "i8", "i1")),
    ],
)
def test_inputs_of_any_type_in_any_order(
    backend: str, transposed: bool, weight: str, inputs: tuple[str, ...]
) -> None:
    """Each type gets the bits of the plain call, whatever type the weight was packed for before."""
    rng = np.random.default_rng(0)

    def made(dtype: str, *shape: int) -> Any:
        if np.dtype(dtype).kind == "f":
            return rng.standard_normal(shape).astype(dtype)
        return rng.integers(0, 9, shape).astype(dtype)

    w = made(weight, 5, 5, 3, 3)
    prepare, plain = (
        (fc.prepare_conv_transpose2d, fc.conv_transpose2d) if transposed else (fc.prepare_conv2d, fc.conv2d)
    )
    prepared = prepare(w, padding=1, backend=backend)
    for dtype in inputs:
        x = made(dtype, 2, 5, 6, 7)
        result, expected = prepared(x), plain(x, w, padding=1, backend=backend)
        assert result.dtype == expected.dtype
        assert result.tobytes() == expected.tobytes(), dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "keywords",
    [
        {"padding": "same_lower", "stride": 2},
        {"padding": ((1, 2), (0, 1)), "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"groups": 3, "padding": (0, 1)},
    ],
    ids=str,
)
def test_every_keyword_is_the_functions(backend: str, keywords: dict[str, Any]) -> None:
    w, b, x = random(6, 6 // keywords.get("groups", 1), 3, 2), random(6), random(2, 6, 9, 8)
    expected = fc.conv2d(x, w, b, backend=backend, **keywords)
    np.testing.assert_array_equal(fc.prepare_conv2d(w, b, backend=backend, **keywords)(x), expected)


def test_options_hold_for_every_call() -> None:
    """Backend, algorithm, precision and limit are those it was prepared with."""
    w, x = random(2, 3, 3, 3), random(1, 3, 20, 20)
    prepared = fc.prepare_conv2d(w, backend="im2col", algorithm="fft")
    for _ in range(2):  # before it was called, and after
        assert fc.explain(prepared, x).algorithm == "fft"
        prepared(x)
    assert fc.explain(fc.prepare_conv2d(w, backend="naive"), x).backend == "naive"
    limited = fc.prepare_conv2d(w, backend="im2col", workspace_limit=10_000, precision="highest")
    assert fc.explain(limited, x).workspace <= 10_000
    with pytest.raises(fc.Unsupported, match="workspace_limit: got 10"):
        fc.prepare_conv2d(w, backend="im2col", workspace_limit=10)(x)


def test_without_a_backend_each_call_takes_the_current_one() -> None:
    w, x = random(2, 3, 3, 3), random(1, 3, 6, 6)
    prepared = fc.prepare_conv2d(w)
    for name in BACKENDS:
        with fc.use_backend(name):
            assert fc.explain(prepared, x).backend == name
            np.testing.assert_array_equal(prepared(x), fc.conv2d(x, w))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_any_layout(backend: str) -> None:
    w, x = random(4, 3, 3, 3), random(1, 3, 6, 6)
    expected = fc.conv2d(x, w, backend=backend)
    for change in (np.asfortranarray, lambda a: np.flip(np.flip(a).copy()), lambda a: a.astype(">f4")):
        kept = change(w)
        before = kept.tobytes()
        assert fc.prepare_conv2d(kept, backend=backend)(x).tobytes() == expected.tobytes()
        assert kept.tobytes() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_longer_than_any_guess(backend: str) -> None:
    """Nothing is assumed about the image before it comes: a kernel of 5,000 taps, a dilation of 5,000."""
    long, x = random(1, 1, 5000), random(1, 1, 5003)
    keywords: dict[str, Any] = {"backend": backend, "precision": "highest"}
    np.testing.assert_array_equal(fc.prepare_conv1d(long, **keywords)(x), fc.conv1d(x, long, **keywords))
    wide = random(1, 1, 2)
    np.testing.assert_array_equal(
        fc.prepare_conv1d(wide, dilation=5000, **keywords)(x), fc.conv1d(x, wide, dilation=5000, **keywords)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_and_a_refused_call_leave_it_usable(backend: str) -> None:
    w, x = random(4, 3, 3, 3), random(2, 3, 6, 6)
    prepared = fc.prepare_conv2d(w, backend=backend)
    expected = fc.conv2d(x, w, backend=backend)
    with pytest.raises(ValueError, match="input: got 2 channels, expected 3"):
        prepared(x[:, :2])
    out = np.full_like(expected, np.nan)
    assert prepared(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert prepared(x[:0]).shape == (0, 4, 4, 4)
    assert prepared(x[0]).tobytes() == expected[0].tobytes()


def test_types_from_many_threads() -> None:
    """Several threads, each with another type, so that packed weights come and go under them."""
    w = random(4, 3, 3, 3, dtype="f2")
    prepared = fc.prepare_conv2d(w)
    inputs = [random(1, 3, 6, 6, dtype=dtype) for dtype in ("f2", "f4", "f8")]
    expected = [fc.conv2d(x, w).tobytes() for x in inputs]

    def one(n: int) -> bool:
        return bool(prepared(inputs[n % 3]).tobytes() == expected[n % 3])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(90)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weight", ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8"])
def test_a_bias_of_any_type_is_the_plain_calls(weight: str, transposed: bool) -> None:
    """The same bits, or the same refusal: which bias goes with a weight depends on the input's type as well."""
    dtypes = ("f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8")
    prepare, plain = (
        (fc.prepare_conv_transpose1d, fc.conv_transpose1d) if transposed else (fc.prepare_conv1d, fc.conv1d)
    )
    w = np.arange(12).reshape(2, 2, 3).astype(weight)

    def outcome(call: Any) -> tuple[Any, ...]:
        try:
            result = call()
        except (TypeError, ValueError) as error:
            return type(error), str(error)
        return result.dtype, result.tobytes()

    outcomes = set()
    for bias in dtypes:
        b = np.array([1, 2]).astype(bias)
        prepared = prepare(w, b)
        for dtype in dtypes:
            x = np.arange(12).reshape(1, 2, 6).astype(dtype)
            expected = outcome(lambda x=x, b=b: plain(x, w, b))
            assert outcome(lambda x=x, prepared=prepared: prepared(x)) == expected
            outcomes.add(expected[0] is TypeError)
    assert outcomes == {False, True} or weight[0] == "f"


def test_an_algorithm_of_any_backend_may_be_named_before_that_backend_is_chosen() -> None:
    w, x = random(2, 3, 3, 3), random(1, 3, 6, 6)
    prepared = fc.prepare_conv2d(w, algorithm="loops")
    with fc.use_backend("naive"):
        np.testing.assert_array_equal(prepared(x), fc.conv2d(x, w))
    with (
        fc.use_backend("im2col"),
        pytest.raises(ValueError, match="algorithm: got 'loops', expected one of auto, "),
    ):
        prepared(x)
