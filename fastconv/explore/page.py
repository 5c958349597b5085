"""One page that works offline and walks from pixels to class: what a network sees, and what each of its parts adds.

``of_digits`` and ``of_photo`` make sections, of sentences, pictures and tables; ``html`` lays them out.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.attribution import deconvnet, grad_cam, occlusion
from fastconv.explore.filters import filters, plot_filters, total_variation
from fastconv.explore.hand_made import baselines, gabor_fit
from fastconv.explore.maps import dead_filters, plot_feature_maps, sparsity
from fastconv.explore.probes import Split, probe_layers, texture_scores
from fastconv.explore.sanity import parts, randomisation_test, randomised
from fastconv.explore.taps import convolutions, feature_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Report = Callable[[str], None]

# Side of the input and channels of the networks that `fastconv train` offers; of those for photographs.
SMALL, LARGE = (28, 1), (224, 3)
PHOTO_MODELS: dict[str, Callable[..., nn.Layer]] = {
    "vgg16": nn.vgg16,
    "alexnet": nn.alexnet,
    "resnet18": nn.resnet18,
    "resnet50": nn.resnet50,
}

NAMES = {
    "simple": "SimpleConvNet", "lenet": "LeNet-5", "vgg16": "VGG16", "alexnet": "AlexNet", "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
}  # fmt: skip

# Sections of a page about digits, each of which is reported.
DIGIT_PARTS = 7

PATCH = 7  # of a digit's 28 pixels: what the texture score shuffles, and what occlusion covers


class Picture(NamedTuple):
    """A picture on the page: what stands below it, what is read out in its place, and its data URI."""

    caption: str
    words: str
    source: str


class Grid(NamedTuple):
    """A table on the page: numbers from 0 to 1 become bars, text stays text."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str | float, ...]]


class Section(NamedTuple):
    """A part of the page; `size` is the least width of its pictures in pixels."""

    title: str
    sentences: list[str]
    pictures: list[Picture]
    grids: list[Grid]
    size: int = 300


class Page(NamedTuple):
    """What :func:`html` lays out."""

    title: str
    summary: list[str]
    sections: list[Section]
    facts: list[tuple[str, str]]


def _taken(steps: Sequence[tuple[str, Callable[[], Section]]], report: Report) -> Iterator[Section]:
    for text, section in steps:
        report(text)
        yield section()


# ---------------------------------------------------------------------------- a network that learns digits


def of_digits(
    name: str,
    model: nn.Layer,
    start: nn.Layer,
    split: Split,
    history: Sequence[nn.Epoch],
    report: Report = lambda text: None,
) -> Page:
    """The page of a network that was trained on digits.

    Parameters
    ----------
    name : str
        What to call the network.
    model, start : Layer
        As it is, and a copy from before its training.
    split : tuple of array
        Images and labels it was trained on, images and labels held out.
    history : sequence of Epoch
    report : callable
        Called with what comes next.

    Returns
    -------
    Page
    """
    x, _, test_x, test_labels = split
    shown = np.array([np.flatnonzero(test_labels == digit)[0] for digit in np.unique(test_labels)])
    steps: list[tuple[str, Callable[[], Section]]] = [
        ("what it learned", lambda: _learned(model, split, history, shown)),
        ("filters", lambda: _filters(model, start)),
        ("feature maps", lambda: _maps(model, test_x[shown[[2, 5]]], [f"digit {d}" for d in (2, 5)])),
        ("dead filters", lambda: _sparse(model, test_x)),
        ("where it looks", lambda: _looks(model, test_x[shown[::2]], test_labels[shown[::2]], PATCH)),
        ("what layers hold", lambda: _layers(model, start, split)),
        ("what the fully-connected part adds", lambda: _decides(model, start, split, test_x[:60])),
    ]
    made = list(_taken(steps, report))
    last = history[-1].test_accuracy
    summary = [
        f"{name} recognises {last:.1%} of {len(test_x)} digits that were held out, after {len(history)} "
        f"times {len(x):,} others.",
        *(section.sentences[0] for section in made[1:]),
    ]
    facts = [
        ("Network", f"{name}, {sum(array.size for array in model.params.values()):,} parameters"),
        ("Digits", f"{len(x):,} to learn from, {len(test_x)} held out; scikit-learn's scans, 28 x 28"),
        ("Training", f"{len(history)} epochs, {sum(epoch.seconds for epoch in history):.3g} s"),
    ]
    return Page(f"What {name} sees in digits", summary, made, facts)


