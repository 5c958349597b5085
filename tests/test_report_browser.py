"""The report in a browser: it draws, sorts, fits a phone, follows dark mode, and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastconv.compare import compare, problems, report


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["n1 c2x12x12 k3x3x3 s1 p1 f32", "n4 c4x10x10 k6x1x1 f32", "max n1 c2x8x8 k2x2 s2 p0 f32"]
    run = compare(problems(texts), workload="three problems", repeat=2)
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(run, path)
    return path


@pytest.fixture(
    scope="module", params=[(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")], ids=str
)
def page(request: pytest.FixtureRequest, browser: Any, page_path: Path) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = context.new_page()
    opened.complaints, opened.requests = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda sent: opened.requests.append(sent.url))
    opened.goto(page_path.as_uri())
    opened.wait_for_selector("#roofline .main-svg")
    yield opened
    context.close()


def test_it_draws_quietly_and_fits(page: Any, page_path: Path) -> None:
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page_path.as_uri()]
    for chart in ("speed", "pooling", "memory", "error", "roofline"):
        assert page.locator(f"#{chart} .main-svg").count() > 0
        box = page.locator(f"#{chart}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_dark_mode_changes_page_and_charts(page: Any) -> None:
    def lightness(colour: str) -> int:
        return sum(int(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3])

    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    text = page.evaluate("getComputedStyle(document.querySelector('#speed text')).fill")
    assert (lightness(background) < 200) is dark
    assert (lightness(text) > 400) is dark


def test_the_table_sorts(page: Any) -> None:
    def column() -> list[float]:
        cells = page.locator("#numbers tbody tr td:nth-child(4)")
        return [float(cells.nth(row).get_attribute("data-value")) for row in range(cells.count())]

    original = column()
    button = page.locator("#numbers th:nth-child(4) button")
    button.click()
    assert column() == sorted(original)
    assert page.locator("#numbers th:nth-child(4)").get_attribute("aria-sort") == "ascending"
    button.click()
    assert column() == sorted(original, reverse=True)
    button.click()
    assert column() == original
