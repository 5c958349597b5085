"""Composite and other layers compute where their arrays are: the same bits as on the host, nothing copied in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn
from fastconv.nn.models.googlenet import inception
from tests.test_gradients import random
from tests.test_nn import OnDevice, device, down  # noqa: F401 (a fixture)

F32: dict[str, Any] = {"rng": 1, "dtype": "float32"}


def transformer() -> nn.Layer:
    last = nn.Linear(72, 6, init=0.01, rng=1)
    last.params["bias"][:] = nn.identity_affine()
    return nn.SpatialTransformer(nn.Sequential(nn.Flatten(), last))


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (lambda: nn.resnet18(3, width=2, **F32), (2, 3, 32, 32)),
    "branches": (lambda: inception(2, 1, 1, 2, 1, 1, 1, **F32), (2, 2, 6, 6)),
    "adaptive": (lambda: nn.AdaptiveAvgPool(2), (2, 2, 5, 6)),
    "response": (lambda: nn.LocalResponseNorm(3), (2, 5, 3, 4)),
    "contrast": (lambda: nn.LocalContrastNorm(3), (2, 2, 6, 6)),
    "transformer": (transformer, (2, 2, 6, 6)),
    "capsules": (
        lambda: nn.Sequential(nn.PrimaryCapsules(3), nn.Capsules(8, 3, 2, 4, rng=0), nn.Lengths()), (2, 6, 2, 2),
    ),
    "recurrent": (lambda: nn.RNN(2, 3, rng=0), (2, 2, 5)),
    "belief": (lambda: nn.ConvRBM(2, 3, 3, 2, rng=0), (2, 2, 8, 8)),
}  # fmt: skip


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits_on_a_device(name: str) -> None:
    make, shape = LAYERS[name]
    here, there, x = make(), make(), random(*shape).astype("float32")
    there.convert(OnDevice)
    with fc.use_backend("im2col"):
        y = here.forward(x, True)
        dy = random(*y.shape).astype("float32")
        dx = here.backward(dy)
    far: Any = OnDevice(x)
    np.testing.assert_array_equal(down(there.forward(far, True)), y)
    given: Any = OnDevice(dy)
    np.testing.assert_array_equal(down(there.backward(given)), dx)
    for key, array in here.grads.items():
        assert isinstance(there.grads[key], OnDevice)
        np.testing.assert_array_equal(down(there.grads[key]), array)
    with fc.use_backend("im2col"):
        ready = nn.prepare(nn.fold_batch_norm(here))(x)
    np.testing.assert_array_equal(down(nn.prepare(nn.fold_batch_norm(there))(far)), ready)


@pytest.mark.usefixtures("device")
def test_a_machine_learns_on_a_device() -> None:
    here, there = (nn.ConvRBM(1, 3, 3, 2, sparsity=0.1, rng=0) for _ in "ab")
    there.convert(OnDevice)
    x = random(6, 1, 10, 10).astype("float32")
    far: Any = OnDevice(x)
    with fc.use_backend("im2col"):
        errors = nn.pretrain(here, x, epochs=2, batch_size=4, rng=0)
    assert nn.pretrain(there, far, epochs=2, batch_size=4, rng=0) == errors
    for key, array in here.params.items():
        np.testing.assert_array_equal(down(there.params[key]), array)
