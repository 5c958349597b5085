"""What every test file shares: which backends must be there, and how many problems hypothesis makes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from fastconv.backends import Unsupported, backends
from fastconv.backends.numba import threads

ALL_THREADS = 1e-9

# Tests that run only where -m names them.
ON_REQUEST = {
    "large": "needs 16 GB: run with -m large",
    "cubin": "compiles for a minute or two: run with -m cubin",
    "gpu": "needs an NVIDIA GPU: run with -m gpu --require-backend cupy",
}

UNKNOWN = re.compile("has no algorithm for")

# Deadlines off: one slow moment of a shared machine is no failure. hypothesis's own default is 100 examples, and
# tests state theirs for that; under "nightly" all are ten times as many.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True, max_examples=100
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1000)
settings.load_profile("default")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="fail if this backend is not available, instead of leaving its tests out; repeatable",
    )
    parser.addoption(
        "--photographs",
        metavar="FOLDER",
        help="holds vgg16.npz, and lakeside.jpg, valley.jpg and mashed_potato.jpg, whose class maps are then drawn there",
    )


def pytest_configure(config: pytest.Config) -> None:
    """`-m nightly` runs the tests hypothesis makes problems for, and no others, with its profile.

    Tests' problems are small: they run on every thread all the same.
    """
    threads.SHARE_SECONDS = ALL_THREADS
    config.addinivalue_line("markers", "nightly: hypothesis makes its problems, ten times as many this way")
    if config.option.markexpr == "nightly":
        settings.load_profile("nightly")


def pytest_sessionstart(session: pytest.Session) -> None:
    """No test is made for a backend that is missing, so nothing would be seen to be skipped: stop here."""
    for name in session.config.getoption("--require-backend"):
        state = backends().get(name, f"there is no such backend, only {', '.join(backends())}")
        if state != "available":
            raise pytest.UsageError(f"--require-backend {name}: {state}")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name, why in ON_REQUEST.items():
            if item.get_closest_marker(name) and name not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=why))
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker("nightly")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A backend that does not know an op yet says so; test_conformance holds the list of such ops.

    A test that hypothesis draws backends for asks first: one refusal would skip what it has yet to draw.
    """
    try:
        yield
    except Unsupported as refusal:
        made = isinstance(item, pytest.Function) and is_hypothesis_test(item.obj)
        if UNKNOWN.search(str(refusal)) and not made:
            pytest.skip(str(refusal))
        raise


@pytest.fixture(scope="module")  # while it is open an event loop runs, and nobody else's asyncio.run can
def browser() -> Iterator[Any]:
    """An installed Chromium, for the pages that people open."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
