"""What people say of networks, tried: each claim of the table in docs/coverage.md that needs training, with its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv.explore import experiments
from tests.test_gradients import random


@pytest.fixture(autouse=True)
def sklearn() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def test_permuted_pixels_are_the_same_to_an_mlp_and_a_catastrophe_for_a_cnn() -> None:
    """An affine layer ignores where pixels are.

    First run, 10 epochs: MLP 42.8 and 41.9 %, CNN 71.9 and 12.2 %; with the 6 here 31.4 and 28.9, 44.4 and 11.4 %.
    """
    found = experiments.pixel_permutation(epochs=6)
    # Two shares of 360 held out, of networks that begin differently, differ by more than 3 deviations once in 300.
    noise = 3 * np.sqrt(2 * found.mlp * (1 - found.mlp) / 360)
    assert abs(found.mlp - found.mlp_permuted) < noise
    assert found.cnn - found.cnn_permuted > 0.2
    assert found.cnn > found.mlp


def test_affine_layers_live_on_the_features_below() -> None:
    """First run: 23.6 % on pixels, 36.9 % on features as they begin, 72.8 % on learnt ones."""
    found = experiments.affine_ablation()
    assert found.pixels + 0.05 < found.random_features
    assert found.random_features + 0.2 < found.learnt_features


def test_a_new_head_on_frozen_features() -> None:
    """Beats one on features as they begin, and changes no bit of what is frozen. First run: 51.9 and 31.0 %."""
    found = experiments.fine_tune()
    assert found.accuracy > found.random_accuracy + 0.1
    assert found.before
    for name, array in found.before.items():
        np.testing.assert_array_equal(found.after[name], array)


def test_he_keeps_activations_and_plain_lets_them_fade() -> None:
    """Deviations of ten layers' outputs. First run: plain 0.14 to 2e-8, Xavier 0.59 to 0.03, He from 0.83 to 1.02.

    With 32 channels in place of 64 He's fell to 0.497: with few channels it drifts.
    """
    plain, xavier, he = experiments.initialisation_study(seed=0)
    assert ((he > 0.5) & (he < 2)).all()
    assert (np.diff(plain) < 0).all()
    assert plain[-1] < 1e-6
    assert plain[-1] < xavier[-1] < he[-1] / 3


# ---------------------------------------------------------------------------- convolution as a matrix


@pytest.mark.parametrize(
    ("shape", "weight", "geometry"),
    [
        ((3, 6, 7), (4, 3, 3, 2), {}),
        ((2, 7, 6), (3, 2, 3, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
        ((1, 9), (2, 1, 4), {"stride": 3, "padding": ((0, 2),)}),
        ((2, 4, 5, 3), (2, 2, 2, 3, 2), {"padding": "same"}),
    ],
)
def test_a_convolution_is_a_matrix(shape: Any, weight: Any, geometry: dict[str, Any]) -> None:
    """Exactly, for whole numbers: as large as an affine layer, with as few different numbers as its weights."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-4, 5, shape).astype("float64"), rng.integers(1, 5, weight).astype("float64")
    y = getattr(fc, f"conv{x.ndim - 1}d")(x, w, **geometry)
    found = experiments.convolution_matrix(w, shape[1:], **geometry)
    assert found.matrix.shape == (y.size, x.size)
    np.testing.assert_array_equal(found.matrix @ x.ravel(), y.ravel())
    assert found.dense == y.size * x.size
    assert found.shared == w.size


def test_what_sharing_and_locality_save() -> None:
    """5x5 on a 28x28 image: 30 maps of 24x24 would take 13.5 million numbers of an affine layer; it is 750."""
    found = experiments.convolution_matrix(random(30, 1, 5, 5), 28)
    assert (found.dense, found.shared) == (30 * 24 * 24 * 784, 750)
    assert found.matrix.nnz == 30 * 24 * 24 * 25
    one = found.matrix[:576].toarray().reshape(24, 24, 28, 28)
    np.testing.assert_array_equal(
        one[3, 7, 3:8, 7:12], one[0, 0, :5, :5]
    )  # Toeplitz: rows are shifted copies


