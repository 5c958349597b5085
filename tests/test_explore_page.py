"""`fastconv explore`: the page says what is so, can be read by everybody, and asks the network for nothing."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastconv import explore, nn
from fastconv.cli import app
from fastconv.explore import page
from fastconv.explore.photographs import DEVIATION, MEAN

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


class Reader(HTMLParser):
    """What a page shows: its pictures and the cells of its tables, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.links += [value for key, value in attrs if key in ("href", "src") and value]
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1].append(data)
            self._cell = False

    def row(self, name: str, place: int = 0) -> list[str]:
        return [row for row in self.rows if row and row[0] == name][place]


class Digits:
    """A network that learned a little, and its page."""

    def __init__(self) -> None:
        everything = nn.digits()
        self.split = nn.data.Split(
            everything.x[:400], everything.labels[:400], everything.test_x[:120], everything.test_labels[:120]
        )
        rng = np.random.default_rng(0)
        self.model = nn.simple_conv_net(init="plain", rng=rng)
        self.model.params["conv.bias"][7] = -1e6  # a dead filter, which the page has to find
        self.start = copy.deepcopy(self.model)
        x, labels, *test = self.split
        history = nn.fit(
            self.model, x, labels, epochs=3, batch_size=25, optimiser=nn.Adam(0.004), test=(test[0], test[1]),
            rng=rng, progress=False,
        )  # fmt: skip
        self.said: list[str] = []
        self.page = page.of_digits("Simple", self.model, self.start, self.split, history, self.said.append)
        self.text = page.html(self.page)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_everything_is_on_the_page_and_nothing_elsewhere(digits: Digits) -> None:
    read = Reader(digits.text)
    assert len(digits.page.sections) == page.DIGIT_PARTS == len(digits.said)
    assert len(read.pictures) >= 12
    for picture in read.pictures:
        assert (picture["src"] or "").startswith("data:image/png;base64,")
        assert len(picture["alt"] or "") > 10
    assert all(link.startswith(("data:", "#part")) for link in read.links)
    assert "<script" not in digits.text
    assert "nan" not in re.sub(r"base64,[\w+/=]+", "", digits.text)


def test_its_numbers_are_those_of_the_network(digits: Digits) -> None:
    read, (x, labels, test_x, test_labels) = Reader(digits.text), digits.split
    accuracy = nn.accuracy(digits.model, test_x, test_labels)
    assert read.row("the whole network")[1] == f"{accuracy:.3f}"
    assert f"recognises {accuracy:.1%} of 120 digits" in digits.page.summary[0]
    wrong = int((digits.model.forward(test_x).argmax(axis=1) != test_labels).sum())
    assert f"Of 120 digits held out {wrong} are" in digits.text
    probed = explore.probe_layers(digits.model, digits.split)
    for layer, value in probed.items():
        assert value == pytest.approx(float(read.row(layer, -1)[1]), abs=5e-4)
    assert read.row("conv", 1)[-1] == "1"
    assert "1 filter is dead" in digits.text
    features = explore.hand_made_features(x, "hog"), explore.hand_made_features(test_x, "hog")
    hog = explore.probe(features[0], labels, features[1], test_labels)
    assert read.row("a linear classifier on hog")[1] == f"{hog:.3f}"


def test_the_filters_section_tells_smooth_from_rough(digits: Digits) -> None:
    said = page._filters(digits.model, digits.start).sentences[0]
    assert re.match(r"Training smoothed .* by \d", said)
    assert re.match(r"Training roughened", page._filters(digits.start, digits.model).sentences[0])
    assert "almost as they began" in " ".join(page._filters(digits.model, digits.model).sentences)


def test_places_have_names() -> None:
    assert page._where(0, 0) == "top left"
    assert page._where(0.5, 0.99) == "middle right"
    assert page._where(1, 0.34) == "bottom centre"


# ---------------------------------------------------------------------------- a picture


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (69, 105, 3)).astype("uint8")
    pixels[:, :18], pixels[:, 87:] = 0, 255  # cut off: the middle of 105 is 69 wide
    Image.fromarray(pixels).save(path)
    return path


