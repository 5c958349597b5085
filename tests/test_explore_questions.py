"""Questions about networks, answered in numbers: what features, where, how far they stay, and what hands would make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import explore, nn
from tests import networks
from tests.test_explore import whole

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

EPS = float(np.finfo("float32").eps)


# ---------------------------------------------------------------------------- matching and moving (19, 20, 67, 68)


def test_a_planted_piece_matches_with_one_exactly() -> None:
    """Row 19, on images of ±1."""
    rng = np.random.default_rng(0)
    image = rng.choice([-1.0, 1.0], (3, 2, 20, 17)).astype("float32")
    piece = rng.choice([-1.0, 1.0], (2, 4, 5)).astype("float32")
    places = [(3, 4), (0, 0), (16, 12)]
    for one, (top, left) in zip(image, places, strict=True):
        one[:, top : top + 4, left : left + 5] = piece
    score = explore.match_score(image, piece)
    assert score.shape == (3, 17, 13)
    assert score.max() == 1
    for one, place in zip(score, places, strict=True):
        assert np.unravel_index(one.argmax(), one.shape) == place
    windows = np.lib.stride_tricks.sliding_window_view(image, (4, 5), axis=(2, 3))
    equal = (windows == piece[:, None, None]).all(axis=(1, 4, 5))
    np.testing.assert_array_equal(score == 1, equal)
    np.testing.assert_array_equal(explore.match_score(-image, piece), -score)
    assert (explore.match_score(np.zeros_like(image), piece) == 0).all()


@pytest.mark.parametrize("shift", [(1, 0), (-2, 3), (4, -4)])
def test_convolution_moves_with_the_image_and_a_template_of_it_all_does_not(shift: tuple[int, int]) -> None:
    """Row 20: inside, exactly; the best match of a piece stays, that of the whole image drops."""
    x, w = whole(2, 3, 24, 24), whole(4, 3, 3, 3)
    moved = np.roll(x, shift, axis=(2, 3))
    inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    there = np.roll(fc.conv2d(x, w), shift, axis=(2, 3))
    np.testing.assert_array_equal(fc.conv2d(moved, w)[inner], there[inner])
    image = np.rint(4 * networks.planted(1, 5).x)  # whole numbers: sums in any order are the same
    image[0, 0, 6:26, 11:21] = np.kron(np.concatenate([networks.RING, networks.CROSS]), np.full((2, 2), 8))
    piece, away = image[0, :, 6:26, 11:21], np.roll(image, shift, axis=(2, 3))
    assert explore.match_score(away, image[0]).item() < 0.9
    best, again = (explore.match_score(some, piece).max() for some in (image, away))
    assert again == best
    assert explore.match_score(image, image[0]).item() > 0.999


def test_pools_soften_shifts_but_sample_their_maxima() -> None:
    """Row 67. First run, change under one pixel: 0.46 without a pool, 0.42 with 2x2, 0.36 with 4x4, on average.

    A shift by the pool's stride only moves its output: that of two pixels is none for the maxima themselves.
    """
    learned = networks.digits()
    x = learned.split.test_x[:100]
    conv = learned.model.layers["conv1"]
    changes = {}
    for pool in (1, 2, 4):
        model = nn.Sequential(conv=conv, relu=nn.ReLU(), pool=nn.MaxPool(pool))
        changes[pool] = explore.shift_change(model, x, range(-3, 4))
        assert changes[pool].change.shape == (7, 100)
        assert (changes[pool].change[3] == 0).all()
    one = {pool: found.change[[2, 4]].mean() for pool, found in changes.items()}
    assert one[4] < one[2] < one[1]
    # Strided maxima alias: a shift by the stride moves the output, and one of half of it gives other numbers.
    pooled = nn.Sequential(conv=conv, relu=nn.ReLU(), pool=nn.MaxPool(2))
    framed = np.pad(x, ((0, 0), (0, 0), (8, 8), (8, 8)), constant_values=float(x.min()))
    y, half, all_ = (pooled.forward(np.roll(framed, shift, axis=3))[..., 4:-4] for shift in (0, 1, 2))
    np.testing.assert_array_equal(y[..., :-1], all_[..., 1:])
    assert np.abs(half[..., 1:] - y[..., :-1]).max() > 0.1 * y.max()
    assert np.abs(half - y).max() > 0.1 * y.max()


def test_turned_digits_are_not_recognised() -> None:
    """Row 68: accuracy falls with the angle. First run: 0.99, 0.93 at 15, 0.62 at 30, 0.38 at 45, 0.09 at 90 degrees."""
    learned = networks.digits()
    found = explore.rotation_accuracy(
        learned.model, learned.split.test_x, learned.split.test_labels, [0, 15, 30, 45, 90]
    )
    assert found[0] == nn.accuracy(learned.model, learned.split.test_x, learned.split.test_labels)
    assert (np.diff(found) < 0).all()
    assert found[4] < 0.3
    x = learned.split.test_x[:2]
    near = explore.turned(x, 90) - np.rot90(x, axes=(2, 3))
    assert np.abs(near).max() < 1e-5 * np.abs(x).max()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_filter_sees_in_a_turned_image_what_it_saw(turns: int) -> None:
    """Row 68, exactly; and copies of a filter, turned, are found."""
    x, w = whole(2, 3, 9, 9), whole(4, 3, 3, 3)
    turned = [np.rot90(some, turns, axes=(2, 3)) for some in (x, w)]
    np.testing.assert_array_equal(fc.conv2d(*turned), np.rot90(fc.conv2d(x, w), turns, axes=(2, 3)))
    bank = np.concatenate([w, turned[1]])
    pairs = explore.rotation_pairs(bank)
    for at in range(4):
        assert pairs[at, 4 + at] == pytest.approx(1)
        assert pairs[at, [other for other in range(8) if other not in (at, 4 + at)]].max() < 0.95


# ---------------------------------------------------------------------------- probes (66, 69)


def test_probes_see_the_answer_come_with_depth() -> None:
    """Row 69. First run on planted objects: input 0.77, then 0.98, 0.97, 0.97, 1.00, 1.00; before learning the same
    layers give 0.96, 0.97, 0.95, 0.90, 0.87. On digits 0.84, then 0.99, 0.99, 0.99, and 0.98 after the first
    fully-connected layer. So accuracy rises with depth in what was learned, not in depth alone.
    """
    learned = networks.objects()
    found = explore.probe_layers(learned.model, learned.split)
    assert list(found) == ["input", "relu1", "relu2", "relu3", "relu4", "relu5"]
    places = list(found.values())
    assert places[0] < min(places[1:])
    assert places[-1] == max(places) > places[0] + 0.1
    random = explore.probe_layers(learned.begun, learned.split)
    assert random["input"] == found["input"]
    assert random["relu5"] < found["relu5"] - 0.05


def test_what_the_fully_connected_part_adds() -> None:
    """Row 69, the ablation: a linear reading of the convolutions' features is as good as the network's own two layers.

    On pixels the same linear reading is worse: the features are what counts.
    """
    learned = networks.digits()
    found = explore.probe_layers(learned.model, learned.split, ["input", "relu3"], cells=16)
    own = nn.accuracy(learned.model, learned.split.test_x, learned.split.test_labels)
    assert found["relu3"] > found["input"] + 0.02
    assert abs(found["relu3"] - own) < 0.03


def test_a_concept_is_spread_over_filters() -> None:
    """Row 66. First run on digits, conv3: the best single filter 0.21, all 32 filters 0.93 by their means; 16 filters for
    95 % of the best.
    """
    learned = networks.digits()
    maps, test_maps = (explore.capture(learned.model, some, "conv3") for some in learned.split[::2])
    found = explore.best_filters(maps, learned.split.labels, test_maps, learned.split.test_labels, 32)
    assert found[0] < 0.5
    assert found.max() > 0.9
    needed = int(np.argmax(found >= 0.95 * found.max())) + 1
    assert 5 <= needed <= 31


def test_one_filter_is_enough_where_one_says_it_all() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    maps = rng.random((200, 6, 3, 3))
    maps[:, 4] += 3 * labels[:, None, None]
    found = explore.best_filters(maps[:100], labels[:100], maps[100:], labels[100:], 3)
    assert found[0] == 1


# ---------------------------------------------------------------------------- textures (63, 64)


def test_shuffled_patches_are_the_same_patches() -> None:
    x = whole(3, 2, 12, 8)
    made = explore.shuffle_patches(x, 4, 0)

    def patches(some: Any) -> Any:
        return sorted(
            some[n, :, i : i + 4, j : j + 4].tobytes() + bytes([n])
            for n in range(3)
            for i in (0, 4, 8)
            for j in (0, 4)
        )

    assert patches(made) == patches(x)
    assert (made != x).any()
    np.testing.assert_array_equal(made, explore.shuffle_patches(x, 4, 0))
    np.testing.assert_array_equal(explore.shuffle_patches(x, 12 // 3 * 1, 1).sum(), x.sum())


def gratings(count: int, seed: int) -> tuple[Any, Any]:
    """Four textures, in 16x16: which way stripes run, and how wide they are, at any phase."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    place = np.arange(16) + rng.integers(0, 8, (count, 1))
    stripes = np.sin(2 * np.pi * place / np.where(labels % 2, 8, 4)[:, None])
    images = np.repeat(stripes[:, None], 16, axis=1)
    images[labels > 1] = images[labels > 1].swapaxes(1, 2)
    return images[:, None].astype("float32"), labels


