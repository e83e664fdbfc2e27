"""A user's graph: loaded with a digest of its sources, and asked within a time limit.

The digest covers the graph's file, all that it imports from the project, also inside functions, and
the versions of the packages that these files import. Other files of the project do not count.
"""

# pyright: reportMissingTypeStubs=false

import ast
import asyncio
import copy
import hashlib
import importlib.util
import json
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from langchain_core.runnables import Runnable
from langgraph.pregel import Pregel
from langgraph.store.memory import InMemoryStore

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.evals.graph_host import (
    BEAT_SECONDS,
    GraphThread,
    Meter,
    ThreadLost,
    TooLong,
    one_line,
    open_graph,
)
from reflux.graphs.evals.graph_values import (
    GraphInput,
    GraphOptions,
    read_output,
    values_of,
    waits_for_human,
)
from reflux.graphs.evals.user_code import (
    Project,
    is_installed,
    load_object,
    reference,
    user_traceback,
)

MAX_FILES = 2_000
"""Further files are left out, the farthest from the graph's own file first."""
PARSED_BYTES = 1_000_000
"""A larger file counts by its bytes alone."""


class UserGraph:
    """A user's graph, its name, and the thread that it runs in."""

    def __init__(
        self,
        name: str,
        value: Any,
        digest: str,
        options: GraphOptions | None = None,
        project: Project | None = None,
    ) -> None:
        """
        Args:
            value: a graph, or what creates one; see `reflux.graphs.evals.graph_host`.
            digest: of its sources; another one asks every question again.
        """
        self.name = name
        self.digest = digest
        self.options = options or GraphOptions()
        self.notes: list[str] = []
        self._value = value
        self._project = project
        self._thread = GraphThread()
        self._runnable: Runnable[Any, Any] | None = None
        self._opening = asyncio.Lock()
        self._input: GraphInput | None = None
        self._sync = False

    async def open(self) -> None:
        """Make the graph, unless it is made.

        Raises:
            UsageError: it is no graph, or it is not known which of its keys gets the question.
            RefluxError: what creates it fails.
        """
        async with self._opening:
            if self._runnable is None or self._thread.lost:
                self._thread = GraphThread()
                self._runnable = await self._start(self._thread)

    async def _start(self, thread: GraphThread) -> Runnable[Any, Any]:
        self._activate()

        async def make(stack: AsyncExitStack) -> Runnable[Any, Any]:
            runnable = await open_graph(self.name, self._value, self.options, stack)
            self._input = GraphInput(self.name, runnable, self.options)
            return runnable

        try:
            runnable = await thread.start(make)
        except (RefluxError, asyncio.CancelledError):
            raise
        except Exception as error:
            failure = RefluxError(
                f"{self.name} fails when its graph is created: {one_line(error)}; correct it"
            )
            failure.add_note(user_traceback(error))
            raise failure from error
        if self.options.context and not isinstance(runnable, Pregel):
            raise UsageError(
                f"{self.name} is no LangGraph graph and takes no --context: leave it out"
            )
        store = getattr(runnable, "store", None)
        if store is not None and not isinstance(store, InMemoryStore) and not self.notes:
            self.notes.append(f"{self.name}: all questions share its {type(store).__name__}")
        return runnable

    async def ask(self, question: str, seconds: float, meter: Meter) -> tuple[str, float | None]:
        """(answer, confidence) of the graph.

        Raises:
            TooLong: no answer in time.
            RefluxError: it blocks or ends its event loop.
            Exception: the graph's own, or the output holds no answer.
        """
        await self.open()
        self._activate()
        try:
            return await self._ask(self._thread, self._runnable, question, seconds, meter)
        except ThreadLost:
            pass  # Perhaps by another question: this one gets a thread for itself.
        alone = GraphThread()
        runnable = await self._start(alone)
        try:
            return await self._ask(alone, runnable, question, seconds, meter)
        except ThreadLost as lost:
            raise RefluxError(str(lost)) from lost
        finally:
            alone.close()

    async def _ask(
        self,
        thread: GraphThread,
        runnable: Any,
        question: str,
        seconds: float,
        meter: Meter,
    ) -> tuple[str, float | None]:
        begun: list[float] = []

        async def work() -> tuple[str, float | None]:
            begun.append(time.monotonic())
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await self._invoke(runnable, question, meter)
            except TimeoutError as error:
                if limit.expired():
                    raise TooLong(f"no answer in {seconds:g} s") from error
                raise

        answer = asyncio.wrap_future(thread.submit(work))
        try:
            while not (await asyncio.wait({answer}, timeout=seconds + BEAT_SECONDS))[0]:
                if await thread.is_blocked():
                    thread.lose(
                        f"no answer in {seconds:g} s: it blocks its event loop; await what takes "
                        "long, or make the node a plain function"
                    )
                elif begun and time.monotonic() > begun[0] + seconds + BEAT_SECONDS:
                    raise TooLong(f"no answer in {seconds:g} s, and it does not stop when told to")
            return answer.result()
        finally:
            answer.cancel()

    async def _invoke(self, runnable: Any, question: str, meter: Meter) -> tuple[str, float | None]:
        thread_id = uuid.uuid4().hex
        # Chains with a history of messages call their thread a session.
        configurable = {"session_id": thread_id, **self.options.configurable}
        config = {"callbacks": [meter], "configurable": {**configurable, "thread_id": thread_id}}
        more = {"context": dict(self.options.context)} if self.options.context else {}
        if isinstance(store := getattr(runnable, "store", None), InMemoryStore):
            runnable = runnable.copy({"store": _copied(store)})
        given = self._input.of(question) if self._input else question
        has_checkpoints = bool(getattr(runnable, "checkpointer", None))
        output: Any = None
        if not self._sync:
            try:
                output = await runnable.ainvoke(given, config, **more)
            except NotImplementedError:  # By a checkpointer that is not async, before any node.
                if not has_checkpoints:
                    raise
                self._sync = True
        if self._sync:
            output = await asyncio.to_thread(runnable.invoke, given, config, **more)
        if has_checkpoints and (runnable.interrupt_before_nodes or runnable.interrupt_after_nodes):
            state = (
                await asyncio.to_thread(runnable.get_state, config)
                if self._sync
                else await runnable.aget_state(config)
            )
            if state.next:
                raise waits_for_human(f"it stops before {', '.join(state.next)}")
        answer = read_output(output, self.options.output_key, given)
        meter.read(output)
        return answer

    def hint(self, error: BaseException) -> str:
        """What may be missing in the call of a graph that raised this error."""
        given = values_of(self._input.of("")) if self._input else None
        if given and isinstance(error, KeyError) and error.args[:1] not in [(k,) for k in given]:
            return f"; it was given {', '.join(given)}: --input-key names another key"
        schema = getattr(self._runnable, "context_schema", None)
        if schema is not None and not self.options.context:
            keys = ", ".join(getattr(schema, "__annotations__", ()))
            return f"; its context is not set: --context sets {keys}"
        return ""

    def _activate(self) -> None:
        if self._project is not None:
            self._project.activate()

    def close(self) -> None:
        """End the graph's thread."""
        self._thread.close()


