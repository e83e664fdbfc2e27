"""The installed wheel takes no top-level name from a project or from another distribution."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("agents", "graphs", "finetune", "tests")
APP = """
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from agents.words import PREFIX
from finetune import NAME as finetune
from graphs import NAME as graphs
from tests import NAME as tests

assert (graphs, finetune, tests) == ("my graphs", "my finetune", "my tests")


class State(TypedDict):
    question: str
    answer: str


builder = StateGraph(State)
builder.add_node("ask", lambda state: {"answer": PREFIX + state["question"]})
builder.add_edge(START, "ask")
builder.add_edge("ask", END)
graph = builder.compile()
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel of Reflux and, before it, an `agents` of another."""

    python: Path
    site: Path

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder."""
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("OPENAI_", "PYTHON"))
        }
        return subprocess.run(
            [self.python.parent / command[0], *command[1:]],
            cwd=cwd,
            env=clean,
            capture_output=True,
            text=True,
            timeout=240,
        )


def pip(*words: str | Path) -> None:
    """Run pip without a network.

    Raises:
        CalledProcessError: pip failed.
    """
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--quiet", "--no-deps", "--no-index"],
        cwd=ROOT,
        check=True,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    names = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", names))
    _write_other_agents(site)
    (wheel,) = folder.glob("*.whl")
    pip("--python", python, "install", wheel)
    # Dependencies are those of the tests; only now, or pip would find Reflux installed among them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return Environment(python, site)


def _write_other_agents(site: Path) -> None:
    """A distribution whose package is `agents`, as that of openai-agents."""
    info = site / "openai_agents-1.0.dist-info"
    for path in (site / "agents", info):
        path.mkdir(parents=True)
    (site / "agents" / "__init__.py").write_text('NAME = "the other agents"\n')
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openai-agents\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"agents/__init__.py,,\n{info.name}/METADATA,,\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with packages of the same names as ours."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f'NAME = "my {name}"\n')
    (tmp_path / "agents" / "words.py").write_text('PREFIX = "capital of "\n')
    (tmp_path / "app.py").write_text(APP)
    rows = [{"question": place, "answer": f"capital of {place}"} for place in ("Peru", "Chad")]
    (tmp_path / "places.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_wheel_holds_one_package(environment: Environment) -> None:
    (record,) = environment.site.glob("reflux_ida-*.dist-info/RECORD")
    files = [line.partition(",")[0] for line in record.read_text().splitlines()]
    tops = {Path(file).parts[0] for file in files if not file.startswith("..")}
    assert tops == {"reflux", record.parent.name}
    assert "reflux/report/templates/tree.html.j2" in files


def test_an_agents_package_of_another_distribution_stays_whole(
    environment: Environment, tmp_path: Path
) -> None:
    code = (
        "import agents, reflux, importlib.metadata as m; from reflux.agents.types import Answer;"
        "print(agents.NAME, reflux.Answer is Answer,"
        "all(f.locate().is_file() for f in m.files('openai-agents')))"
    )
    ended = environment.run("python", "-c", code, cwd=tmp_path)
    assert ended.stdout == "the other agents True True\n", ended.stderr


def test_a_project_with_packages_of_our_names_imports_reflux(
    environment: Environment, project: Path
) -> None:
    code = "import agents, graphs, reflux; reflux.build_graph; print(agents.NAME, graphs.NAME)"
    ended = environment.run("python", "-c", code, cwd=project)
    assert ended.stdout == "my agents my graphs\n", ended.stderr


def test_doctor_runs_in_such_a_project(environment: Environment, project: Path) -> None:
    ended = environment.run("reflux", "doctor", cwd=project)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_eval_runs_a_graph_that_imports_the_projects_own_agents(
    environment: Environment, project: Path
) -> None:
    ended = environment.run(
        "reflux", "eval", "--data", "places.jsonl", "--systems", "app.py:graph", "--json",
        cwd=project,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (score,) = json.loads(ended.stdout)["systems"].values()
    assert (score["accuracy"], score["n"]) == (1.0, 2)