def test_a_matrix_that_cannot_be_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="in_size: got 2, expected at least 3"):
        experiments.convolution_matrix(np.ones((1, 1, 3)), 2)
    with pytest.raises(ValueError, match=r"weight: got shape \(3, 3\)"):
        experiments.convolution_matrix(np.ones((3, 3)), 5)


# ---------------------------------------------------------------------------- other layers


def test_turning_is_by_the_angle_drawn() -> None:
    """At no angle nothing changes, and what comes in at the corners is background."""
    x = random(3, 1, 8, 8)
    np.testing.assert_allclose(experiments.turned(x, 0, np.random.default_rng(0)), x, rtol=0, atol=1e-14)
    there = experiments.turned(x, 45, np.random.default_rng(0))
    assert there.min() >= x.min() - 1e-14
    assert abs(there - x).max() > 0.1


def test_a_spatial_transformer_helps_with_turned_digits() -> None:
    """The same affine layer, of 1,450 numbers, with and without. First run: 71.7 % alone, 85.6 % with it."""
    found = experiments.turned_digits()
    assert found.parameters == 1450
    assert found.with_transformer > found.plain + 0.08


def test_recurrence_and_convolution_on_the_same_sequences() -> None:
    """Where the motif is somewhere both see it; where the first symbol matters at the end only memory helps.

    First run: motif, RNN of 370 parameters 99.0 %, conv1d of 242 100 %; memory, 91.2 % and 48.4 %.
    """
    table = {(row.task, row.model): row for row in experiments.sequence_table()}
    assert {name: table["motif", name].parameters for name in ("RNN", "conv1d")} == {
        "RNN": 370,
        "conv1d": 242,
    }
    assert table["motif", "conv1d"].accuracy > 0.98
    assert table["motif", "RNN"].accuracy > 0.9
    assert table["memory", "RNN"].accuracy > 0.8
    assert table["memory", "conv1d"].accuracy < 0.6


@pytest.mark.parametrize("task", ["motif", "memory"])
def test_sequences_are_what_they_are_called(task: str) -> None:
    x, labels = experiments.sequence(task, 400, 12, np.random.default_rng(0))
    assert x.shape == (400, 4, 12)
    assert (x.sum(axis=1) == 1).all()
    for symbols, label in zip(x.argmax(axis=1), labels, strict=True):
        text = "".join(map(str, symbols))
        assert label == (("012" in text) if task == "motif" else text[0] == text[-1])
    assert 0.4 < labels.mean() < 0.6
    with pytest.raises(ValueError, match="task: got 'sum'"):
        experiments.sequence("sum", 1, 5, np.random.default_rng(0))


def test_a_boltzmann_machine_finds_edges_in_photographs() -> None:
    """It gives patches back better and better, and its bases take one direction.

    First run: errors of 0.81 to 0.48 of the variance; coherence 0.167 before, 0.273 after.
    """
    found = experiments.photograph_bases()
    assert found.errors[-1] < 0.7 * found.errors[0]
    before, after = (experiments.coherence(filters) for filters in (found.before, found.after))
    assert after.mean() > 1.4 * before.mean()


def test_coherence_tells_edges_from_noise() -> None:
    y, x = np.mgrid[-3:4, -3:4]
    edges = np.stack([np.tanh(x * np.cos(a) + y * np.sin(a)) for a in (0, 0.5, 2)])
    assert (experiments.coherence(edges) > 0.95).all()
    assert abs(experiments.coherence(np.exp(-(x**2 + y**2) / 4.0)[None])[0]) < 1e-12
    assert experiments.coherence(np.zeros((1, 5, 5)))[0] == 0
    noise = np.random.default_rng(0).standard_normal((200, 7, 7))
    assert experiments.coherence(noise).mean() < 0.3
