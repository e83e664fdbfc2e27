"""The architecture page lists every module; its walks and tables name code that exists."""

import re

import pytest

from tests.support.documented import ROOT, module_at

PAGE = ROOT / "docs" / "architecture.md"
STOP = re.compile(r"\[`([^`]+\.py)`\]\(\.\./([^)]+)\)((?:[^\[`]*`[A-Za-z_]+`)*)")
"""A linked file, and the names in backticks that follow it."""


def walks() -> list[tuple[str, str]]:
    """Each (file, name) that the walks mention."""
    text = PAGE.read_text()
    text = text[text.index("## Walk 1") : text.index("## Source tree")]
    return [
        (path, name)
        for shown, path, names in STOP.findall(text)
        for name in re.findall(r"`([A-Za-z_]+)`", names)
        if shown == path
    ]


def protocols() -> list[tuple[str, str]]:
    """Each (file, protocol) of the table of extension points."""
    return [
        (path, name)
        for name, path in re.findall(r"`(\w+)` in \[`[^`]+`\]\(\.\./([^)]+)\)", PAGE.read_text())
    ]


def test_the_source_tree_is_that_of_the_code() -> None:
    text = PAGE.read_text()
    assert module_at(ROOT / "docs" / "build.py").with_tree(text) == text, (
        "run python docs/build.py --tree"
    )


def test_files_of_the_page_exist() -> None:
    links = re.findall(r"\]\(\.\./([^)#]+)", PAGE.read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize(("path", "name"), walks())
def test_a_walk_names_what_its_file_has(path: str, name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} has no {name}"


@pytest.mark.parametrize(("path", "name"), protocols())
def test_an_extension_point_exists(path: str, name: str) -> None:
    assert re.search(rf"^class {name}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_there_are_three_walks() -> None:
    assert len(re.findall(r"^## Walk ", PAGE.read_text(), re.MULTILINE)) == 3
    assert len(walks()) > 40
