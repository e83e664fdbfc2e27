"""What the documentation shows works, what it names exists, and the site is self-contained."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import reflux
from benchmarks.measurements import PAGE, page
from tests.support.documented import ROOT, blocks, check_known, command_names, module_at, session
from tests.support.serving import scripted

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def names(path: Path) -> str:
    return str(path.relative_to(DOCS))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", [page for page in PAGES if blocks(page)], ids=names)
def test_what_a_page_shows_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    with scripted() as script, session(tmp_path, script) as reader:
        reader.follow(blocks(path))


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_every_command_and_option_that_a_page_names_exists(path: Path) -> None:
    for block in blocks(path):
        for command in block.commands:
            if command.words[:1] == ["reflux"]:
                check_known(command)
    known = set(command_names())
    mentioned = re.findall(r"[`(]reflux ((?:traces |students |demos )?[a-z]+)", path.read_text())
    assert [name for name in mentioned if name not in known] == []


def test_every_command_is_shown_somewhere() -> None:
    text = "\n".join(path.read_text() for path in PAGES)
    assert [name for name in command_names() if f"reflux {name}" not in text] == []


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "python.md").read_text()
    names = re.findall(r"^::: reflux\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(reflux.__all__)


def test_the_measurements_are_those_of_the_committed_results() -> None:
    assert page() == PAGE.read_text(), "run python -m benchmarks.measurements"


def test_every_page_is_in_the_navigation() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert set(targets(nav)) == {*map(names, PAGES), "source/index.md"}


def targets(nav: Any) -> Iterator[str]:
    for entry in nav:
        for to in entry.values():
            yield from [to] if isinstance(to, str) else targets(to)


def build() -> ModuleType:
    return module_at(DOCS / "build.py")


@pytest.mark.process
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_outside() -> None:
    process = subprocess.run(
        [sys.executable, DOCS / "build.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    site = ROOT / "build" / "site"
    assert list(build().outside(site)) == []
    for path in PAGES:
        built = (site / path.relative_to(DOCS)).with_suffix(".html").read_text()
        assert "Content-Security-Policy" in built
        assert built.count("<h1") == 1
    module = Path("agents", "overseers", "protocol.py")
    source = (site / "source" / module).with_suffix(".py.html").read_text()
    assert max(build().claim(module).split("`"), key=len) in source


@pytest.mark.parametrize(
    "line",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link href="//fonts.example/css" rel="stylesheet">',
        "<img loading=lazy src='http://a.example/a.png'>",
        "a { background: url(https://a.example/b.png) }",
        "@import 'https://a.example/c.css';",
    ],
)
def test_a_load_from_outside_is_detected(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<p>{line}</p>")
    assert len(list(build().outside(tmp_path))) == 1


def test_an_address_to_click_on_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a class=x href="https://arxiv.org/abs/1810.08575">1</a>')
    assert list(build().outside(tmp_path)) == []


def test_a_broken_link_ends_the_build() -> None:
    module = build()
    with pytest.raises(SystemExit, match="which is not a file"):
        module.relinked("[a](../nowhere.py)", module.STAGE / "index.md", set())
