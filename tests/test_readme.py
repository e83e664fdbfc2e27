"""What the README shows works."""

import re
from pathlib import Path

import pytest

import reflux

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """In order, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed: list[str] = []
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102
        printed.append(capsys.readouterr().out)
    facade, voted, chat_model = printed
    assert "Paris" in facade and "'calls': 3" in facade
    assert "Paris" in voted
    assert "Paris" in chat_model and "'calls': 2" in chat_model


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
