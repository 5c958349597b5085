"""The recurrent layer: gradients through time, and torch's numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv import nn, testing
from tests.test_gradients import close, numeric, random
from tests.test_nn import near


def test_gradients() -> None:
    layer, x = nn.RNN(3, 4, rng=0, dtype="float64"), random(2, 3, 5)
    dy = random(*layer.forward(x).shape)
    close(layer.backward(dy), numeric(layer.forward, x, dy))
    for name, param in layer.params.items():
        close(layer.grads[name], numeric(lambda _: layer.forward(x), param, dy))


@pytest.mark.oracle
def test_torch_agrees() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer, x = nn.RNN(3, 4, rng=0, dtype="float64"), random(2, 3, 7)
    layer.params["bias"][:] = random(4)
    theirs = torch.nn.RNN(3, 4, batch_first=True).double()
    named = {"weight_ih": "weight_ih_l0", "weight_hh": "weight_hh_l0", "bias": "bias_ih_l0"}
    state = {theirs_name: torch.from_numpy(layer.params[name]) for name, theirs_name in named.items()}
    theirs.load_state_dict({**state, "bias_hh_l0": torch.zeros(4, dtype=torch.float64)})
    given = torch.from_numpy(x.transpose(0, 2, 1).copy()).requires_grad_()
    expected, _ = theirs(given)
    dy = random(2, 4, 7)
    expected.backward(torch.from_numpy(dy.transpose(0, 2, 1).copy()))
    near(layer.forward(x), expected.detach().numpy().transpose(0, 2, 1))
    near(layer.backward(dy), given.grad.numpy().transpose(0, 2, 1))
    for name, theirs_name in named.items():
        near(layer.grads[name], getattr(theirs, theirs_name).grad)


def test_what_is_heard_late_changes_nothing_before() -> None:
    layer, x = nn.RNN(2, 3, rng=0), random(1, 2, 8).astype("float32")
    before = layer.forward(x)
    x[..., 5:] += 1
    after = layer.forward(x)
    np.testing.assert_array_equal(after[..., :5], before[..., :5])
    assert (after[..., 5:] != before[..., 5:]).all()


def test_it_begins_orthogonal() -> None:
    weight = nn.RNN(2, 16, rng=0, dtype="float64").params["weight_hh"]
    assert abs(weight @ weight.T - np.eye(16)).max() < 1000 * testing.ROUNDOFF["float64"]


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"x: got shape \(1, 3, 5\), expected \(batch, 2, time\)"):
        nn.RNN(2, 3).forward(np.ones((1, 3, 5)))
    with pytest.raises(ValueError, match="hidden: got 0"):
        nn.RNN(2, 0)