def test_a_photograph_is_cut_and_standardised(photo: Path) -> None:
    x = explore.photograph(photo, 60, 3)
    pixels = np.asarray(Image.open(photo))[4:64, 22:82] / 255  # 60 of 69
    expected = ((pixels - np.array(MEAN)) / np.array(DEVIATION)).transpose(2, 0, 1)[None]
    # A division, a difference and another division, each rounded once, of numbers up to 3.
    assert np.abs(x - expected).max() <= 3 * 3 * np.finfo("f4").eps
    assert x.dtype == np.float32
    grey = explore.photograph(photo, 28, 1)
    assert grey.shape == (1, 1, 28, 28)
    assert abs(grey.mean()) < 1e-5
    assert grey.std() == pytest.approx(1, abs=1e-5)


def test_the_page_of_a_photograph(photo: Path) -> None:
    model = nn.vgg16(8, width=4, rng=0)
    x = explore.photograph(photo, 64, 3)
    said: list[str] = []
    made = page.of_photo("VGG16", model, x, "photo.png", said.append)
    read = Reader(page.html(made))
    probabilities = nn.softmax(model.forward(x))[0]
    best = int(probabilities.argmax())
    assert f"number {best}" in made.summary[0]
    assert read.row(f"{best}")[1] == f"{probabilities[best]:.3f}"
    convolutions = [row for row in read.rows if row and row[0].startswith("features.") and "Conv" in row]
    assert len(convolutions) == 13
    assert len(read.pictures) >= 13 + 3 + 2
    assert len(said) >= 6


def command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["explore", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_the_command_writes_the_page_of_a_picture(photo: Path, tmp_path: Path) -> None:
    weights, output = tmp_path / "lenet.npz", tmp_path / "seen.html"
    nn.save(nn.lenet5(rng=1), weights)
    given = ("--model", "lenet", "--image", str(photo), "--weights", str(weights), "--output", str(output))
    text = command(*given)
    assert f"wrote {output}" in text
    assert "What LeNet-5 sees in photo.png" in output.read_text(encoding="utf-8")


def test_the_command_trains_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it hands to the page, which is tested above."""
    seen: list[Any] = []

    def of_digits(name: str, model: Any, start: Any, split: Any, history: Any, report: Any) -> page.Page:
        report("one")
        seen.append((name, model, start, history))
        return page.Page("A page", ["One sentence."], [], [])

    monkeypatch.setattr(page, "of_digits", of_digits)
    text = command("--epochs", "1", "--output", str(tmp_path / "digits.html"))
    (name, model, start, history) = seen[0]
    assert "One sentence." in text
    assert name == "SimpleConvNet"
    assert history[0].test_accuracy > 0.5
    assert float(start.params["conv.weight"].std()) == pytest.approx(0.01, rel=0.2)
    assert not np.array_equal(start.params["conv.weight"], model.params["conv.weight"])
    assert (tmp_path / "digits.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "resnet"), "--model: got 'resnet', expected one of simple, lenet"),
        (("--model", "vgg16"), "--model: got 'vgg16', expected one of simple, lenet"),
        (("--data", "faces"), "--data: got 'faces'"),
        (("--weights", "lenet.npz"), "--weights: got a file but no --image"),
        (("--image", "PHOTO", "--model", "vgg16"), "--weights: got none, expected a file"),
        (("--image", "no.png", "--weights", "PHOTO"), "--image: got 'no.png'"),
        (("--image", "PHOTO", "--weights", "no.npz"), "--weights: got 'no.npz'"),
        (("--image", "PHOTO", "--weights", "PHOTO"), "expected a name that ends in .npz"),
        (("--seed", "-1"), "--seed: got -1"),
        (("--output", "no/such/folder.html"), "--output"),
    ],
)
def test_bad_requests_are_one_line(arguments: tuple[str, ...], words: str, photo: Path) -> None:
    text = command(*(str(photo) if word == "PHOTO" else word for word in arguments), code=2)
    assert words in text
    assert "Traceback" not in text


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(ValueError, match=r"image: got .*words\.png', expected a picture"):
        explore.photograph(tmp_path / "words.png", 28, 1)


# ---------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_it_fits_and_is_quiet(browser: Any, digits: Digits, tmp_path: Path, width: int, scheme: str) -> None:
    path = tmp_path / "page.html"
    page.write(digits.page, path)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened, complaints, requests = context.new_page(), [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("request", lambda sent: requests.append(sent.url))
    opened.goto(path.as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    widths = opened.evaluate("[...document.images].map((image) => [image.naturalWidth, image.width])")
    assert all(natural > 0 and 250 <= shown <= width for natural, shown in widths)
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert (lightness < 200) is (scheme == "dark")
    context.close()
