"""What the README shows works."""

import re
from pathlib import Path

import pytest

import reflux

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert "Paris" in printed
    assert "'calls': 3" in printed


def test_files_that_are_named_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_that_are_named_are_there() -> None:
    from typer.main import get_command

    from reflux.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`reflux (\w+)", README)) | set(
        re.findall(r"^reflux (\w+)", README, re.MULTILINE)
    )
    assert named <= known
    assert len(named) > 7
    assert reflux.__version__
