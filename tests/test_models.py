"""Networks that people know: their parameters, names and numbers are torchvision's, built here from torch's layers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn, testing
from fastconv.nn import keras
from fastconv.nn.models.googlenet import INCEPTIONS, inception
from fastconv.plan import Plan
from tests.test_gradients import BACKENDS, close, numeric, random
from tests.test_nn import near

F64: dict[str, Any] = {"rng": 1, "dtype": "float64"}


def count(model: nn.Layer) -> int:
    return sum(array.size for array in model.params.values())


# ---------------------------------------------------------------------------- blocks


def residual() -> nn.Residual:
    return nn.Residual(
        conv1=nn.Conv(2, 3, 3, 2, 1, bias=False, **F64),
        bn1=nn.BatchNorm(3, dtype="float64"),
        tanh=nn.Tanh(),
        conv2=nn.Conv(3, 3, 3, padding=1, **F64),
        downsample=nn.Conv(2, 3, 1, 2, rng=2, dtype="float64"),
    )


def branches() -> nn.Branches:
    return nn.Branches(
        one=nn.Conv(2, 1, 1, **F64),
        three=nn.Sequential(nn.Conv(2, 2, 1, **F64), nn.Tanh(), nn.Conv(2, 3, 3, padding=1, **F64)),
        pool=nn.AvgPool(3, 1, 1),
    )


@pytest.mark.parametrize("make", [residual, branches, lambda: nn.Residual(nn.Tanh(), tanh=nn.Tanh())])
@pytest.mark.parametrize("train", [True, False])
def test_gradients_of_blocks(make: Any, train: bool) -> None:
    model, x = make(), random(2, 2, 4, 5)
    dy = random(*model.forward(x, train).shape)
    model.forward(x, train)
    dx = model.backward(dy)
    close(dx, numeric(lambda v: model.forward(v, train), x, dy))
    grads = model.grads
    assert set(grads) == set(model.params)
    for name, param in model.params.items():
        close(grads[name], numeric(lambda _: model.forward(x, train), param, dy))
    model.forward(x, train)
    model.backward(dy, input_grad=False)
    for name, gradient in model.grads.items():
        np.testing.assert_array_equal(gradient, grads[name])


def test_zero_residual_weights_give_relu_of_the_input() -> None:
    """A residual block begins as no block at all."""
    block, x = nn.models.resnet.basic_block(4, 4, init=0.0, rng=None, dtype="float32"), random(2, 4, 5, 6)
    np.testing.assert_array_equal(block.forward(x), np.maximum(x, 0))
    np.testing.assert_array_equal(block.forward(x, train=True), np.maximum(x, 0))


def test_a_strided_block_projects_its_input() -> None:
    block = nn.models.resnet.bottleneck(8, 4, 2, **F64)
    assert block.params["downsample.0.weight"].shape == (16, 8, 1, 1)
    assert block.forward(random(1, 8, 6, 6)).shape == (1, 16, 3, 3)
    with pytest.raises(
        ValueError, match=r"the body makes \(1, 3, 2, 2\) of \(1, 2, 4, 4\), .*\(1, 2, 4, 4\)"
    ):
        nn.Residual(conv=nn.Conv(2, 3, 3, **F64)).forward(random(1, 2, 4, 4))


def watch(layer: nn.Layer, name: str, way: str, seen: list[tuple[str, str]]) -> None:
    inner = getattr(layer, way)

    def watched(*args: Any) -> Any:
        seen.append((name, way))
        return inner(*args)

    setattr(layer, way, watched)


@pytest.mark.parametrize("make", [residual, branches, lambda: nn.resnet18(4, in_channels=2, width=2, **F64)])
def test_each_part_computes_once_in_each_pass(make: Any) -> None:
    """What looks into networks wraps the parts' methods, and must see every output and gradient."""
    model = make()
    seen: list[tuple[str, str]] = []
    wanted = [(name, way) for name, _ in model.named_layers() for way in ("forward", "backward")]
    for name, layer in model.named_layers():
        watch(layer, name, "forward", seen)
        watch(layer, name, "backward", seen)
    model.backward(model.forward(random(2, 2, 32, 32), True))
    assert sorted(seen) == sorted(wanted)


