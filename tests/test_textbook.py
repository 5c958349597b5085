"""Convolution and pooling by the numbers of textbooks: what is worked out there by hand comes out here, exactly."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.signal import convolve2d

import fastconv as fc
from fastconv import grad, nn
from fastconv.spec import ConvSpec

BACKENDS = [name for name, state in fc.backends().items() if state == "available"]

# Deep Learning from Scratch, section 7.2: an image, a filter, and the pool of section 7.3.
IMAGE = np.array([[1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]], "float32")[None, None]
KERNEL = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], "float32")[None, None]
POOLED = np.array([[1, 2, 1, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 4, 0, 1]], "float32")[None, None]

# The animation of a 3 x 3 kernel on a 5 x 5 image of ones and zeros that many introductions show.
BINARY = np.array([[*map(int, row)] for row in ("11100", "01110", "00111", "00110", "01100")], "float32")
CROSS = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], "float32")

VGG16 = (
    (3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56),
    (256, 512, 28), (512, 512, 28), (512, 512, 28), (512, 512, 14), (512, 512, 14), (512, 512, 14),
)  # fmt: skip

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def whole(rng: np.random.Generator, *shape: int) -> Any:
    """Whole numbers small enough that no sum is rounded."""
    return rng.integers(-8, 9, shape).astype("float32")


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------------------- convolution


def test_a_window_slides_and_nothing_is_flipped(backend: str) -> None:
    same(fc.conv2d(IMAGE, KERNEL, backend=backend)[0, 0], [[15, 16], [6, 15]])
    flipped = np.ascontiguousarray(KERNEL[..., ::-1, ::-1])
    same(fc.conv2d(IMAGE, flipped, backend=backend)[0, 0], convolve2d(IMAGE[0, 0], KERNEL[0, 0], "valid"))


def test_a_cross_on_a_binary_image(backend: str) -> None:
    found = fc.conv2d(BINARY[None, None], CROSS[None, None], backend=backend)
    same(found[0, 0], [[4, 3, 4], [2, 4, 3], [2, 3, 4]])


def test_a_bias_is_added_to_every_element(backend: str, rng: np.random.Generator) -> None:
    three = np.array([3], "float32")
    same(fc.conv2d(IMAGE, KERNEL, three, backend=backend)[0, 0], [[18, 19], [9, 18]])
    x, w, b = whole(rng, 2, 3, 9, 8), whole(rng, 5, 3, 3, 3), whole(rng, 5)
    plain = fc.conv2d(x, w, backend=backend)
    same(fc.conv2d(x, w, b, backend=backend), plain + b[:, None, None])


def test_padding_keeps_the_size(backend: str) -> None:
    padded = fc.conv2d(IMAGE, KERNEL, padding=1, backend=backend)[0, 0]
    same(padded, [[7, 12, 10, 2], [4, 15, 16, 10], [10, 6, 15, 6], [8, 10, 4, 3]])
    for k in (1, 3, 5, 7):
        kernel = np.ones((1, 1, k, k), "float32")
        assert fc.conv2d(IMAGE, kernel, padding=(k - 1) // 2, backend=backend).shape == IMAGE.shape
    with pytest.raises(ValueError, match=r"spans 5 .* expected at most the padded input, 4"):
        fc.conv2d(IMAGE, np.ones((1, 1, 5, 5), "float32"), backend=backend)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_a_stride_takes_every_so_many_windows(backend: str, stride: int, rng: np.random.Generator) -> None:
    for height, width in ((12, 11), (10, 13)):
        x, w = whole(rng, 1, 2, height, width), whole(rng, 3, 2, 3, 2)
        every = fc.conv2d(x, w, backend=backend)
        same(fc.conv2d(x, w, stride=stride, backend=backend), every[..., ::stride, ::stride])


def test_channels_are_added_up(backend: str, rng: np.random.Generator) -> None:
    x, w = whole(rng, 1, 3, 8, 8), whole(rng, 4, 3, 3, 3)
    parts = [fc.conv2d(x[:, c : c + 1], w[:, c : c + 1], backend=backend) for c in range(3)]
    same(fc.conv2d(x, w, backend=backend), sum(parts))
    with pytest.raises(ValueError, match=r"3.*2|2.*3"):
        fc.conv2d(x, w[:, :2], backend=backend)


def test_every_filter_reads_all_channels_unless_grouped(backend: str, rng: np.random.Generator) -> None:
    """Does each of the colours have its own filter? Each filter has a slice for each colour."""
    x, w = 1 + abs(whole(rng, 2, 3, 7, 7)), 1 + abs(whole(rng, 6, 3, 3, 3))
    without_red = x.copy()
    without_red[:, 0] = 0
    whole_maps, maps = (fc.conv2d(some, w, backend=backend) for some in (x, without_red))
    assert whole_maps.shape == (2, 6, 5, 5)
    assert (whole_maps != maps).any(axis=(0, 2, 3)).all()
    apart, less = (fc.conv2d(some, w[:, :1], groups=3, backend=backend) for some in (x, without_red))
    assert (apart != less).any(axis=(0, 2, 3)).tolist() == [True, True, False, False, False, False]


def test_images_of_a_batch_do_not_meet(backend: str, rng: np.random.Generator) -> None:
    x, w = whole(rng, 5, 3, 9, 9), whole(rng, 4, 3, 3, 3)
    batch = fc.conv2d(x, w, backend=backend)
    for at in range(5):
        same(batch[at], fc.conv2d(x[at : at + 1], w, backend=backend)[0])


def test_28_by_28_numbers_from_32_by_32_by_3(backend: str, rng: np.random.Generator) -> None:
    x, w = whole(rng, 1, 3, 32, 32), whole(rng, 1, 3, 5, 5)
    y = fc.conv2d(x, w, backend=backend)
    assert y.shape == (1, 1, 28, 28)
    assert y.size == 784
    for row, column in rng.integers(0, 28, (3, 2)):
        assert y[0, 0, row, column] == np.sum(x[0, :, row : row + 5, column : column + 5] * w[0])


def test_one_axis_is_two_with_one_of_length_one(backend: str, rng: np.random.Generator) -> None:
    """And a causal convolution does not know what is to come."""
    x, w = whole(rng, 2, 3, 20), whole(rng, 4, 3, 5)
    plane = fc.conv2d(x[:, :, None], w[:, :, None], stride=(1, 2), padding=(0, 2), backend=backend)
    same(fc.conv1d(x, w, stride=2, padding=2, backend=backend), plane[:, :, 0])
    causal = fc.conv1d(x, w, padding=[(4, 0)], backend=backend)
    later = x.copy()
    later[..., 12:] += 1
    changed = fc.conv1d(later, w, padding=[(4, 0)], backend=backend) != causal
    assert not changed[..., :12].any()
    assert changed[..., 12:].any()


def test_vgg16_takes_15_billion_multiplications(backend: str) -> None:
    specs = [fc.parse(f"n1 c{c}x{size}x{size} k{o}x3x3 s1 p1 f32") for c, o, size in VGG16]
    assert sum(spec.flops() for spec in specs) // 2 == 15_346_630_656


# ---------------------------------------------------------------------------- pooling


def test_the_largest_of_each_window(backend: str) -> None:
    found, places = fc.max_pool2d(POOLED, 2, return_indices=True, backend=backend)
    same(found[0, 0], [[2, 3], [4, 2]])
    same(places[0, 0], [[1, 7], [13, 11]])
    tied, first = fc.max_pool2d(np.ones((1, 1, 4, 4), "float32"), 2, return_indices=True, backend=backend)
    same(first[0, 0], [[0, 2], [8, 10]])
    assert (tied == 1).all()
    below = fc.max_pool2d(-POOLED - 1, 2, padding=1, backend=backend)
    assert below.max() < 0


def test_a_mean_is_a_convolution_of_each_channel(backend: str, rng: np.random.Generator) -> None:
    x = 9 * whole(rng, 2, 3, 12, 12)
    ninth = np.ones((3, 1, 3, 3), "float32")
    sums = fc.conv2d(x, ninth, stride=2, padding=1, groups=3, backend=backend)
    same(fc.avg_pool2d(x, 3, 2, 1, backend=backend), sums / np.float32(9))
    inside = fc.conv2d(np.ones_like(x), ninth, stride=2, padding=1, groups=3, backend=backend)
    without = fc.avg_pool2d(x, 3, 2, 1, count_include_pad=False, backend=backend)
    np.testing.assert_array_almost_equal_nulp(without, sums / inside, 1)


@pytest.mark.parametrize("layer", [nn.MaxPool(2), nn.AvgPool(2)], ids=["max", "mean"])
def test_a_pool_learns_nothing_and_keeps_channels_apart(
    backend: str, layer: nn.Layer, rng: np.random.Generator
) -> None:
    x, order = whole(rng, 2, 5, 8, 8), rng.permutation(5)
    with fc.use_backend(backend):
        assert layer.params == {}
        assert layer.forward(x).shape == (2, 5, 4, 4)
        same(layer.forward(x[:, order]), layer.forward(x)[:, order])


def test_eight_megapixels_become_two(backend: str, rng: np.random.Generator) -> None:
    if backend == "naive":
        pytest.skip("two million windows take plain loops minutes")
    x = rng.integers(0, 256, (1, 1, 2448, 3264)).astype("float32")
    y = fc.max_pool2d(x, 2, backend=backend)
    assert (x.size, y.size) == (7_990_272, 1_997_568)
    same(y[0, 0], x.reshape(1224, 2, 1632, 2).max(axis=(1, 3)))
    tracemalloc.start()
    fc.max_pool2d(x, 2, out=y, backend=backend)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < y.nbytes


def test_pools_give_each_gradient_to_one_element(backend: str, rng: np.random.Generator) -> None:
    x, dy = whole(rng, 2, 3, 8, 8), whole(rng, 2, 3, 4, 4)
    dx = grad.max_pool2d(dy, x, 2, backend=backend)
    assert dx.sum() == dy.sum()
    assert (np.count_nonzero(dx.reshape(2, 3, 4, 2, 4, 2), axis=(3, 5)) == (dy != 0)).all()
    tied = grad.max_pool2d(
        np.ones((1, 1, 1, 1), "float32"), np.ones((1, 1, 2, 2), "float32"), 2, backend=backend
    )
    same(tied[0, 0], [[1, 0], [0, 0]])
    assert grad.avg_pool2d(4 * dy, x, 2, backend=backend).sum() == 4 * dy.sum()


# ---------------------------------------------------------------------------- im2col


def rows(x: Any, k: int, backend: str, stride: int = 1) -> Any:
    """The textbook's matrix, a row for each window, from torch's, which has a column for each."""
    columns = fc.unfold(x, k, stride=stride, backend=backend)
    return columns.transpose(0, 2, 1).reshape(-1, columns.shape[1])


def test_nine_rows_of_75(backend: str, rng: np.random.Generator) -> None:
    x, w = whole(rng, 10, 3, 7, 7), whole(rng, 2, 3, 5, 5)
    assert rows(x[:1], 5, backend).shape == (9, 75)
    matrix = rows(x, 5, backend)
    assert matrix.shape == (90, 75)
    same(matrix[9 + 5], x[1, :, 1 : 1 + 5, 2 : 2 + 5].ravel())
    product = (matrix @ w.reshape(2, -1).T).reshape(10, 3, 3, 2).transpose(0, 3, 1, 2)
    assert not product.flags.c_contiguous
    same(fc.conv2d(x, w, backend=backend), product)
    pool = np.ones((1, 2, 2, 2), "float32")
    same(fc.conv2d(product, pool, backend=backend), fc.conv2d(product.copy(), pool, backend=backend))


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 1), (3, 3), (2, 4)])
def test_what_columns_take(backend: str, k: int, stride: int) -> None:
    x = np.zeros((1, 2, 40, 40), "float32")
    columns = fc.unfold(x, k, stride=stride, backend=backend)
    out = (40 - k) // stride + 1
    assert columns.size * 40 * 40 == k * k * out * out * x.size
    assert (columns.size <= x.size) is (stride >= k)


def test_the_im2col_backend_multiplies_columns(
    backend: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its matrix product sees is the matrix of the textbook."""
    if backend != "im2col":
        pytest.skip("only this backend makes columns")
    x, w, seen = whole(rng, 1, 3, 7, 7), whole(rng, 2, 3, 5, 5), []
    matmul = np.matmul

    def spy(a: Any, b: Any, *rest: Any, **keywords: Any) -> Any:
        seen.append((np.array(a), np.array(b)))
        return matmul(a, b, *rest, **keywords)

    monkeypatch.setattr(np, "matmul", spy)
    fc.conv2d(x, w, backend=backend, algorithm="im2col")
    assert any(
        a.shape[-2:] == (2, 75) and np.array_equal(b.reshape(75, 9), fc.unfold(x, 5, backend="naive")[0])
        for a, b in seen
    )


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 2, 2)])
def test_col2im_is_the_adjoint_of_im2col(
    backend: str, stride: int, padding: int, dilation: int, rng: np.random.Generator
) -> None:
    how: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "backend": backend}
    x = rng.standard_normal((2, 3, 11, 9))
    columns = fc.unfold(x, 3, **how)
    c = rng.standard_normal(columns.shape)
    there, back = np.vdot(columns, c), np.vdot(x, fc.fold(c, (11, 9), 3, **how))
    # Sums of as many products, in float64, in two orders.
    allowed = columns.size * np.finfo("f8").eps * np.vdot(abs(columns), abs(c))
    assert abs(there - back) <= allowed


