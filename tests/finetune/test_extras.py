"""The core works without the packages of `[train]`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reflux.finetune import TRAIN_PACKAGES

pytestmark = pytest.mark.process

WITHOUT = f"""
import importlib.util
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAIN_PACKAGES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {TRAIN_PACKAGES!r} else find_spec(name)
"""


def python(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code, *words], capture_output=True, text=True, check=False
    )


def test_nothing_but_training_imports_torch() -> None:
    modules = "cli.main server.app integrations.chat_model report.eval_page finetune.rounds web"
    lines = [f"import reflux.{name}" for name in modules.split()]
    ended = python("\n".join(lines))
    assert ended.returncode == 0, ended.stderr


def test_training_names_the_extra(tmp_path: Path) -> None:
    code = """
from reflux.cli.main import run
for command in ("init", "run", "demo", "distill"):
    try:
        sys.argv = ["reflux", command, "--run", sys.argv[-1]]
        run()
    except SystemExit as end:
        print(end.code)
"""
    ended = python(code, str(tmp_path / "r"))
    assert ended.stdout.split() == ["3"] * 4, ended.stderr
    assert len(re.findall(r"pip install .*\[train\]'", ended.stderr)) == 4
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "r").exists()


def test_a_graph_is_evaluated_without_the_extra(tmp_path: Path) -> None:
    """`reflux eval` of a user's graph needs no model, and so none of `[train]`."""
    (tmp_path / "app.py").write_text(
        "from langchain_core.runnables import RunnableLambda\n"
        "graph = RunnableLambda(lambda inputs: {'answer': '4'})\n"
    )
    (tmp_path / "q.jsonl").write_text('{"question": "2+2?", "answer": "4"}\n')
    code = "from reflux.cli.main import run\nsys.argv[0] = 'reflux'\nrun()"
    words = [
        "eval",
        "--systems",
        f"{tmp_path / 'app.py'}:graph",
        "--data",
        str(tmp_path / "q.jsonl"),
    ]
    ended = python(code, *words, "--run", str(tmp_path / "r"), "--json")
    assert ended.returncode == 0, ended.stderr