def test_blocks_refuse_in_words() -> None:
    with pytest.raises(ValueError, match="body: got no layers"):
        nn.Residual(nn.Tanh())
    with pytest.raises(TypeError, match="layer tanh: got ufunc"):
        nn.Branches(tanh=np.tanh)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the branches make \(1, 1, 3, 3\), \(1, 1, 4, 4\)"):
        nn.Branches(a=nn.AvgPool(2, 1), b=nn.AvgPool(1)).forward(random(1, 1, 4, 4))


# ---------------------------------------------------------------------------- layers, as people tell of them


def test_two_convolutions_and_their_activations() -> None:
    """z1 = w1 * x + b1, a1 = ReLU(z1), z2 = w2 * a1 + b2, a2 = ReLU(z2): each of three axes for each image."""
    rng = np.random.default_rng(0)
    conv1, relu1, conv2, relu2 = nn.Conv(3, 8, 3, rng=rng), nn.ReLU(), nn.Conv(8, 4, 3, rng=rng), nn.ReLU()
    conv1.params["bias"][:], conv2.params["bias"][:] = rng.standard_normal(8), rng.standard_normal(4)
    x = random(2, 3, 10, 10).astype("float32")
    z1 = conv1.forward(x)
    a1 = relu1.forward(z1)
    z2 = conv2.forward(a1)
    a2 = relu2.forward(z2)
    assert [tensor.shape[1:] for tensor in (x, z1, a1, z2, a2)] == [
        (3, 10, 10), (8, 8, 8), (8, 8, 8), (4, 6, 6), (4, 6, 6),
    ]  # fmt: skip
    assert (z1 < 0).any()
    np.testing.assert_array_equal(a1, np.maximum(z1, 0))
    np.testing.assert_array_equal(a2, np.maximum(z2, 0))
    hand = (conv2.params["weight"][1].astype("float64") * a1[0, :, 2:5, 4:7]).sum() + conv2.params["bias"][1]
    assert (
        abs(z2[0, 1, 2, 4] - hand)
        <= testing._roundings(72) * testing.ROUNDOFF["float32"] * 72 * abs(a1).max()
    )
    np.testing.assert_array_equal(nn.Sequential(conv1, relu1, conv2, relu2).forward(x), a2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pools_route_gradients_to_one_winner(backend: str) -> None:
    """Nothing is lost or made on the way back, and of equal maxima the first gets all."""
    pool = nn.MaxPool(2)
    x = np.random.default_rng(0).integers(0, 3, (2, 3, 6, 8)).astype("float64")  # many ties
    dy = np.random.default_rng(1).integers(1, 9, (2, 3, 3, 4)).astype("float64")
    with fc.use_backend("auto" if backend == "numba" else backend):
        pool.forward(x)
        dx = pool.backward(dy)
        ties = nn.MaxPool(2)
        ties.forward(np.ones((1, 1, 2, 2)))
        np.testing.assert_array_equal(ties.backward(np.ones((1, 1, 1, 1)))[0, 0], [[1, 0], [0, 0]])
    assert dx.sum() == dy.sum()
    assert ((dx != 0).reshape(2, 3, 3, 2, 4, 2).sum(axis=(3, 5)) == 1).all()


def test_pools_have_nothing_to_learn() -> None:
    for pool in (nn.MaxPool(2), nn.AvgPool(2), nn.AdaptiveAvgPool(2)):
        x = random(2, 5, 6, 6)
        order = [3, 0, 4, 1, 2]
        y = pool.forward(x)
        assert not pool.params
        assert y.shape[1] == 5
        np.testing.assert_array_equal(pool.forward(x[:, order]), y[:, order])


def test_the_gradient_of_simple_conv_net_whole() -> None:
    """Through the loss: relative error below 1e-4 in every parameter, of which 8 are moved in each array."""
    model = nn.simple_conv_net(rng=0, dtype="float64")
    x, labels, rng = random(2, 1, 28, 28), np.array([1, 7]), np.random.default_rng(0)

    def loss() -> float:
        return nn.softmax_cross_entropy(model.forward(x, train=True), labels)[0]

    _, dlogits = nn.softmax_cross_entropy(model.forward(x, train=True), labels)
    model.backward(dlogits, input_grad=False)
    for name, param in model.params.items():
        flat, gradient = param.reshape(-1), model.grads[name].reshape(-1)
        for at in rng.integers(0, flat.size, 8):
            kept, losses = flat[at], []
            for step in (1e-5, -1e-5):
                flat[at] = kept + step
                losses.append(loss())
            flat[at] = kept
            slope = (losses[0] - losses[1]) / 2e-5
            assert abs(slope - gradient[at]) <= 1e-4 * max(abs(gradient).max(), abs(slope))


def test_filters_are_learned_by_making_the_loss_smaller() -> None:
    """Each epoch's loss is below the last one's, and no filter points where it did.

    First run: 2.44, 0.85, 0.46; cosines between 0.990 and 0.998.
    """
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    x, labels, *_ = nn.digits(8)
    model = nn.simple_conv_net(8, rng=0)
    before = model.params["conv.weight"].copy().reshape(30, -1)
    history = nn.fit(model, x, labels, epochs=3, batch_size=50, rng=0, progress=False)
    after = model.params["conv.weight"].reshape(30, -1)
    assert history[0].loss > history[1].loss > history[2].loss
    cosines = (before * after).sum(axis=1) / np.sqrt((before**2).sum(axis=1) * (after**2).sum(axis=1))
    assert (cosines < 0.999).all()


def test_lenet_with_sigmoids_learns() -> None:
    """As the book has it: sigmoid and averages. First run: 93.1 % of the digits held out after 8 epochs."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    x, labels, test_x, test_labels = nn.digits()
    model = nn.lenet5(activation=nn.Sigmoid, rng=0)
    assert count(model) == 61_706
    kinds = [type(layer) for layer in model.layers.values()]
    assert [kinds.count(kind) for kind in (nn.Sigmoid, nn.AvgPool, nn.MaxPool)] == [4, 2, 0]
    settings: dict[str, Any] = {"schedule": nn.cosine, "rng": 0, "progress": False}
    nn.fit(model, x, labels, epochs=8, batch_size=50, optimiser=nn.Adam(0.006), **settings)
    assert nn.accuracy(model, test_x, test_labels) > 0.8


# ---------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(nn.lenet5, 61_706), (nn.simple_conv_net, 433_890), (nn.vgg16, 138_357_544), (nn.resnet18, 11_689_512),
     (nn.resnet50, 25_557_032), (nn.alexnet, 61_100_840), (nn.mobilenet_v1, 4_231_976), (nn.googlenet, 7_005_832),
     (lambda init: nn.googlenet(init=init, widest=3), 6_624_904)],
)  # fmt: skip
def test_parameters(make: Any, parameters: int) -> None:
    assert count(make() if make in (nn.lenet5, nn.simple_conv_net) else make(init=0.0)) == parameters


def test_vgg16_is_convolutions_and_affine_layers() -> None:
    model = nn.vgg16(init=0.0)
    assert count(model.layers["features"]) == 14_714_688
    assert count(model.layers["classifier"]) == 123_642_856


def test_large_weights_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on any number of threads, normal, and no two blocks alike."""
    monkeypatch.setattr(nn.initial, "BLOCK", 1000)
    one, two = (nn.Linear(100, 95, rng=np.random.default_rng(3)).params["weight"].ravel() for _ in "ab")
    np.testing.assert_array_equal(one, two)
    assert len(np.unique(one)) > 9490
    assert abs(one.std() / np.sqrt(2 / 100) - 1) < 5 / np.sqrt(2 * one.size)


def test_googlenet_has_the_channels_of_the_paper() -> None:
    """Each block's output, and with a bias for each channel in place of batch normalisation, the known 6,998,552."""
    model = nn.googlenet(init=0.0)
    outs = [sum(row[i] for i in (0, 2, 4, 5)) for row in INCEPTIONS.values() if len(row) == 6]
    assert outs == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    assert model.params["inception3a.branch3.1.conv.weight"].shape == (32, 16, 5, 5)
    channels = sum(array.size for array in model.buffers.values()) // 2
    assert count(model) - channels == 6_998_552
    shapes: dict[str, tuple[int, ...]] = {}
    x = np.zeros((1, 3, 64, 64), "float32")
    for name, layer in model.layers.items():
        x = layer.forward(x)
        shapes[name] = x.shape
    assert [shapes[name][1] for name in INCEPTIONS if name.startswith("inception")] == outs
    # Halves, as 224 pixels become 56, 28, 14 and 7: without ceil_mode each pool would lose a row.
    assert [shapes[f"maxpool{number}"][2] for number in (1, 2, 3, 4)] == [16, 8, 4, 2]


def receptive_field(model: nn.Layer, last: str, size: int = 288) -> int:
    """How many pixels in a row the middle output of the feature layer `last` depends on, measured.

    All weights are positive and max pools are average pools, so that no dependence cancels and none is left out.
    """
    features: dict[str, nn.Layer] = {}
    for name, layer in model.layers["features"].layers.items():
        if isinstance(layer, nn.MaxPool):
            kernel, stride, padding, _, ceil_mode = layer._arguments
            features[name] = nn.AvgPool(kernel, stride, padding, ceil_mode)
        elif isinstance(layer, nn.Conv):
            layer.params["weight"][...] = 1
            features[name] = layer
        if name == last:
            break
    part = nn.Sequential(**features)
    dy = np.zeros_like(part.forward(np.ones((1, 1, size, size))))
    dy[:, :, dy.shape[2] // 2, dy.shape[3] // 2] = 1
    (reached,) = part.backward(dy)[0, 0].any(axis=0).nonzero()
    return int(reached[-1] - reached[0]) + 1


def test_receptive_fields_of_alexnet() -> None:
    """conv1 to conv5 and pool5; five convolutions, three pools, three affine layers."""
    model = nn.alexnet(in_channels=1, width=1, init=0.0, dtype="float64")
    fields = [receptive_field(model, last) for last in ("0", "3", "6", "8", "10", "12")]
    assert fields == [11, 51, 99, 131, 163, 195]
    kinds = [type(layer) for _, layer in model.named_layers()]
    assert [kinds.count(kind) for kind in (nn.Conv, nn.MaxPool, nn.Linear)] == [5, 3, 3]


def test_receptive_fields_of_vgg16() -> None:
    """conv5_3 and pool5."""
    model = nn.vgg16(in_channels=1, width=1, init=0.0, dtype="float64")
    assert [receptive_field(model, last) for last in ("28", "30")] == [196, 212]


# ---------------------------------------------------------------------------- torch


SMALL: dict[str, tuple[Callable[..., nn.Sequential], dict[str, int]]] = {
    "vgg16": (nn.vgg16, {"width": 4}),
    "alexnet": (nn.alexnet, {"width": 4}),
    "resnet18": (nn.resnet18, {"width": 8}),
    "resnet50": (nn.resnet50, {"width": 4}),
    "googlenet": (nn.googlenet, {"widest": 3}),
    "mobilenet_v1": (nn.mobilenet_v1, {"width": 4}),
}


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def state_of(twin: Any) -> dict[str, Any]:
    """What torch saves of it, as arrays; the running statistics are made different from where they begin."""
    rng = np.random.default_rng(0)
    arrays = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    for name, array in arrays.items():
        if name.endswith(("running_mean", "running_var")):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
    return arrays


@pytest.mark.oracle
@pytest.mark.parametrize("name", SMALL)
def test_torchvisions_weights_load_and_compute_the_same(torch: Any, name: str, tmp_path: Path) -> None:
    """Under the same names, from a file with torch's own counters; forward, and the gradient of the image."""
    from tests import twins

    make, size = SMALL[name]
    torch.manual_seed(0)
    twin = getattr(twins, name)(7, **size).double().eval()
    np.savez(tmp_path / "w.npz", **state_of(twin))
    ours = make(7, **size, init=0.0, dtype="float64")
    nn.load(ours, tmp_path / "w.npz")
    x = random(2, 3, 64, 64)
    given = torch.from_numpy(x).requires_grad_()
    expected = twin(given)
    dy = random(*expected.shape)
    expected.backward(torch.from_numpy(dy))
    near(ours.forward(x), expected)
    near(ours.backward(dy), given.grad)


@pytest.mark.parametrize(
    ("backend", "make"),
    [(name, make) for name in BACKENDS for make in (nn.alexnet, nn.vgg16, nn.resnet18)
     if name != "naive" or make is nn.alexnet],
)  # fmt: skip
def test_every_backend_computes_the_same_logits(backend: str, make: Any) -> None:
    """Within what roundings can do, seen by moving every weight by as much as they could."""
    model = make(5, in_channels=1, width=2, **F64)
    x = random(1, 1, 64, 64)
    with fc.use_backend("im2col"):
        exact = model.forward(x)
        rng = np.random.default_rng(0)
        moved = testing._roundings(1152) * testing.ROUNDOFF["float64"]
        other = make(5, in_channels=1, width=2, **F64)
        other.convert(lambda array: array * (1 + moved * rng.choice([-1.0, 1.0], array.shape)))
        allowed = np.abs(other.forward(x) - exact).max()
    with fc.use_backend(backend):
        assert np.abs(model.forward(x)).max() > 0
        assert np.abs(model.forward(x) - exact).max() <= allowed


# ---------------------------------------------------------------------------- files


def as_keras(state: dict[str, Any], side: int = 7) -> dict[str, Any]:
    """Weights of VGG16 as Keras keeps them."""
    made = {}
    for ours, name in {place: name for name, place in keras.PLACES.items()}.items():
        weight, bias = state[f"{ours}.weight"], state[f"{ours}.bias"]
        if weight.ndim == 4:
            kernel = np.moveaxis(weight, (0, 1), (3, 2))
        elif name == "fc1":
            images = weight.reshape(len(weight), -1, side, side)
            kernel = np.stack([image.transpose(1, 2, 0).ravel() for image in images], axis=1)
        else:
            kernel = weight.T
        made[f"{name}/kernel"], made[f"{name}/bias"] = kernel, bias
    return made


@pytest.mark.parametrize(
    "spelt",
    [
        lambda name: name,
        lambda name: f"vgg16/{name}:0",
        lambda name: name.replace("/", "."),
        lambda name: "{0}/{0}_{1}_1:0".format(*name.replace("kernel", "W").replace("bias", "b").split("/")),
    ],
)
def test_keras_names_of_vgg16(spelt: Callable[[str], str], tmp_path: Path) -> None:
    model, loaded = nn.vgg16(5, width=2, **F64), nn.vgg16(5, width=2, init=0.0, dtype="float64")
    for name, array in model.params.items():
        array += random(*array.shape) * name.endswith("bias")
    arrays = {spelt(name): array for name, array in as_keras(model.params).items()}
    np.savez(tmp_path / "w.npz", **arrays)
    nn.load(loaded, tmp_path / "w.npz")
    for name, array in model.params.items():
        np.testing.assert_array_equal(loaded.params[name], array)


def test_keras_files_that_do_not_fit(tmp_path: Path) -> None:
    model = nn.vgg16(5, width=2, **F64)
    arrays = as_keras(model.params)
    wrong: dict[str, dict[str, Any]] = {
        "expected a kernel of 4 axes": {"block1_conv1/kernel": np.ones((3, 3))},
        "of 16 channels of a square image": {"fc1/kernel": np.ones((16 * 48, 128))},
        r"lacks 'features\.0\.bias'": {"block1_conv1/bias": None},
        "a name of Keras' VGG16": {"block6_conv1/kernel": np.ones((3, 3, 1, 1))},
    }
    for words, change in wrong.items():
        changed = {name: array for name, array in (arrays | change).items() if array is not None}
        np.savez(tmp_path / "w.npz", **changed)
        with pytest.raises(ValueError, match=words):
            nn.load(model, tmp_path / "w.npz")


def as_onnx(arrays: dict[str, Any], path: Path) -> None:
    """A model in ONNX that begins with `arrays`, and with a shape, as every exported network does."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    made = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made.append(onnx.numpy_helper.from_array(np.array([1, -1]), "shape"))
    graph = onnx.helper.make_graph([], "weights", [], [], initializer=made)
    onnx.save(onnx.helper.make_model(graph), path)


def test_weights_of_onnx(tmp_path: Path) -> None:
    model, loaded, x = (
        nn.resnet18(5, width=2, **F64),
        nn.resnet18(5, width=2, init=0.0, dtype="float64"),
        random(2, 3, 32, 32),
    )
    model.forward(x, train=True)  # moves the running statistics
    as_onnx({**model.params, **model.buffers}, tmp_path / "w.onnx")
    nn.load(loaded, tmp_path / "w.onnx")
    np.testing.assert_array_equal(loaded.forward(x), model.forward(x))
    (tmp_path / "w.onnx").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"w\.onnx is no \.onnx file"):
        nn.load(loaded, tmp_path / "w.onnx")
    with pytest.raises(
        ValueError, match=r"got 'w\.onnx', expected a name that ends in \.npz or \.safetensors$"
    ):
        nn.save(model, tmp_path / "w.onnx")


def test_what_only_training_needs_is_left_in_the_file(tmp_path: Path) -> None:
    """GoogLeNet's side classifiers and counters; but a layer of one's own may be called so."""
    model = nn.googlenet(3, init=0.0)
    more: dict[str, Any] = {
        "aux1.conv.conv.weight": np.ones(3),
        "aux2.fc2.bias": np.ones(3),
        "conv1.bn.num_batches_tracked": np.array(7),
    }
    np.savez(tmp_path / "w.npz", **{**model.params, **model.buffers}, **more)
    nn.load(model, tmp_path / "w.npz")
    own = nn.Sequential(aux1=nn.Linear(1, 1, rng=0))
    nn.save(own, tmp_path / "w.npz")
    again = nn.Sequential(aux1=nn.Linear(1, 1, rng=1))
    nn.load(again, tmp_path / "w.npz")
    np.testing.assert_array_equal(again.params["aux1.weight"], own.params["aux1.weight"])


@pytest.mark.oracle
def test_vgg16_whole(torch: Any, tmp_path: Path) -> None:
    """A file of 553 MB with torchvision's names, one image: the same logits within 1e-4, the same best five."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from tests import twins

    model, path = nn.vgg16(rng=0), tmp_path / "vgg16.safetensors"
    nn.save(model, path)
    twin = twins.vgg16().eval()
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in model.params.items()}, assign=True)
    x = random(1, 3, 224, 224).astype("float32")
    with torch.inference_mode():
        expected = twin(torch.from_numpy(x)).numpy()
    loaded = nn.vgg16(init=0.0)
    nn.load(loaded, path)
    path.unlink()
    logits = loaded.forward(x)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(np.argsort(logits[0])[-5:], np.argsort(expected[0])[-5:])


