"""Networks that people know: their parameters, names and numbers are torchvision's, built here from torch's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import nn
from tests.test_gradients import close, numeric, random

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


# ---------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(nn.lenet5, 61_706), (nn.simple_conv_net, 433_890), (nn.vgg16, 138_357_544), (nn.resnet18, 11_689_512),
     (nn.resnet50, 25_557_032)],
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
