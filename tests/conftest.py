"""Fixtures that several test files share, and the order in which two workers take the files."""

import gc
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.mark.expression import Expression
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

import tests.support.tls  # noqa: F401 - its effect is wanted
from reflux.agents.clients.llama_cpp import SPIN_VARIABLE, SPINS
from reflux.graphs.traces.store import TraceStore

if TYPE_CHECKING:
    from tests.support.serving import Scripted

# Many processes import the same modules: each would compile them anew where nothing is cached.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Workers share the cores: who waits lets the others work. It is read when torch is first imported,
# here or in the process that forks the commands.
os.environ.setdefault(SPIN_VARIABLE, SPINS)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # A core for each worker …
os.environ.setdefault("OMP_THREAD_LIMIT", "1")  # … also where llama.cpp asks for two.

# Thousands of stores are made and dropped; a disk takes longer to keep one than a test to use it.
MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a folder of its own in it
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 8 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A shell that starts the tests in the background has them ignore SIGINT, and so every command that
# they start. These tests interrupt commands.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


LONGEST = (
    "cli/test_kills.py",
    "docs/test_docs.py",
    "docs/test_benchmarks.py",
    "finetune/test_rounds.py",
    "cli/test_interrupts.py",
    "finetune/test_launch.py",
    "finetune/test_families.py",
    "cli/test_evaluate_kills.py",
    "server/test_description.py",
    "finetune/test_export.py",
    "graphs/test_reference.py",
    "graphs/test_recompute.py",
)
"""Files that take the most processor time, first of all."""
APART = ("docs/test_docs.py", "docs/test_benchmarks.py")
"""Files whose tests share nothing and take so long that both workers take some."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no worker ends alone with one of them."""
    kinds = ("slow", "engine", "process", "browser")
    ranks: dict[Path, int] = {}
    for item in items:
        rank = min((kinds.index(m.name) for m in item.iter_markers() if m.name in kinds), default=9)
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        rank = LONGEST.index(name) - len(LONGEST) if name in LONGEST else rank
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later garbage collection."""
    gc.freeze()


class Files(LoadFileScheduling):
    """A file for a worker, or a test of those files in `APART`."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if file.endswith(APART) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "Files | None":
    """Deal out the tests."""
    return Files(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of which `-m "not (…)"` leaves nothing: torch alone takes seconds."""
    marks = config.getoption("markexpr")
    if collection_path.suffix != ".py" or not re.fullmatch(r"not \([^()]*\)", marks):
        return None
    found = re.search(r"^pytestmark = (\[.*?^\]|.*?$)", collection_path.read_text(), re.M | re.S)
    names = set(re.findall(r"pytest\.mark\.(\w+)", found[1])) if found else set()
    return None if Expression.compile(marks).evaluate(lambda name, **_: name in names) else True


@pytest.fixture
def script() -> "Iterator[Scripted]":
    """A scripted endpoint."""
    from tests.support.serving import scripted

    with scripted() as script:
        yield script


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    """An empty trace file."""
    store = TraceStore(tmp_path / "traces.db")
    yield store
    store.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with a byte tokenizer and ChatML, as a folder."""
    from benchmarks.tiny_model import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny_base"))
