"""One browser for the tests of a file, each of which has a profile of its own in it."""

from collections.abc import Iterator

import pytest

from tests.support.browsing import close_browser


@pytest.fixture(scope="module", autouse=True)
def browser() -> Iterator[None]:
    yield
    close_browser()
