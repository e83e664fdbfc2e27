"""Clients that live in environments of their own: npm's, LiteLLM, openai-agents.

`make clients` installs them and runs these tests.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.support.other_clients import CLIENTS, Found, missing, run, served_models


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Found]]:
    """What a script prints, which runs once."""
    printed: dict[str, Found] = {}
    with served_models(tmp_path_factory.mktemp("run")) as (url, _):

        def found(script: str) -> Found:
            if lacks := missing(script):
                pytest.skip(lacks)
            if script not in printed:
                printed[script] = run(script, url)
            return printed[script]

        yield found


ROWS = [
    pytest.param(
        *(script, read, wanted),
        marks=pytest.mark.clients if script.endswith(".py") else pytest.mark.npm,
        id=f"{client}: {name}",
    )
    for client, (script, features) in CLIENTS.items()
    for name, (read, wanted) in features.items()
]


@pytest.mark.parametrize(("script", "read", "wanted"), ROWS)
def test_a_feature_of_a_client(
    found: Callable[[str], Found], script: str, read: Callable[[Found], object], wanted: object
) -> None:
    assert read(found(script)) == wanted
