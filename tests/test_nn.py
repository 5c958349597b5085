"""Layers, losses, optimisers and training: each gradient, each backend, both formats, and digits recognised."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

import fastconv as fc
from fastconv import cli, nn, testing
from fastconv.backends import _BACKENDS, _Row, get
from fastconv.plan import plan
from tests.test_gradients import BACKENDS, close, numeric, random, separated


def whole(*shape: int) -> Any:
    return np.random.default_rng(list(shape)).integers(-3, 4, shape).astype("float64")


class Case(NamedTuple):
    """A layer in float64, the shape of what it takes, and the same layer in torch."""

    name: str
    make: Callable[[], nn.Layer]
    shape: tuple[int, ...]
    torch: Callable[[Any], Any]
    linear: bool = True  # in its input, once parameters and masks are fixed
    on_backends: bool = False

    def __str__(self) -> str:
        return self.name


F64: dict[str, Any] = {"rng": 1, "dtype": "float64"}
CASES = [
    Case(
        "conv 1d",
        lambda: nn.Conv(2, 3, (3,), stride=2, padding=1, **F64),
        (2, 2, 7),
        lambda t: t.Conv1d(2, 3, 3, 2, 1),
        on_backends=True,
    ),
    Case(
        "conv 2d",
        lambda: nn.Conv(2, 4, 3, padding=(1, 0), dilation=(1, 2), groups=2, padding_mode="reflect", **F64),
        (2, 2, 4, 5),
        lambda t: t.Conv2d(2, 4, 3, 1, (1, 0), (1, 2), 2, padding_mode="reflect"),
        on_backends=True,
    ),
    Case(
        "conv 3d without bias",
        lambda: nn.Conv(1, 2, (2, 3, 2), bias=False, **F64),
        (2, 1, 3, 4, 3),
        lambda t: t.Conv3d(1, 2, (2, 3, 2), bias=False),
        on_backends=True,
    ),
    Case(
        "conv transpose 2d",
        lambda: nn.ConvTranspose(4, 2, 3, 2, 1, 1, 2, dilation=2, **F64),
        (2, 4, 3, 2),
        lambda t: t.ConvTranspose2d(4, 2, 3, 2, 1, 1, 2, dilation=2),
        on_backends=True,
    ),
    Case(
        "max pool",
        lambda: nn.MaxPool(3, 2, 1, ceil_mode=True),
        (2, 2, 5, 6),
        lambda t: t.MaxPool2d(3, 2, 1, ceil_mode=True),
        linear=False,
        on_backends=True,
    ),
    Case(
        "avg pool",
        lambda: nn.AvgPool((2,), 1, 1, count_include_pad=False),
        (2, 2, 5),
        lambda t: t.AvgPool1d(2, 1, 1, count_include_pad=False),
        on_backends=True,
    ),
    Case("linear", lambda: nn.Linear(5, 3, **F64), (4, 5), lambda t: t.Linear(5, 3)),
    Case("flatten", nn.Flatten, (2, 2, 3), lambda t: t.Flatten()),
    Case("relu", nn.ReLU, (3, 7), lambda t: t.ReLU(), linear=False),
    Case("leaky relu", lambda: nn.LeakyReLU(0.25), (3, 7), lambda t: t.LeakyReLU(0.25), linear=False),
    Case("sigmoid", nn.Sigmoid, (3, 7), lambda t: t.Sigmoid(), linear=False),
    Case("tanh", nn.Tanh, (3, 7), lambda t: t.Tanh(), linear=False),
    Case("silu", nn.SiLU, (3, 7), lambda t: t.SiLU(), linear=False),
    Case(
        "batch norm",
        lambda: nn.BatchNorm(2, dtype="float64"),
        (3, 2, 4),
        lambda t: t.BatchNorm1d(2),
        linear=False,
    ),
]


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """Every case, and on every backend where a backend computes it."""
    pairs = [(case, name) for case in cases for name in (BACKENDS if case.on_backends else ["auto"])]
    return pytest.mark.parametrize(("case", "backend"), pairs, ids=str)


def results(layer: nn.Layer, x: Any, dy: Any, train: bool) -> dict[str, Any]:
    """Everything one forward and backward give."""
    y = layer.forward(x, train)
    return {"y": y, "x": layer.backward(dy), **layer.grads}


# ---------------------------------------------------------------------------- gradients


@each(CASES)
@pytest.mark.parametrize("train", [True, False])
def test_gradients(case: Case, backend: str, train: bool) -> None:
    layer, x = case.make(), separated(*case.shape)
    with fc.use_backend(backend):
        dy = random(*layer.forward(x, train).shape)
        made = results(layer, x, dy, train)
        close(made["x"], numeric(lambda v: layer.forward(v, train), x, dy))
        assert set(layer.grads) == set(layer.params)
        for name, param in layer.params.items():
            close(made[name], numeric(lambda _: layer.forward(x, train), param, dy))


@each([case for case in CASES if case.linear])
def test_adjoint_identity(case: Case, backend: str) -> None:
    """<f(x) - f(0), dy> = <x, backward(dy)>, exactly, for whole numbers."""
    layer = case.make()
    for param in layer.params.values():
        param[...] = whole(*param.shape)
    x = whole(*case.shape)
    with fc.use_backend(backend):
        offset = layer.forward(np.zeros_like(x))
        dy = whole(*offset.shape) * 2
        forward = np.vdot(layer.forward(x) - offset, dy)
        assert forward == np.vdot(x, layer.backward(dy)) != 0


def test_dropout_drops_a_share_and_its_gradient_follows() -> None:
    layer, x = nn.Dropout(0.25, rng=0), np.ones((100, 100))
    y = layer.forward(x, train=True)
    assert set(np.unique(y)) == {0, 1 / 0.75}
    # A share of 10,000 draws is off by more than 5 of its deviations once in two million runs.
    assert abs((y == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / x.size)
    np.testing.assert_array_equal(layer.backward(x), y)
    assert layer.forward(x) is x
    np.testing.assert_array_equal(layer.backward(x), x)


def test_a_network_backwards_is_its_layers_backwards() -> None:
    model = nn.Sequential(
        nn.Conv(1, 2, 3, **F64), nn.Tanh(), block=nn.Sequential(nn.Flatten(), nn.Linear(8, 3, **F64))
    )
    x, dy = random(2, 1, 4, 4), random(2, 3)
    made = results(model, x, dy, True)
    assert list(model.params) == ["0.weight", "0.bias", "block.1.weight", "block.1.bias"]
    close(made["x"], numeric(model.forward, x, dy))
    for name, param in model.params.items():
        close(made[name], numeric(lambda _: model.forward(x), param, dy))
    assert "with 47 parameters" in repr(model)
    assert "block" in repr(model)


def test_no_gradient_below_the_first_layer_that_learns() -> None:
    model = nn.Sequential(nn.AvgPool(2), nn.Conv(1, 1, 1, **F64), nn.ReLU())
    x = random(1, 1, 4, 4)
    wanted = results(model, x, np.ones((1, 1, 2, 2)), True)
    model.forward(x, train=True)
    assert model.backward(np.ones((1, 1, 2, 2)), input_grad=False) is None
    for name, gradient in model.grads.items():
        np.testing.assert_array_equal(gradient, wanted[name])


def test_each_backward_needs_a_forward() -> None:
    layer = nn.ReLU()
    with pytest.raises(RuntimeError, match=r"ReLU\.backward: there was no forward"):
        layer.backward(np.ones(2))
    layer.forward(np.ones(2))
    layer.backward(np.ones(2))
    with pytest.raises(RuntimeError, match="no forward since"):
        layer.backward(np.ones(2))


def test_extreme_values() -> None:
    """Nothing overflows on the way to a finite answer (warnings are errors here), and NaN stays NaN."""
    x = np.array([[-1e4, -100, 0, 100, 1e4]], "float32")
    for layer in (nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.ReLU(), nn.LeakyReLU()):
        y = layer.forward(x)
        assert y.dtype == "float32"
        assert np.isfinite(y).all()
        assert np.isfinite(layer.backward(np.ones_like(x))).all()
        assert np.isnan(layer.forward(np.full((1, 1), np.nan))).all()
    loss, dlogits = nn.softmax_cross_entropy(x, np.array([0]))
    assert loss == 2e4
    np.testing.assert_array_equal(dlogits, [[-1, 0, 0, 0, 1]])
    assert nn.Conv(1, 2, 1).forward(np.zeros((0, 1, 3, 3), "float32")).shape == (0, 2, 3, 3)


def test_loss_and_its_gradient() -> None:
    logits, labels = random(4, 3), np.array([2, 0, 1, 1], "uint8")
    loss, dlogits = nn.softmax_cross_entropy(logits, labels)
    close(
        dlogits,
        numeric(lambda v: np.array(nn.softmax_cross_entropy(v, labels)[0]), logits, np.array(1.0)),
    )
    chosen = nn.softmax(logits)[np.arange(4), labels]
    close(np.array([loss]), np.array([-np.log(chosen).mean()]))


# ---------------------------------------------------------------------------- beginnings


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (lambda init: nn.Conv(8, 16, 5, groups=2, init=init, rng=0), 100, 200),
        (lambda init: nn.ConvTranspose(8, 16, 4, stride=2, init=init, rng=0), 32, 256),
        (lambda init: nn.Linear(40, 60, init=init, rng=0), 40, 60),
    ],
)
def test_weights_begin_as_asked(layer: Any, fan_in: int, fan_out: int) -> None:
    asked = {"he": 2 / fan_in, "xavier": 2 / (fan_in + fan_out), "plain": 1e-4, 0.5: 0.25}
    for init, variance in asked.items():
        made = layer(init)
        weight = made.params["weight"]
        # The deviation of n normal numbers is itself off by 1 / sqrt(2 n), five times that once in two million.
        assert abs(weight.std() / math.sqrt(variance) - 1) < 5 / math.sqrt(2 * weight.size)
        assert not made.params["bias"].any()
        np.testing.assert_array_equal(weight, layer(init).params["weight"])


def test_layers_that_share_a_generator_begin_apart() -> None:
    a, b = (model.params for model in (nn.simple_conv_net(8, rng=3), nn.simple_conv_net(8, rng=4)))
    same = nn.simple_conv_net(8, rng=3).params
    wide = nn.simple_conv_net(8, rng=3, dtype="float64").params
    for name in (name for name in a if name.endswith("weight")):
        np.testing.assert_array_equal(a[name], same[name])
        np.testing.assert_array_equal(a[name], wide[name].astype("float32"))
        assert (a[name] != b[name]).any()


# ---------------------------------------------------------------------------- torch


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def near(got: Any, expected: Any) -> None:
    """Off by the roundings of one float64 computation, of at most a thousand operations, on numbers of one scale."""
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    assert got.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0)), 1.0)
    assert float(np.abs(got - expected).max(initial=0)) <= 1000 * testing.ROUNDOFF["float64"] * scale


@pytest.mark.oracle
@pytest.mark.parametrize("train", [True, False])
@each(CASES)
def test_torch_agrees(torch: Any, case: Case, backend: str, train: bool) -> None:
    layer, theirs, x = case.make(), case.torch(torch.nn).double().train(train), random(*case.shape)
    theirs.load_state_dict(
        {name: torch.from_numpy(array) for name, array in {**layer.params, **layer.buffers}.items()},
        strict=False,
    )
    given = torch.from_numpy(x).requires_grad_()
    expected = theirs(given)
    dy = random(*expected.shape)
    expected.backward(torch.from_numpy(dy))
    with fc.use_backend(backend):
        made = results(layer, x, dy, train)
    near(made["y"], expected)
    near(made["x"], given.grad)
    for name, param in theirs.named_parameters():
        near(made[name], param.grad)
    for name, buffer in layer.buffers.items():
        near(buffer, getattr(theirs, name))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: nn.SGD(0.1), lambda t, p: t.optim.SGD(p, 0.1)),
        (lambda: nn.SGD(0.1, 0.9), lambda t, p: t.optim.SGD(p, 0.1, 0.9)),
        (lambda: nn.Adam(0.01), lambda t, p: t.optim.Adam(p, 0.01)),
    ],
)
def test_torch_takes_the_same_steps(torch: Any, ours: Any, theirs: Any) -> None:
    params = {"a": random(3, 2), "b": random(4)}
    tensors = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in params.items()}
    optimiser, other = ours(), theirs(torch, tensors.values())
    for step in range(4):
        grads = {name: random(step + 1, *array.shape)[step] for name, array in params.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[name])
        optimiser.step(params, grads)
        other.step()
    for name, tensor in tensors.items():
        near(params[name], tensor)


@pytest.mark.oracle
def test_torch_has_the_same_loss(torch: Any) -> None:
    logits, labels = random(6, 4) * 20, np.arange(6) % 4
    given = torch.from_numpy(logits).requires_grad_()
    expected = torch.nn.functional.cross_entropy(given, torch.from_numpy(labels))
    expected.backward()
    loss, dlogits = nn.softmax_cross_entropy(logits, labels)
    near(np.array(loss), expected)
    near(dlogits, given.grad)


@pytest.mark.oracle
def test_weights_of_torch_fit(torch: Any, tmp_path: Path) -> None:
    t = torch.nn
    theirs = t.Sequential(t.Conv2d(1, 3, 3), t.Sigmoid(), t.Flatten(), t.Linear(12, 2)).double()
    ours = nn.Sequential(nn.Conv(1, 3, 3, **F64), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 2, **F64))
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    nn.load(ours, tmp_path / "w.npz")
    x = random(2, 1, 4, 4)
    near(ours.forward(x), theirs(torch.from_numpy(x)))


# ---------------------------------------------------------------------------- files


def test_layers_inside_layers_are_named_by_their_path() -> None:
    model = nn.Sequential(
        nn.ReLU(), block=nn.Sequential(conv=nn.Conv(1, 2, 3), deep=nn.Sequential(nn.Tanh()))
    )
    found = dict(model.named_layers())
    assert list(found) == ["0", "block", "block.conv", "block.deep", "block.deep.0"]
    assert [f"{name}.{key}" for name, layer in found.items() for key in layer.params if not layer.layers] == [
        *model.params
    ]
    assert found["block.conv"] is model.layers["block"].layers["conv"]


def network(seed: int) -> nn.Sequential:
    return nn.Sequential(conv=nn.Conv(1, 2, 3, rng=seed), norm=nn.BatchNorm(2), flatten=nn.Flatten())


@pytest.fixture(params=[".npz", ".safetensors"])
def ending(request: pytest.FixtureRequest) -> str:
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    return str(request.param)


def test_what_is_saved_is_loaded(ending: str, tmp_path: Path) -> None:
    trained, fresh, x = network(0), network(1), random(3, 1, 5, 5).astype("float32")
    trained.forward(x, train=True)  # moves the running statistics
    kept = fresh.params["conv.weight"]
    nn.save(trained, tmp_path / f"w{ending}")
    nn.load(fresh, str(tmp_path / f"w{ending}"))
    np.testing.assert_array_equal(fresh.forward(x), trained.forward(x))
    assert fresh.params["conv.weight"] is kept  # in place: optimisers and views stay valid


def test_what_does_not_fit_changes_nothing(ending: str, tmp_path: Path) -> None:
    path, model = tmp_path / f"w{ending}", network(0)
    before = {name: array.copy() for name, array in model.params.items()}
    wrong = {
        "lacks 'norm.weight'": nn.Sequential(conv=nn.Conv(1, 2, 3)),
        r"holds an unexpected 'more\.(weight|bias)'": nn.Sequential(
            **network(1).layers, more=nn.Linear(2, 2)
        ),
        r"'conv.weight' of shape \(2, 1, 5, 5\)": nn.Sequential(conv=nn.Conv(1, 2, 5), norm=nn.BatchNorm(2)),
        "in float64, expected .* in float32": nn.Sequential(
            conv=nn.Conv(1, 2, 3, dtype="float64"), norm=nn.BatchNorm(2)
        ),
    }
    for words, other in wrong.items():
        nn.save(other, path)
        with pytest.raises(ValueError, match=words):
            nn.load(model, path)
    path.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="path: w"):
        nn.load(model, path)
    with pytest.raises(FileNotFoundError):
        nn.load(model, tmp_path / f"none{ending}")
    for name, array in model.params.items():
        np.testing.assert_array_equal(array, before[name])


def test_files_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"path: got 'w\.pt', expected a name that ends in \.npz or"):
        nn.save(network(0), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="folder that exists"):
        nn.save(network(0), tmp_path / "no" / "w.npz")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install \"fastconv\[safetensors\]\""):
        nn.save(network(0), tmp_path / "w.safetensors")


# ---------------------------------------------------------------------------- refusals


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: nn.Conv(0, 1, 3), ValueError, "in_channels: got 0"),
    (lambda: nn.Conv(1, 1.5, 3), TypeError, "out_channels: got 1.5"),  # type: ignore[arg-type]
    (lambda: nn.Conv(3, 4, 3, groups=2), ValueError, "groups: got 2, expected a divisor of in_channels, 3"),
    (lambda: nn.Conv(1, 1, (3, 3, 3, 3)), ValueError, "kernel_size"),
    (lambda: nn.Conv(1, 1, 3, stride=0), ValueError, "stride: got 0"),
    (
        lambda: nn.Conv(1, 1, 3, init="good"),
        ValueError,
        "init: got 'good', expected one of he, xavier, plain",
    ),
    (lambda: nn.Linear(1, 1, init=-1.0), ValueError, "init: got -1.0"),
    (lambda: nn.Linear(2, 1, dtype="float16"), ValueError, "dtype: got 'float16', expected 'float32' or"),
    (
        lambda: nn.Linear(2, 1).forward(np.ones((2, 3))),
        ValueError,
        r"x: got shape \(2, 3\), expected \(batch, 2\)",
    ),
    (lambda: nn.Linear(2, 1).forward(np.ones((2, 2, 1))), ValueError, "Flatten"),
    (lambda: nn.MaxPool(0), ValueError, "kernel_size: got 0"),
    (lambda: nn.Dropout(1.0), ValueError, "p: got 1.0"),
    (lambda: nn.BatchNorm(2).forward(np.ones((2, 3, 1))), ValueError, r"expected \(batch, 2, ...\)"),
    (lambda: nn.BatchNorm(2).forward(np.ones((1, 2)), train=True), ValueError, "at least two values"),
    (lambda: nn.Sequential(), ValueError, "layers: got none"),
    (lambda: nn.Sequential(np.tanh), TypeError, "layer 0: got ufunc"),  # type: ignore[arg-type]
    (lambda: nn.SGD(0), ValueError, "lr: got 0"),
    (lambda: nn.SGD(0.1, 1.0), ValueError, "momentum: got 1.0"),
    (lambda: nn.Adam(math.nan), ValueError, "lr: got nan"),
    (lambda: nn.Adam().step({"w": np.ones(1)}, {}), ValueError, "grads: got none for 'w'"),
    (
        lambda: nn.softmax_cross_entropy(np.ones((2, 3)), np.array([0])),
        ValueError,
        r"labels: got shape \(1,\)",
    ),
    (lambda: nn.softmax_cross_entropy(np.ones((1, 3)), np.array([3])), ValueError, "labels: got 3 to 3"),
    (
        lambda: nn.softmax_cross_entropy(np.ones((1, 3)), np.array([0.0])),
        TypeError,
        "labels: got dtype float64",
    ),
    (lambda: nn.softmax_cross_entropy(np.ones((0, 3)), np.zeros(0, int)), ValueError, "logits: got shape"),
    (lambda: nn.fit(nn.Flatten(), np.ones((2, 2)), np.zeros(3, int)), ValueError, "labels: got shape"),
    (lambda: nn.fit(nn.Flatten(), np.ones((2, 2)), np.zeros(2, int), epochs=0), ValueError, "epochs: got 0"),
    (lambda: nn.accuracy(nn.Flatten(), np.ones((0, 2)), np.zeros(0, int)), ValueError, "at least one"),
    (lambda: nn.simple_conv_net(5), ValueError, "size: got 5"),
    (lambda: nn.digits(held_out=1797), ValueError, "held_out: got 1797"),
]


@pytest.mark.parametrize(("act", "error", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_input_is_refused_in_words(act: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        act()


# ---------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def digits() -> Any:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    return nn.digits()


def test_digits_are_enlarged_and_standardised(digits: Any) -> None:
    assert digits.x.shape == (1437, 1, 28, 28)
    assert digits.test_x.shape == (360, 1, 28, 28)
    assert digits.x.dtype == "float32"
    assert set(digits.labels) == set(digits.test_labels) == set(range(10))
    assert abs(digits.x.mean(dtype="f8")) < 1e-6
    assert abs(digits.x.std(dtype="f8") - 1) < 1e-6
    zoom = pytest.importorskip("scipy.ndimage").zoom
    image = random(8, 8)
    near(nn.data.enlarged(image, 28), zoom(image, 3.5, order=1, grid_mode=True, mode="nearest"))
    near(nn.data.enlarged(image, 8), image)


def test_shifted_moves_by_a_pixel_at_most() -> None:
    x, rng = random(2, 1, 4, 5), np.random.default_rng(0)
    framed = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    allowed = {framed[..., i : i + 4, j : j + 5].tobytes() for i in range(3) for j in range(3)}
    assert {nn.shifted(x, rng).tobytes() for _ in range(200)} == allowed


@pytest.mark.parametrize(
    ("make", "epochs", "rate"), [(nn.simple_conv_net, 12, 0.004), (nn.lenet5, 16, 0.006)]
)
def test_digits_are_recognised(digits: Any, make: Any, epochs: int, rate: float) -> None:
    """At least 98 % of the digits held out."""
    model, optimiser = make(rng=0), nn.Adam(rate)
    history = nn.fit(
        model, digits.x, digits.labels, epochs=epochs, batch_size=50, optimiser=optimiser,
        test=(digits.test_x, digits.test_labels), schedule=nn.cosine, augment=nn.shifted, rng=0, progress=False,
    )  # fmt: skip
    last = history[-1]
    assert last.test_accuracy == nn.accuracy(model, digits.test_x, digits.test_labels)
    assert last.test_accuracy >= 0.98
    assert last.loss < history[0].loss / 5
    assert all(epoch.seconds > 0 for epoch in history)
    assert optimiser.lr == rate


def test_a_seed_gives_the_same_bits(digits: Any) -> None:
    def train(seed: int) -> tuple[list[float], dict[str, Any]]:
        rng = np.random.default_rng(seed)
        model = nn.Sequential(nn.Dropout(0.2, rng=rng), nn.Flatten(), nn.Linear(64, 10, rng=rng))
        small = np.ascontiguousarray(digits.x[:100, :, 2::3, 2::3][..., :8, :8])
        history = nn.fit(
            model, small, digits.labels[:100], epochs=2, batch_size=30, augment=nn.shifted, rng=rng,
            progress=False,
        )  # fmt: skip
        return [epoch.loss for epoch in history], model.params

    (losses, params), (again, same), (other, _) = train(5), train(5), train(6)
    assert losses == again != other
    for name, array in params.items():
        np.testing.assert_array_equal(array, same[name])


def curve(make: Any, backend: str, dtype: str, x: Any, labels: Any, wobble: float = 0.0) -> Any:
    """The losses of a few steps; `wobble` moves every weight by that share of itself, up or down, in each."""
    model, optimiser, rng = make(rng=0, dtype=dtype), nn.SGD(0.05, 0.9), np.random.default_rng(1)
    losses = []
    with fc.use_backend(backend):
        for _ in range(3):
            for param in model.params.values():
                param *= 1 + wobble * rng.choice([-1.0, 1.0], param.shape)
            losses.append(nn.train_step(model, optimiser, x.astype(dtype), labels)[0])
    return np.array(losses)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("make", "size", "batch"),
    [(lambda **kw: nn.simple_conv_net(8, **kw), 8, 6), (nn.lenet5, 28, 1)],
    ids=["simple", "lenet"],
)
def test_the_loss_curve_is_the_same_on_every_backend(
    digits: Any, backend: str, dtype: str, make: Any, size: int, batch: int
) -> None:
    """Within what the roundings of its sums can do.

    A sum of K products in arithmetic of unit roundoff u is the exact sum of products of weights moved by
    ``min(K, 10 sqrt(K)) u`` at most (testing.tolerance), and no sum here has more than 784 terms (a gradient of
    LeNet's first layer). So a network in float64 whose weights are moved by that much in each step shows how far
    the curve may be off.
    """
    x, labels = nn.digits(size).x[:batch], digits.labels[:batch]
    exact = curve(make, "im2col", "float64", x, labels)
    moved = testing._roundings(784) * testing.ROUNDOFF[dtype]
    allowed = np.abs(curve(make, "im2col", "float64", x, labels, moved) - exact).max()
    assert 0 < allowed < 1e-3 * exact.max()
    assert np.abs(curve(make, backend, dtype, x, labels) - exact).max() <= allowed


def test_the_command(tmp_path: Path) -> None:
    weights = tmp_path / "weights.npz"
    arguments = ["train", "--model", "lenet", "--data", "digits", "--epochs", "1", "--output", str(weights)]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "lenet on 1,437 digits, 360 held out" in result.output
    assert "of the images held out are recognised" in result.output
    nn.load(nn.lenet5(), weights)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "vgg"], "--model: got 'vgg', expected one of simple, lenet"),
        (["--data", "mnist"], "--data: got 'mnist', expected one of digits"),
        (["--backend", "cuda"], "got 'cuda'"),
        (["--epochs", "0"], "epochs: got 0"),
        (["--rate", "-1"], "lr: got -1"),
        (["--seed", "-1"], "--seed: got -1"),
        (["--output", "weights.pt"], "got 'weights.pt'"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli.app, ["train", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output


# ---------------------------------------------------------------------------- arrays of another kind


class OnDevice(np.lib.mixins.NDArrayOperatorsMixin):
    """Behaves as CuPy's arrays do: NumPy's functions work on it, and it never becomes a NumPy array in silence."""

    def __init__(self, host: Any) -> None:
        self.host = np.asarray(host)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **keywords: Any) -> Any:
        if any(isinstance(value, np.ndarray) and value.ndim for value in inputs):
            raise TypeError("a NumPy array meets one on the device")
        outs = {"out": tuple(map(down, out))} if out else {}
        made = getattr(ufunc, method)(*map(down, inputs), **outs, **keywords)
        return out[0] if out else up(made)

    def __array_function__(self, function: Any, kinds: Any, args: Any, keywords: Any) -> Any:
        assert function is np.asarray or not any(isinstance(value, np.ndarray) for value in args)
        return up(function(*map(down, args), **keywords))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.host, name)
        if not callable(value):
            return up(value)
        return lambda *args, **keywords: up(value(*map(down, args), **keywords))

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, key: Any) -> Any:
        return up(self.host[down(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        assert isinstance(value, OnDevice | float | int)
        self.host[down(key)] = down(value)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def get(self) -> Any:
        return self.host.copy()


OnDevice.__module__ = "cupy"


def up(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, np.ndarray | np.generic) else value


def down(value: Any) -> Any:
    if isinstance(value, list):  # what is stacked or concatenated
        return [down(entry) for entry in value]
    return value.host if isinstance(value, OnDevice) else value


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend "cupy" for such arrays, which lets im2col compute."""

    def lent(planner: Any) -> Any:
        def planned(*args: Any) -> Any:
            run = planner(*args)
            return replace(run, call=lambda *arrays: run.call(*map(down, arrays)))

        planned.__name__ = planner.__name__
        return planned

    module: Any = types.ModuleType("on_device")
    host: Any = get("im2col")
    module.PLANNERS = {op: tuple(map(lent, planners)) for op, planners in host.PLANNERS.items()}
    module.empty = lambda shape, dtype: OnDevice(host.empty(shape, dtype))
    monkeypatch.setitem(sys.modules, "on_device", module)
    monkeypatch.setitem(_BACKENDS, "cupy", _Row("on_device", "cupy"))
    yield
    plan.cache_clear()


@pytest.mark.parametrize("optimiser", [lambda: nn.SGD(0.1, 0.9), nn.Adam])
def test_arrays_on_a_device_train_to_the_same_bits(device: None, optimiser: Any, tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        rng = np.random.default_rng(0)
        return nn.Sequential(
            nn.Conv(1, 4, 3, padding=1, rng=rng), nn.BatchNorm(4), nn.ReLU(), nn.MaxPool(2), nn.Tanh(),
            nn.ConvTranspose(4, 2, 2, stride=2, rng=rng), nn.LeakyReLU(), nn.AvgPool(2), nn.SiLU(),
            nn.Dropout(rng=rng), nn.Flatten(), nn.Linear(18, 5, rng=rng), nn.Sigmoid(), nn.Linear(5, 3, rng=rng),
        )  # fmt: skip

    x, labels = random(20, 1, 6, 6).astype("float32"), np.arange(20) % 3
    arguments: dict[str, Any] = {"epochs": 2, "batch_size": 8, "rng": 0, "progress": False}
    here, there = make(), make()
    there.convert(OnDevice)
    with fc.use_backend("im2col"):
        history = nn.fit(
            here, x, labels, augment=nn.shifted, optimiser=optimiser(), test=(x, labels), **arguments
        )
    far: Any = OnDevice(x), OnDevice(labels)
    again = nn.fit(there, *far, augment=nn.shifted, optimiser=optimiser(), test=far, **arguments)
    assert [epoch[:3] for epoch in history] == [epoch[:3] for epoch in again]
    for name, array in {**there.params, **there.buffers}.items():
        assert isinstance(array, OnDevice)
        np.testing.assert_array_equal(array.host, {**here.params, **here.buffers}[name])
    nn.save(there, tmp_path / "w.npz")
    nn.load(there, tmp_path / "w.npz")
    assert all(isinstance(array, OnDevice) for array in there.params.values())