def test_pooling_by_rows_of_each_channel(backend: str, rng: np.random.Generator) -> None:
    n, c, out, k = 4, 3, 3, 2
    x = whole(rng, n, c, 6, 6)
    matrix = rows(x, k, backend, stride=k).reshape(-1, k * k)
    assert matrix.shape == (n * out * out * c, k * k)
    pooled = matrix.max(axis=1).reshape(n, out, out, c).transpose(0, 3, 1, 2)
    same(fc.max_pool2d(x, k, backend=backend), pooled)


# ---------------------------------------------------------------------------- two layers


def test_the_five_tensors_of_two_layers(backend: str, rng: np.random.Generator) -> None:
    """z1 = w1 * x + b1, a1 = relu(z1), z2 = w2 * a1 + b2, a2 = relu(z2): all with channels, height and width."""
    x, w1, b1, w2, b2 = (
        whole(rng, 1, 3, 10, 10),
        whole(rng, 4, 3, 3, 3),
        whole(rng, 4),
        whole(rng, 5, 4, 3, 3),
        whole(rng, 5),
    )
    net = nn.Sequential(conv1=nn.Conv(3, 4, 3), relu1=nn.ReLU(), conv2=nn.Conv(4, 5, 3), relu2=nn.ReLU())
    for name, array in (("conv1.weight", w1), ("conv1.bias", b1), ("conv2.weight", w2), ("conv2.bias", b2)):
        net.params[name][...] = array
    z1 = fc.conv2d(x, w1, backend=backend) + b1[:, None, None]
    a1 = np.maximum(z1, 0)
    z2 = fc.conv2d(a1, w2, backend=backend) + b2[:, None, None]
    with fc.use_backend(backend):
        seen = [x]
        for layer in net.layers.values():
            seen.append(layer.forward(seen[-1]))
        same(net.forward(x), seen[-1])
    for found, expected in zip(seen[1:], (z1, a1, z2, np.maximum(z2, 0)), strict=True):
        same(found, expected)
        assert found.ndim == 4
        assert min(found.shape) > 0


def test_specs_are_of_convolutions(backend: str) -> None:
    """One calculator of sizes for all backends: what a spec says is what each gives."""
    spec = fc.parse("n2 c3x17x19 k4x3x2 s2x3 p1x2 d2x1 f32")
    assert isinstance(spec, ConvSpec)
    x, w = np.zeros((2, 3, 17, 19), "float32"), np.zeros((4, 3, 3, 2), "float32")
    y = fc.conv2d(x, w, stride=(2, 3), padding=(1, 2), dilation=(2, 1), backend=backend)
    assert y.shape[2:] == spec.out_size