def load_graph(name: str, options: GraphOptions | None = None) -> UserGraph:
    """The graph of `module:graph`, `path/file.py:graph` or `langgraph.json:graph`, not made yet.

    Raises:
        UsageError: there is no such module or object.
        MissingError, RefluxError: see `reflux.graphs.evals.user_code.Project.load`.
    """
    options = options or GraphOptions()
    project = Project(reference(name))
    value, module = project.load()
    parts = [name, source_digest(project, module.__file__), asdict(options)]
    digest = hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()
    return UserGraph(name, value, f"graph:{digest[:16]}", options, project)


def _copied(store: InMemoryStore) -> InMemoryStore:
    """The store with what it held when the graph was made; what a question adds is its own."""
    fresh, held = copy.copy(store), cast(Any, store)
    cast(Any, fresh)._data = defaultdict(dict, {name: dict(d) for name, d in held._data.items()})
    vectors: Any = defaultdict(lambda: defaultdict(dict))
    for name, keys in held._vectors.items():
        vectors[name].update({key: dict(paths) for key, paths in keys.items()})
    cast(Any, fresh)._vectors = vectors
    return fresh


def code_digest(name: str) -> str:
    """The digest of the sources of a user's object; see `load_object`."""
    _, module = load_object(name)
    project = Project.active or Project(reference(name))
    return source_digest(project, module.__file__)


def source_digest(project: Project, file: str | None) -> str:
    """Digest (hex, 16) of a module's file and of all that it imports; the project is active."""
    loaded = (getattr(module, "__file__", None) for module in project.own_modules().values())
    queue = [Path(path) for path in (file, *sorted(path for path in loaded if path)) if path]
    folders = [Path(folder) for folder in (*project.ref.folders, *project.ref.last)]
    sources: dict[str, str] = {}
    packages: set[str] = set()
    for path in queue:  # It grows.
        name = _relative(path, project.ref.root)
        if name in sources or len(sources) >= MAX_FILES:
            continue
        source = path.read_bytes() if path.is_file() else b""
        sources[name] = hashlib.sha256(source).hexdigest()
        for base, parts in _imports(source, path):
            within = [base] if base else folders
            files = next((found for f in within if (found := _files(f, parts))), ())
            if not files and base is None:
                files, package = _elsewhere(parts)
                packages |= {package} if package else set()
            queue += files
    versions = sorted(f"{package}=={_version(package)}" for package in packages)
    body = "\n".join([*(f"{name} {sources[name]}" for name in sorted(sources)), *versions])
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _relative(path: Path, root: Path) -> str:
    """The same on every machine, for files of the project."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _imports(source: bytes, path: Path) -> Iterator[tuple[Path | None, Sequence[str]]]:
    """(folder of a relative import or None, parts of the name) of each import of a source."""
    if path.suffix != ".py" or len(source) > PARSED_BYTES:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield None, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            above = path.parents[min(node.level, len(path.parents)) - 1] if node.level else None
            for alias in node.names:  # A name may be a module.
                yield above, [*parts, alias.name]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield None, node.args[0].value.split(".")


def _files(folder: Path, parts: Sequence[str]) -> list[Path]:
    """The files that an import of this name executes, if the folder has it."""
    files: list[Path] = []
    for part in parts:
        module, package = folder / f"{part}.py", folder / part / "__init__.py"
        if package.is_file():
            files.append(package)
        elif module.is_file():
            return [*files, module]
        folder = folder / part
    return files


def _elsewhere(parts: Sequence[str]) -> tuple[list[Path], str]:
    """The files of a module outside the project's folders, or the package that installed it."""
    top = parts[0] if parts else ""
    if not top or top in sys.stdlib_module_names:
        return [], ""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return [], ""
    origin = spec.origin if spec else None
    if spec is None or top == "reflux" or not origin or is_installed(origin):
        return [], top if spec else ""
    folder = Path(origin).parent
    return _files(folder.parent if spec.submodule_search_locations else folder, parts), ""


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        names = sorted(set(_distributions().get(package, ())))
        return ",".join(f"{name} {metadata.version(name)}" for name in names)


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())