def test_texture_survives_the_shuffle_and_digits_do_not() -> None:
    """Rows 63 and 64: the score tells textures from shapes.

    First run on digits, patches of 4x4: 0.19, 0.17, 0.17 (conv3), 0.02 (fully connected); on stripes 0.9 and more in
    each layer. So what the third convolution knows of digits is not texture.
    """
    learned = networks.digits()
    shapes = explore.texture_scores(learned.model, learned.split, 4, ["relu1", "relu2", "relu3"], rng=0)
    textures = explore.texture_scores(
        learned.model, (*gratings(400, 0), *gratings(200, 1)), 8, ["relu1", "relu2", "relu3"], rng=0
    )
    assert textures["relu3"].score > 0.85
    assert shapes["relu3"].score < 0.3
    for one in (*shapes.values(), *textures.values()):
        assert 0 <= one.score <= 1
        assert one.shuffled <= one.accuracy + 0.05
    # Nothing is left of nothing: the mean grey of an image tells no digit.
    assert np.isnan(explore.texture_scores(learned.model, learned.split, 4, ["input"], rng=0)["input"].score)


def test_numbers_for_each_layer() -> None:
    """Row 63: reported, not assumed. First run on digits, three convolutions:

    field 5, 10, 20; Gabor fit 0.57, 0.43, 0.33; texture 0.01, 0.19, 0.13; selectivity 0.07, 0.16, 0.18; probe 0.95, 0.99,
    0.99. Edges fall and selectivity rises, as the table of layer roles says; but the same network before it learned has
    0.58, 0.42, 0.29; 0.01, 0.23, 0.12; 0.07, 0.14, 0.18; 0.95, 1.00, 0.99. What runs with depth here is the architecture's.
    """
    learned = networks.digits()
    found = explore.layer_roles(learned.model, learned.split, 4, rng=0)
    fields, fits, textures, selective, probes = zip(*found.values(), strict=True)
    assert fields == (5, 10, 20)
    assert all(0 < fit < 1 for fit in fits)
    assert all(0 <= texture <= 1 for texture in textures)
    assert selective[0] < selective[-1]
    assert probes[0] < probes[-1]