def _learned(model: nn.Layer, split: Split, history: Sequence[nn.Epoch], shown: Array) -> Section:
    _, _, test_x, test_labels = split
    guesses = model.forward(test_x).argmax(axis=1)
    wrong = np.flatnonzero(guesses != test_labels)
    pictures = [
        _drawn(_gallery(test_x[shown]), "One digit of each class, as the network gets them."),
        _drawn(_curve(history), "Loss on the digits it learns from, and errors on those held out, by epoch."),
    ]
    if len(wrong):
        some = wrong[:10]
        pairs = ", ".join(f"{test_labels[at]} as {guesses[at]}" for at in some)
        pictures.append(_drawn(_gallery(test_x[some]), f"What it gets wrong: {pairs}."))
    grid = Grid(
        "Layer by layer: what a batch of one digit becomes",
        ("layer", "kind", "channels x height x width", "parameters"),
        _shapes(model, test_x[:1]),
    )
    said = [
        f"Of {len(test_x)} digits held out {len(wrong)} are taken for others.",
        "Pixels go in at the top of the table; the last row is a score for each class, and the largest wins.",
    ]
    return Section("What it learned", said, pictures, [grid])


def _filters(model: nn.Layer, start: nn.Layer | None) -> Section:
    after = filters(model)
    layer = convolutions(model)[0]
    rough = total_variation(after).mean()
    if start is None:
        said = [
            f"The first layer, {layer}, has {len(after)} filters; their mean total variation is {rough:.2f}."
        ]
        figure = plot_filters(after)
    else:
        before = filters(start)
        flat, begun = after.reshape(len(after), -1), before.reshape(len(after), -1)
        turned = (
            (flat * begun).sum(axis=1) / np.linalg.norm(flat, axis=1) / np.linalg.norm(begun, axis=1)
        ).mean()
        change = rough / total_variation(before).mean() - 1
        said = [
            f"Training {'smoothed' if change < 0 else 'roughened'} the first layer's filters by {abs(change):.1%}; "
            f"their mean cosine with the beginning is {turned:.2f} (1: not turned at all).",
        ]
        if turned > 0.9:
            said.append(
                "They look almost as they began: with weights as large as these the layers above learned faster than "
                "the filters had to move. Random filters are features, too."
            )
        figure = plot_filters(after, before)
    said.append("Each filter has its own scale: blue below zero, orange above.")
    return Section(
        "Filters of the first layer", said, [_drawn(figure, f"Filters of {layer}.", dpi=140)], [], 520
    )


def _maps(model: nn.Layer, images: Array, names: Sequence[str], limit: int = 36) -> Section:
    shapes = _outputs(model, images[:1])
    kinds = (nn.Conv, nn.MaxPool, nn.AvgPool)
    shown = [
        name
        for name, layer in model.named_layers()
        if isinstance(layer, kinds) and np.prod(shapes[name][2:]) > 1
    ]
    pictures = []
    for image, called in zip(images, names, strict=True):
        for name, maps in feature_maps(model, image[None], shown).items():
            figure = plot_feature_maps({name: maps}, limit=limit, common=True, signed=bool(maps.min() < 0))
            pictures.append(_drawn(figure, f"{called}, {name}: {_strongest(maps[0])}"))
    said = [
        f"From {_size(shapes[shown[0]])} after {shown[0]}, the maps become {_size(shapes[shown[-1]])} after {shown[-1]}.",
        "Each map of a convolution is where one of its filters answers, after the activation; a pool keeps the strongest "
        "or the mean of each window. Maps of one layer share a scale, so a weak map looks weak.",
    ]
    return Section("Feature maps", said, pictures, [])


