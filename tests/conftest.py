"""Options and profiles every test file shares."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from fastconv.backends import backends

# Deadlines off: one slow moment of a shared machine is no failure. Examples of the oracles add up to more
# than 1,000 a run (tests/test_oracles.py), and to ten times that with `-m nightly`.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="fail if this backend is not available, instead of leaving its tests out",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    for name in session.config.getoption("--require-backend"):
        state = backends().get(name, "there is no such backend")
        if state != "available":
            raise pytest.UsageError(f"--require-backend {name}: {state}")
