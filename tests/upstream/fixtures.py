"""The fixtures of the stand-in. tests/conftest.py makes them known to all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .keys import Keys
from .upstream import Upstream


@pytest.fixture(scope="session")
def upstream_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The keys of all stand-ins of this process of tests: each is made once."""
    return Keys(tmp_path_factory.mktemp("upstream-keys"))


@pytest.fixture(scope="session")
def upstream_process(upstream_keys: Keys) -> Iterator[Upstream]:
    with Upstream.start(upstream_keys) as upstream:
        yield upstream


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    """A stand-in of Scalekit, as new: without users, sessions, faults, and with its first key."""
    upstream_process.reset()
    return upstream_process


@pytest.fixture
def second_upstream(upstream_keys: Keys) -> Iterator[Upstream]:
    """Another stand-in, with another `iss` and the same keys."""
    with Upstream.start(upstream_keys) as upstream:
        yield upstream