def _sparse(model: nn.Layer, x: Array) -> Section:
    maps = feature_maps(model, x)
    dead = dead_filters(model, x)
    rectified = {name: some for name, some in maps.items() if some.min() >= 0}
    found = sparsity(rectified)
    rows: list[tuple[str | float, ...]] = [
        (
            name, f"{maps[name].shape[1]} x {maps[name].shape[2]} x {maps[name].shape[3]}",
            found[name].zeros if name in found else "not rectified",
            found[name].gini if name in found else "-", f"{len(dead[name])}",
        )
        for name in maps
    ]  # fmt: skip
    total = sum(map(len, dead.values()))
    said = [
        f"{total or 'No'} filter{'s are' if total != 1 else ' is'} dead: at or below zero everywhere in all "
        f"{len(x)} images."
        if len(x) > 1
        else f"{total} filters answer nowhere in this picture; only many pictures tell which are dead."
    ]
    said.append(
        "Gini's measure says how far a map's activity is gathered in few places: 0 is even, 1 all in one place."
    )
    grid = Grid(
        "Activity of the convolutions",
        ("layer", "maps", "share of zeros", "concentration", "dead filters"),
        rows,
    )
    return Section("Sparse and dead", said, [], [grid])


def _looks(
    model: nn.Layer,
    images: Array,
    labels: Sequence[int] | Array,
    size: int,
    report: Report = lambda text: None,
) -> Section:
    """Grad-CAM, deconvnet and occlusion for the class that each image is given."""
    pictures = []
    layer = _explained(model, images[:1])
    agree = []
    for image, label in zip(images, labels, strict=True):
        x = image[None]
        logits = model.forward(x)
        chosen = int(label)
        share = float(nn.softmax(logits)[0, chosen])
        report(f"where it looks for class {chosen}")
        maps = grad_cam(model, x, chosen, layer)
        strong = int(feature_maps(model, x, [layer])[layer].mean(axis=(2, 3)).argmax())
        back = deconvnet(model, x, layer, strong)[0].sum(axis=0)
        cover = occlusion(model, x, chosen, size=size, stride=max(1, size // 3))
        heat = maps.maps[0]
        top, left = np.unravel_index(heat.argmax(), heat.shape)
        row, column = np.unravel_index(cover.drops[0].argmax(), cover.drops[0].shape)
        place = _where(top / heat.shape[0], left / heat.shape[1])
        covered = _where(
            (cover.rows[row] + size / 2) / x.shape[2], (cover.columns[column] + size / 2) / x.shape[3]
        )
        agree.append(place == covered)
        caption = (
            f"Class {chosen}, probability {share:.2f}. Grad-CAM is strongest at the {place}; the score falls most, by "
            f"{cover.drops[0].max():.3g} of {cover.scores[0]:.3g}, with a patch at the {covered}."
        )
        pictures.append(
            _drawn(
                _side_by_side(image, heat, back, cover.drops[0], f"deconvnet, channel {strong}"),
                caption,
                dpi=150,
            )
        )
    said = [
        f"Grad-CAM and occlusion name the same of nine parts of the picture in {sum(agree)} of {len(agree)} cases.",
        f"Grad-CAM weighs the maps of {layer} by how the class score changes with them. The deconvnet takes that layer's "
        "strongest map back to the pixels it came from, whatever the class. Occlusion covers a patch and asks again: "
        "orange where the score falls, blue where it rises. Only the last changes the input and watches the output.",
    ]
    return Section("Where does it look?", said, pictures, [])


def _layers(model: nn.Layer, start: nn.Layer, split: Split) -> Section:
    trained, begun = probe_layers(model, split), probe_layers(start, split)
    texture = texture_scores(model, split, PATCH, rng=0)
    rows: list[tuple[str | float, ...]] = [
        (
            name,
            trained[name],
            begun[name],
            texture[name].accuracy,
            texture[name].shuffled,
            "-" if np.isnan(texture[name].score) else texture[name].score,  # means that tell no class
        )
        for name in trained
    ]
    fits: list[tuple[str | float, ...]] = []
    for name in convolutions(model):
        weights = filters(model, name)
        if weights.shape[2] >= 3:
            fit, chance = (gabor_fit(some).correlation.mean() for some in (weights, filters(start, name)))
            fits.append((name, "x".join(map(str, weights.shape)), float(fit), float(chance)))
    names = list(trained)
    best = max(trained, key=lambda name: trained[name])
    said = [
        f"A linear classifier reads the class from the pixels' 4 x 4 averages in {trained[names[0]]:.1%}, from the last "
        f"layer probed, {names[-1]}, in {trained[names[-1]]:.1%} of the digits held out; best is {best} with "
        f"{trained[best]:.1%}. Before training the last was {begun[names[-1]]:.1%}.",
        "Texture: the patches of each digit are shuffled, and a classifier on the layer's means over all positions is "
        "fitted again. The score is the share of its accuracy above chance that is left, 1 where shape never mattered.",
        "The Gabor fit says how like an oriented edge or stripe a filter is, at most 1. Small filters fit easily, so "
        "the fit of the same filters before training stands beside it: only what is above it was learned.",
    ]
    grids = [
        Grid(
            "Linear classifiers on each layer's features, digits held out",
            ("layer", "trained", "before training", "means only", "means, shuffled", "texture score"),
            rows,
        ),
        Grid("Gabor fit of the filters", ("layer", "filters", "trained", "before training"), fits),
    ]
    return Section("What do layers hold?", said, [], grids)


def _decides(model: nn.Layer, start: nn.Layer, split: Split, images: Array) -> Section:
    """What is left without one part, and whose doing Grad-CAM is."""
    x, labels, test_x, test_labels = split
    made = baselines(split)
    alone = nn.Sequential(
        flatten=nn.Flatten(), affine1=nn.Linear(x[0].size, 100, rng=0), relu=nn.ReLU(), affine2=nn.Linear(100, 10, rng=0)
    )  # fmt: skip
    nn.fit(
        alone, x, labels, epochs=14, batch_size=50, optimiser=nn.Adam(0.002), schedule=nn.cosine,
        augment=nn.shifted, rng=0, progress=False,
    )  # fmt: skip
    last = _last_maps(model, test_x[:1])
    learned = probe_layers(model, split, [last])[last]
    random = probe_layers(start, split, [last])[last]
    moved = np.roll(test_x, (3, 3), axis=(2, 3))
    rows: list[tuple[str | float, ...]] = [
        ("the whole network", nn.accuracy(model, test_x, test_labels), nn.accuracy(model, moved, test_labels)),
        (
            "fully-connected layers alone, on pixels",
            nn.accuracy(alone, test_x, test_labels), nn.accuracy(alone, moved, test_labels),
        ),
        (f"a linear classifier on {last}", learned, "-"),
        ("the same before training", random, "-"),
        *((f"a linear classifier on {kind}", accuracy, "-") for kind, accuracy in made.items()),
    ]  # fmt: skip
    said = [
        f"The whole network recognises {rows[0][1]:.1%}, its fully-connected part alone, trained on pixels, {rows[1][1]:.1%}; "
        f"with digits moved by 3 pixels {rows[0][2]:.1%} and {rows[1][2]:.1%}. A linear classifier on {last} reaches "
        f"{learned:.1%}, and {random:.1%} on the same layer before training.",
        f"Is Grad-CAM the fully-connected layers' doing? {_kept(model, images)} A part whose loss changes the maps had "
        "a say in them.",
    ]
    grid = Grid(
        "Accuracy on digits held out",
        ("what decides", "accuracy", "digits moved by 3 pixels"),
        rows,
    )
    return Section("What does the fully-connected part add?", said, [], [grid])


# ---------------------------------------------------------------------------- one photograph


def of_photo(name: str, model: nn.Layer, x: Array, picture: str, report: Report = lambda text: None) -> Page:
    """The page of one picture and a network that came with its weights.

    Parameters
    ----------
    name : str
        What to call the network.
    model : Layer
    x : array, shape (1, C, H, W)
        As :func:`fastconv.explore.photograph` makes it.
    picture : str
        What to call the picture.
    report : callable
        Called with what comes next.

    Returns
    -------
    Page
    """
    report("forward")
    probabilities = nn.softmax(model.forward(x))[0]
    best = np.argsort(-probabilities)[: min(5, len(probabilities))]
    grid = Grid(
        "The most probable classes",
        ("class", "probability"),
        [(f"{number}", float(probabilities[number])) for number in best],
    )
    seen = Section(
        "What goes in, what comes out",
        [
            f"The most probable class is number {best[0]}, with {probabilities[best[0]]:.1%}. Classes are numbered as in "
            "the file the weights came from.",
        ],
        [_drawn(_gallery(x), "The picture, cut and scaled as the network takes it.")],
        [grid, Grid(
            "Layer by layer: what the picture becomes",
            ("layer", "kind", "channels x height x width", "parameters"), _shapes(model, x),
        )],
    )  # fmt: skip
    patch = max(3, x.shape[2] // 7)
    steps: list[tuple[str, Callable[[], Section]]] = [
        ("filters", lambda: _filters(model, None)),
        ("feature maps", lambda: _maps(model, x, [picture], limit=16)),
        ("silent filters", lambda: _sparse(model, x)),
        ("where it looks", lambda: _looks(model, x.repeat(min(3, len(best)), 0), best[:3], patch, report)),
        ("whose doing it is", lambda: _doing(model, x, picture)),
    ]
    made = [seen, *_taken(steps, report)]
    facts = [
        ("Network", f"{name}, {sum(array.size for array in model.params.values()):,} parameters"),
        ("Picture", f"{picture}, {x.shape[2]} x {x.shape[3]} of it"),
    ]
    return Page(f"What {name} sees in {picture}", [section.sentences[0] for section in made], made, facts)


def _doing(model: nn.Layer, x: Array, picture: str) -> Section:
    layer = _explained(model, x)
    whole = grad_cam(model, x, layer=layer)
    maps = [
        whole,
        *(grad_cam(randomised(model, some, 0), x, whole.target, layer) for some in parts(model).values()),
    ]
    page, axes = display.panels(3, columns=3)
    for axis, found, title in zip(axes, maps, ("as trained", "fully-connected", "convolutions"), strict=True):
        display.overlay(axis, x[0], found.maps[0], title)
    said = [
        f"Is Grad-CAM the fully-connected layers' doing? {_kept(model, x)}",
        "A part whose loss changes the map had a say in it. One picture proves nothing: it takes many, as on the page "
        "about digits.",
    ]
    words = f"Grad-CAM of class {whole.target[0]} over {picture}: as trained, and with either part shuffled."
    return Section("What does the fully-connected part add?", said, [_drawn(page, words, dpi=150)], [], 520)


def _kept(model: nn.Layer, images: Array) -> str:
    """What is left of Grad-CAM when the weights of one part are shuffled, in sentences."""
    names = {"fc": "fully-connected layers", "conv": "convolutions"}
    said = []
    for part, found in randomisation_test(model, images, layer=_explained(model, images[:1]), rng=0).items():
        left = found[np.isfinite(found)]
        lost = len(found) - len(left)
        text = f"With shuffled {names[part]} "
        if lost:
            text += f"{lost} of {len(found)} maps are empty" + (", and " if len(left) else "")
        if len(left):
            text += f"the mean correlation with the true maps is {left.mean():.2f}"
        said.append(text)
    return (
        "The weights of one part change places at random, and Grad-CAM is drawn again. "
        + ". ".join(said)
        + "."
    )


# ---------------------------------------------------------------------------- parts of it


def _outputs(model: nn.Layer, x: Array) -> dict[str, tuple[int, ...]]:
    from fastconv.explore.taps import taps

    with taps(model) as seen:
        model.forward(x)
        return {name: seen.outputs[name].shape for name, _ in model.named_layers() if name in seen.outputs}


def _plain(model: nn.Layer) -> Iterator[tuple[str, nn.Layer]]:
    """The layers that are not made of others."""
    return ((name, layer) for name, layer in model.named_layers() if not layer.layers)


def _shapes(model: nn.Layer, x: Array) -> list[tuple[str | float, ...]]:
    shapes = _outputs(model, x)
    return [
        (
            name, type(layer).__name__, " x ".join(map(str, shapes[name][1:])),
            f"{sum(array.size for array in layer.params.values()):,}",
        )
        for name, layer in _plain(model)
    ]  # fmt: skip


def _explained(model: nn.Layer, x: Array) -> str:
    """The last convolution whose maps still have places: LeNet-5's third gives 1 x 1."""
    shapes = _outputs(model, x)
    return [name for name in convolutions(model) if np.prod(shapes[name][2:]) > 1][-1]


def _last_maps(model: nn.Layer, x: Array) -> str:
    """The last layer that gives maps: what the fully-connected part takes."""
    shapes = _outputs(model, x)
    return [name for name, _ in _plain(model) if len(shapes[name]) == 4][-1]


def _where(down: float, across: float) -> str:
    """A place in words: one of nine parts of a picture, from its relative row and column."""
    row = ("top", "middle", "bottom")[min(int(3 * down), 2)]
    column = ("left", "centre", "right")[min(int(3 * across), 2)]
    return f"{row} {column}"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} of {shape[2]} x {shape[3]}"


def _strongest(maps: Array) -> str:
    means = maps.mean(axis=(1, 2))
    return f"channel {means.argmax()} answers most, {means.max():.3g} on average."


def _gallery(images: Array) -> Figure:
    """Images as the network gets them, at most five in a row."""
    page, axes = display.panels(
        len(images), columns=min(5, len(images)), size=1.0 if len(images) > 1 else 3.0
    )
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(display.as_picture(image), cmap="gray")
    return page


def _curve(history: Sequence[nn.Epoch]) -> Figure:
    epochs = range(1, len(history) + 1)
    lines = {"loss": [epoch.loss for epoch in history]}
    if history[0].test_accuracy is not None:
        lines["errors held out"] = [1 - (epoch.test_accuracy or 0) for epoch in history]
    page = display.plot_lines(list(epochs), lines, across="epoch")
    page.axes[0].set_yscale("log")
    return page


def _side_by_side(image: Array, heat: Array, back: Array, drops: Array, name: str) -> Figure:
    page, axes = display.panels(4, columns=2)
    axes[0].imshow(display.as_picture(image), cmap="gray")
    display.overlay(axes[1], image, heat, "Grad-CAM")
    for axis, values, title in ((axes[2], back, name), (axes[3], drops, "occlusion")):
        axis.imshow(display.scaled(values[None], signed=True).images[0], **display.colours(True))
        axis.set_title(title, fontsize=8)
    axes[0].set_title("input", fontsize=8)
    return page


def _drawn(figure: Figure, caption: str, words: str = "", dpi: int = 130) -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.04)
    return Picture(
        caption, words or caption, "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    )


# ---------------------------------------------------------------------------- the page


def html(page: Page) -> str:
    """The page as one file: styles and pictures inside, no script.

    Parameters
    ----------
    page : Page
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastconv", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("explore/explore.html.jinja").render(page=page)


def write(page: Page, output: str | Path) -> None:
    """Write the page to a file.

    Parameters
    ----------
    page : Page
    output : str or Path
    """
    Path(output).write_text(html(page), encoding="utf-8")