# ---------------------------------------------------------------------------- inference


def moved(model: nn.Layer, shape: tuple[int, ...]) -> nn.Layer:
    """`model` with parameters and statistics of batch normalisations that are not those they begin with."""
    model.forward(random(*shape), train=True)
    rng = np.random.default_rng(7)
    for array in model.params.values():
        if array.ndim == 1:
            array += rng.uniform(0.1, 0.5, array.shape)
    return model


FOLDED: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "resnet18": (lambda: nn.resnet18(5, width=4, **F64), (2, 3, 40, 40)),
    "resnet50": (lambda: nn.resnet50(5, width=2, **F64), (2, 3, 40, 40)),
    "mobilenet_v1": (lambda: nn.mobilenet_v1(5, width=4, **F64), (2, 3, 40, 40)),
    "inception": (lambda: inception(4, 2, 3, 4, 1, 2, 3, **F64), (2, 4, 9, 9)),
    "bias, groups, one axis": (
        lambda: nn.Sequential(nn.Conv(4, 6, (3,), groups=2, **F64), nn.BatchNorm(6, dtype="float64")), (3, 4, 9),
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose(4, 6, 3, 2, groups=2, **F64), nn.BatchNorm(6, dtype="float64"), nn.ReLU()
        ),
        (2, 4, 3, 5),
    ),
    "affine": (
        lambda: nn.Sequential(nn.Linear(5, 4, **F64), nn.BatchNorm(4, dtype="float64"), nn.Tanh()), (3, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_folded_networks_compute_the_same(name: str) -> None:
    make, shape = FOLDED[name]
    model, x = moved(make(), shape), random(*shape)
    before = {key: array.copy() for key, array in model.params.items()}
    expected = model.forward(x)
    folded = nn.fold_batch_norm(model)
    assert not folded.buffers
    near(folded.forward(x), expected)
    for array in folded.params.values():
        array[...] = np.nan  # nothing is shared
    for key, array in model.params.items():
        np.testing.assert_array_equal(array, before[key])
    near(nn.prepare(nn.fold_batch_norm(model))(x), expected)


def test_only_a_normalisation_right_after_a_convolution_is_folded() -> None:
    model = nn.Sequential(
        norm=nn.BatchNorm(2, dtype="float64"), conv=nn.Conv(2, 3, 1, **F64), relu=nn.ReLU(),
        late=nn.BatchNorm(3, dtype="float64"),
    )  # fmt: skip
    model = moved(model, (3, 2, 4, 4))  # type: ignore[assignment]
    folded, x = nn.fold_batch_norm(model), random(2, 2, 4, 4)
    assert list(folded.layers) == list(model.layers)
    np.testing.assert_array_equal(folded.forward(x), model.forward(x))


@pytest.mark.parametrize(
    ("make", "shape"),
    [*FOLDED.values(), (lambda: nn.vgg16(5, width=2, **F64), (1, 3, 40, 40)), (lambda: nn.lenet5(**F64), (2, 1, 28, 28)),
     (residual, (2, 2, 4, 5)), (lambda: nn.Conv(2, 3, 3, **F64), (2, 2, 4, 5)), (nn.ReLU, (2, 3))],
)  # fmt: skip
def test_prepared_networks_compute_the_same_and_keep_nothing(make: Any, shape: tuple[int, ...]) -> None:
    model = make()
    if model.buffers:
        model = moved(model, shape)
    x = random(*shape)
    given = x.copy()
    expected = model.forward(x)
    model.backward(np.ones_like(expected))
    ready = nn.prepare(model)
    near(ready(x), expected)
    near(ready(x[:1]), expected[:1])  # another batch
    np.testing.assert_array_equal(x, given)
    inside = [ready._model, *(layer for _, layer in ready._model.named_layers())]
    assert all(layer._kept is None for layer in inside)
    with pytest.raises(RuntimeError, match="there was no forward"):
        model.backward(np.ones_like(expected))  # the model itself has not been touched


def test_a_prepared_network_serves_many_threads() -> None:
    ready = nn.prepare(nn.fold_batch_norm(nn.resnet18(5, width=4, **F64)))
    images = [random(1, 3, 32, 32) + place for place in range(8)]
    expected = [ready(x) for x in images]
    with ThreadPoolExecutor(4) as threads:
        for got, y in zip(threads.map(ready, images), expected, strict=True):
            np.testing.assert_array_equal(got, y)


def test_prepared_networks_pack_their_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []
    pack = Plan.pack

    def counted(plan: Plan, weight: Any) -> Any:
        if plan.run.pack is not None:
            packed.append(str(plan.spec))
        return pack(plan, weight)

    monkeypatch.setattr(Plan, "pack", counted)
    ready, x = nn.prepare(nn.lenet5(**F64)), random(1, 1, 28, 28)
    ready(x)
    once = len(packed)
    ready(x + 1)
    assert len(packed) == once > 0


def test_a_prepared_network_holds_nothing_once_it_has_computed() -> None:
    """A forward holds the inputs of all layers until their backward."""
    model, x = nn.vgg16(5, width=8, rng=0), np.ones((2, 3, 64, 64), "float32")
    ready = nn.prepare(model)

    def held(function: Callable[[Any], Any]) -> int:
        function(x)  # packs, and remembers plans
        for _, layer in model.named_layers():
            layer._kept = None
        tracemalloc.start()
        function(x)
        now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return now

    # Two outputs of ReLUs in each block at least, of 8, 16, 32, 64 and 64 channels of 64, 32, 16, 8 and 4 pixels.
    results = 4 * 2 * sum(2 * c * size * size for c, size in ((8, 64), (16, 32), (32, 16), (64, 8), (64, 4)))
    assert held(ready) < 0.02 * results < results < held(model.forward)
