"""What the README shows works, and the README is short."""

import re
from pathlib import Path

import pytest

from tests.support.documented import ROOT, blocks, check_known, command_names, session
from tests.support.serving import scripted

README = ROOT / "README.md"


def test_it_fits_two_screens() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.process
def test_what_it_shows_runs_from_top_to_bottom(tmp_path: Path) -> None:
    with scripted() as script, session(tmp_path, script) as reader:
        reader.follow(blocks(README))
        assert reader.names  # Its Python blocks are one program.


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_named_commands_exist() -> None:
    text = README.read_text()
    named = set(re.findall(r"`reflux (\w+)", text))
    assert named <= set(command_names())
    assert len(named) > 7
    for block in blocks(README):
        for command in block.commands:
            if command.words[:1] == ["reflux"]:
                check_known(command)