def test_effective_filters_of_the_first_layer_are_its_filters() -> None:
    learned = networks.digits()
    found = explore.effective_filters(learned.model, learned.split.x[:20], "conv1", count=1)
    weights = explore.filters(learned.model)
    assert found.shape == weights.shape
    inside = found != 0  # a place at the border sees padding, whose gradient is not there
    np.testing.assert_array_equal(found[inside], weights[inside])
    assert inside.mean() > 0.7


def test_selectivity() -> None:
    labels = np.repeat([0, 1, 2], 4)
    maps = np.zeros((12, 4, 2, 2))
    maps[:, 0] = 1
    maps[:4, 1] = 1
    maps[:4, 2], maps[4:, 2] = 3, 1
    np.testing.assert_array_equal(explore.selectivity(maps, labels), [0, 1, 0.5, 0])


# ---------------------------------------------------------------------------- parts (65)


def test_a_filter_of_the_fifth_layer_answers_to_a_part() -> None:
    """Row 65: the ring, which two of four classes have, is told by one conv5 filter with an area of 0.9 and more."""
    learned = networks.objects()
    ring = learned.split.test_labels >= 2
    area = explore.part_auc(explore.capture(learned.model, learned.split.test_x, "conv5"), ring)
    assert area.max() >= 0.9
    first = explore.part_auc(explore.capture(learned.model, learned.split.test_x, "conv1"), ring)
    assert first.max() < area.max()
    metrics = pytest.importorskip("sklearn.metrics")
    strongest = explore.capture(learned.model, learned.split.test_x, "conv5").max(axis=(2, 3))
    expected = [metrics.roc_auc_score(ring, some) for some in strongest.T]
    np.testing.assert_allclose(area, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------- made by hand (47, 71)


def test_hand_made_features_against_learned_ones() -> None:
    """Row 47, the same digits and the same classifier. First run: pixels 0.84, Sobel 0.83, Gabor 0.99, HOG 0.99;
    the network 0.99.
    """
    learned = networks.digits()
    found = explore.baselines(learned.split)
    assert list(found) == ["pixels", "sobel", "gabor", "hog"]
    own = nn.accuracy(learned.model, learned.split.test_x, learned.split.test_labels)
    assert found["gabor"] > found["pixels"] + 0.05
    assert found["hog"] > found["pixels"] + 0.05
    assert found["pixels"] > 0.7
    assert own > found["pixels"] + 0.05


def test_hog_is_a_histogram_of_directions() -> None:
    ramp = np.broadcast_to(np.arange(16, dtype="float32"), (1, 1, 16, 16))
    across, along = (
        explore.hog(some)[0].reshape(4, 9, 3, 3).sum(axis=(0, 2, 3)) for some in (ramp, ramp.swapaxes(2, 3))
    )
    assert set(np.flatnonzero(across)) == {0, 8}  # 0 degrees lies between the last and the first
    assert set(np.flatnonzero(along)) == {4}
    tripled = explore.hog(3 * ramp)
    np.testing.assert_allclose(tripled, explore.hog(ramp), rtol=4 * EPS)
    norms = np.square(explore.hog(ramp)).sum(axis=1)
    np.testing.assert_allclose(norms, 1, rtol=16 * EPS)


def test_a_gabor_filter_is_found_again() -> None:
    bank = explore.gabor_bank(9, 8, (4.0, 6.0), 4)
    fit = explore.gabor_fit(-2 * bank.filters, bank)
    np.testing.assert_allclose(fit.correlation, 1, rtol=16 * EPS)
    np.testing.assert_array_equal(fit.orientation, bank.orientation)
    np.testing.assert_array_equal(fit.wavelength, bank.wavelength)
    np.testing.assert_allclose(np.exp(1j * fit.phase), -np.exp(1j * bank.phase), atol=1e-12)


def test_learned_filters_are_more_like_gabor_filters_than_random_ones() -> None:
    """Row 47. First run, mean of the best match: 0.54 at random, 0.85 learned from a deviation of 0.01."""
    learned = networks.filters()
    before, after = (
        explore.gabor_fit(explore.filters(model)).correlation.mean()
        for model in (learned.begun, learned.model)
    )
    assert after > before + 0.15


def test_tuning_of_simple_and_complex_cells() -> None:
    """Row 71: a Gabor filter prefers its own angle, and a pool over it does not mind the phase.

    First run, variance of the answer over phase by its squared mean: 1.53 in one place, 0.001 after a 5x5 pool.
    """
    bank = explore.gabor_bank(11, 8, (5.0,), 4)
    found = explore.tuning(bank.filters, 5.0)
    assert found.simple.shape == found.pooled.shape == (32, 24, 16)
    np.testing.assert_allclose(found.preferred, bank.orientation, atol=1e-12)
    curve = found.simple.mean(axis=2)
    across = (np.arange(32), (found.preferred / np.pi * 24).round().astype(int) + 12)
    assert (curve[across[0], across[1] % 24] < 0.2 * curve.max(axis=1)).all()
    simple, pooled = found.phase_variance(), found.phase_variance("pooled")
    assert (pooled < 0.1 * simple).all()


# ---------------------------------------------------------------------------- whose doing is Grad-CAM (55)


def test_randomised_weights_are_the_same_weights_elsewhere() -> None:
    learned = networks.digits()
    made = explore.randomised(learned.model, ["conv2", "affine1"], rng=0)
    for name, param in learned.model.params.items():
        other = made.params[name]
        assert other is not param
        np.testing.assert_array_equal(np.sort(other.ravel()), np.sort(param.ravel()))
        moved = name in ("conv2.weight", "affine1.weight")
        assert (other != param).any() == moved or name.endswith("bias")
    with pytest.raises(ValueError, match="layer: got 'conv9'"):
        explore.randomised(learned.model, ["conv9"])


def test_whose_doing_grad_cam_is() -> None:
    """Row 55. First run, mean correlation with the whole network's maps: digits (two fully-connected layers) 0.06 after
    drawing these again, 0.15 after drawing the convolutions again; planted objects (a mean and one linear layer) 0.19 and
    0.17. Neither part makes the maps alone.
    """
    digits, objects = networks.digits(), networks.objects()
    found = explore.randomisation_test(digits.model, digits.split.test_x[:100], rng=0)
    assert list(found) == ["fc", "conv"]
    assert np.nanmean(found["fc"]) < 0.5
    assert np.nanmean(found["conv"]) < 0.5
    gap = explore.randomisation_test(objects.model, objects.split.test_x[:100], rng=0)
    assert all(np.nanmean(some) < 0.9 for some in gap.values())
    untouched = explore.randomisation_test(objects.model, objects.split.test_x[:20], {"nothing": []})[
        "nothing"
    ]
    np.testing.assert_allclose(untouched, 1, rtol=1e-12)
