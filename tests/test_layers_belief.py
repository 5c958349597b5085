"""Convolutional Boltzmann machines: probabilities that sum to 1, samples that follow them, gradients, and two in a stack."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn
from tests.test_gradients import close, numeric, random
from tests.test_nn import near


@pytest.mark.parametrize("scale", [1, 1000])
def test_each_block_sums_to_one(scale: float) -> None:
    """The units of a block and its being off, however sure they are."""
    x = scale * random(2, 3, 6, 9)
    on, off = nn.ProbabilisticMaxPool(3).probabilities(x)
    blocks = fc.avg_pool2d(on, 3, divisor_override=1)
    assert on.shape == x.shape
    assert min(on.min(), off.min()) >= 0
    assert abs(blocks + off - 1).max() <= 1e-12


def test_probabilities_are_what_the_paper_says() -> None:
    x = random(1, 1, 2, 4)
    on, off = nn.ProbabilisticMaxPool(2).probabilities(x)
    for block in (0, 1):
        told = x[0, 0, :, 2 * block : 2 * block + 2]
        total = 1 + sum(math.exp(value) for value in told.ravel())
        near(on[0, 0, :, 2 * block : 2 * block + 2], np.exp(told) / total)
        near(off[0, 0, :, block], np.array([1 / total]))


def test_samples_follow_the_probabilities() -> None:
    """At most one unit of a block is on, each as often as it should be."""
    pool, count = nn.ProbabilisticMaxPool(2), 20_000
    on, _ = pool.probabilities(np.tile(random(1, 1, 2, 2), (count, 1, 1, 1)))
    drawn = pool.sample(on, np.random.default_rng(0))
    assert set(np.unique(drawn)) == {0, 1}
    assert set(np.unique(drawn.sum(axis=(2, 3)))) == {0, 1}
    # A share of n draws is off by more than 5 of its deviations once in two million.
    assert (abs(drawn.mean(axis=0) - on[0]) < 5 * np.sqrt(on[0] * (1 - on[0]) / count)).all()


@pytest.mark.parametrize(
    "layer", [nn.ProbabilisticMaxPool(2), nn.ConvRBM(1, 3, 3, 2, sparsity=0.1, rng=0, dtype="float64")]
)
def test_gradients(layer: nn.Layer) -> None:
    x = random(2, 1, 6, 6)
    dy = random(*layer.forward(x).shape)
    close(layer.backward(dy), numeric(layer.forward, x, dy))
    grads = dict(layer.grads)
    for name, param in layer.params.items():
        close(grads[name], numeric(lambda _: layer.forward(x), param, dy))


def test_visible_is_the_transpose_of_what_hidden_units_are_told() -> None:
    """<h, W x> = <W' h, x>: the machine has one set of weights for both ways."""
    machine = nn.ConvRBM(2, 3, (3, 2), 2, rng=0, dtype="float64")
    x, h = random(1, 2, 6, 7), random(1, 3, 4, 6)
    told = fc.conv2d(x, machine.conv.params["weight"])
    near(np.vdot(machine.visible(h), x), np.vdot(h, told))


def test_contrast_falls_to_nothing_where_dreams_are_data() -> None:
    """Without weights units know nothing of the image; the step then says so: gradients of the data's own statistics."""
    machine, x = nn.ConvRBM(1, 2, 3, 2, rng=0, dtype="float64"), random(4, 1, 10, 10)
    machine.conv.params["weight"][...] = 0
    error = machine.contrast(x)
    mean = machine.buffers["mean"][0]
    near(np.array(error), ((x[:, :, 2:-2, 2:-2] - mean) ** 2).mean())
    near(machine.conv.grads["bias"], np.zeros(2))  # every unit is on with 1 / 5, seen or dreamt
    assert np.abs(machine.conv.grads["weight"]).max() > 0


def test_two_machines_learn_one_on_top_of_the_other() -> None:
    """A deep belief network of digits, layer by layer: each gives back its input, of variance 1, better and better.

    First run: errors of 0.74 to 0.33 and, above, 0.65 to 0.14.
    """
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    x = nn.digits(16).x[:300]
    first = nn.ConvRBM(1, 12, 5, 2, sparsity=0.05, rng=0)
    second = nn.ConvRBM(12, 16, 3, 2, sparsity=0.05, rng=1)
    between = nn.BatchNorm(12, momentum=1)
    below = nn.pretrain(first, x, epochs=4, optimiser=nn.Adam(0.01), rng=0)
    on = between.forward(first.forward(x), train=True)
    above = nn.pretrain(second, on, epochs=4, optimiser=nn.Adam(0.01), rng=0)
    for errors in (below, above):
        assert sorted(errors, reverse=True) == errors
        assert errors[-1] < 0.5
    model = nn.Sequential(first, between, second)
    y = model.forward(x)
    assert y.shape == (300, 16, 2, 2)
    assert 0 <= y.min() < y.max() <= 1
    assert list(model.params)[:2] == ["0.conv.weight", "0.conv.bias"]
    assert list(model.buffers) == ["0.mean", "1.running_mean", "1.running_var", "2.mean"]


def test_a_seed_gives_the_same_bits() -> None:
    def learn(seed: int) -> np.ndarray:
        machine = nn.ConvRBM(1, 3, 3, 2, sparsity=0.1, rng=seed)
        nn.pretrain(machine, random(20, 1, 12, 12).astype("float32"), epochs=2, batch_size=8, rng=seed)
        weight: np.ndarray = machine.params["conv.weight"]
        return weight

    np.testing.assert_array_equal(learn(1), learn(1))
    assert (learn(1) != learn(2)).any()
    assert learn(1).dtype == "float32"


def test_bad_input_is_refused_in_words() -> None:
    for act, words in (
        (
            lambda: nn.ConvRBM(1, 2, 3, 2, sparsity=0.3),
            "sparsity: got 0.3, expected a share between 0 and 0.25",
        ),
        (lambda: nn.ProbabilisticMaxPool(2).forward(np.ones((1, 1, 3, 4))), "multiples of 2"),
        (lambda: nn.ConvRBM(1, 2, 3).contrast(np.ones((1, 1, 4, 4), "f4")), "larger than twice the kernel"),
        (lambda: nn.pretrain(nn.ConvRBM(1, 2, 3), np.ones((1, 1, 8, 8), "f4"), epochs=0), "epochs: got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            act()
