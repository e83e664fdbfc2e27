"""Loads a user's Python objects by name, importing as `python that/file.py` would.

    path/file.py:object     the file's folder comes first; in a package it is the package's module
    module:object           any module that Python finds from the working folder
    langgraph.json:graph    a graph that LangGraph's own config file names

Each project has modules of its own: two projects may both have a `helper.py` or a package `agents`,
and a system that is loaded twice shares no state with itself.
"""

import ast
import asyncio
import importlib
import importlib.util
import json
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from reflux.agents.errors import MissingError, RefluxError, UsageError

T = TypeVar("T")
ROOT_FILES = ("pyproject.toml", "setup.py", "setup.cfg", "langgraph.json", ".git")
"""One of them marks the folder of a whole project."""
FRAMES = 5
"""Frames of the user's code that are shown of an error."""
_LOCK = threading.RLock()
_OURS = str(Path(__file__).parents[2])
_STDLIB = sysconfig.get_paths()["stdlib"]


def is_installed(file: str) -> bool:
    """True for a file of an installed package, of Python's own library, or of Reflux."""
    parts = Path(file).parts
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or file.startswith((_STDLIB, _OURS, "<frozen"))
    )


@dataclass(frozen=True)
class Reference:
    """Where a user's object is."""

    name: str
    """As the user wrote it."""
    module: str
    """The name under which its module is imported."""
    file: Path | None
    """None for a module that Python has to find."""
    attribute: str
    folders: tuple[str, ...]
    """Of imports, the first one first."""
    last: tuple[str, ...] = ()
    """Folders of imports that come after the installed packages."""
    root: Path = field(default_factory=Path.cwd)
    """The project's folder."""


def reference(name: str) -> Reference:
    """Find what a name refers to, without importing it.

    Raises:
        UsageError: there is no such file, or the name has another form.
    """
    where, _, attribute = name.rpartition(":")
    if name.endswith(".json"):
        where, attribute = name, ""
    if where.endswith(".json"):
        return _in_langgraph_json(name, Path(where), attribute)
    if not where or not attribute:
        raise UsageError(f"{name!r} names no object; write module:object or path/file.py:object")
    here = Path.cwd()
    if not where.endswith(".py"):
        if where.startswith("."):
            raise UsageError(f"{name} names a module within another; write it from the top")
        return Reference(name, where, None, attribute, _with_src(here))
    return _in_file(name, Path(where), attribute)


def _in_file(name: str, file: Path, attribute: str, *more: Path) -> Reference:
    if not file.is_file():
        raise UsageError(f"{name}: there is no file {file}; name one as path/file.py:object")
    file = file.resolve()
    root = next((p for p in file.parents if _is_root(p)), file.parent)
    top, level = file.parent, _relative_level(file)
    while (top / "__init__.py").is_file() and top != top.parent:
        top = top.parent
    if top == file.parent and level:  # A package without `__init__.py`.
        wanted = file.parents[min(level, len(file.parents) - 1)]
        around = (root / "src", Path.cwd(), root)
        top = next((p for p in around if wanted.is_relative_to(p)), wanted)
    parts = file.relative_to(top).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
    if len(parts) == 1:
        module = file.stem.replace(".", "_")
        if module in sys.stdlib_module_names or module == "reflux":
            module += "_of_user"  # Nobody else may get it for Python's.
    # Run as a file, the siblings come first; run as a module, the package does.
    first = (top,) if level else (file.parent, top)
    around = [*first, *more, *map(Path, _with_src(root)), *map(Path, _with_src(Path.cwd()))]
    folders = tuple(dict.fromkeys(str(p) for p in around if level == 0 or p != file.parent))
    return Reference(name, module, file, attribute, folders, (str(file.parent),), root)


def _in_langgraph_json(name: str, config: Path, graph: str) -> Reference:
    if not config.is_file():
        raise UsageError(f"{name}: there is no file {config}; name one as langgraph.json:graph")
    try:
        body: Any = json.loads(config.read_text(encoding="utf-8"))
        graphs = cast(Mapping[str, Any], body["graphs"])
        names = ", ".join(graphs)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{name}: {config} has no valid `graphs` ({error!r}); correct it"
        ) from error
    if not graph and len(graphs) == 1:
        graph = next(iter(graphs))
    if graph not in graphs:
        raise UsageError(f"{name}: the graphs of {config} are {names}; write {config}:GRAPH")
    target = graphs[graph]["path"] if isinstance(graphs[graph], dict) else graphs[graph]
    where, _, attribute = str(target).rpartition(":")
    folder = config.resolve().parent
    more = [
        folder / str(path)
        for path in body.get("dependencies") or ()
        if (folder / str(path)).is_dir()
    ]
    if not where.endswith(".py"):
        folders = tuple(map(str, more)) + _with_src(folder)
        return Reference(name, where, None, attribute, folders, root=folder)
    return _in_file(name, folder / where, attribute, *more)


def _is_root(folder: Path) -> bool:
    outside = folder in (Path.home(), Path(folder.anchor))
    return not outside and any((folder / name).exists() for name in ROOT_FILES)


def _with_src(folder: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in (folder, folder / "src") if path.is_dir())


def _relative_level(file: Path) -> int:
    """The dots of the file's farthest relative import; 0 without any."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return 0
    return max((n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)), default=0)


class Project:
    """A user's code with modules of its own, which no other project sees.

    One project is active at a time: its folders come first where Python looks for modules, and its
    modules are those that Python knows. Imports inside functions need it active, too.
    """

    active: "Project | None" = None

    def __init__(self, ref: Reference) -> None:
        self.ref = ref
        self._path: list[str] | None = None
        self._modules: dict[str, ModuleType] = {}
        self._hidden: dict[str, ModuleType] = {}
        self._before: frozenset[str] = frozenset()

    def activate(self) -> None:
        """Put this project in the place of the active one."""
        with _LOCK:
            if Project.active is self:
                return
            if Project.active is not None:
                Project.active.deactivate()
            self._outer = list(sys.path)
            later = [folder for ref in _shared for folder in ref[1]]
            sys.path[:] = self._path or [*self.ref.folders, *sys.path, *self.ref.last, *later]
            importlib.invalidate_caches()
            own = self._own_names()
            self._hidden = {
                name: module
                for name, module in list(sys.modules.items())
                if name.partition(".")[0] in own and not self.is_own(module)
            }
            for name in self._hidden:
                del sys.modules[name]
            self._before = frozenset(sys.modules)
            sys.modules.update(self._modules)
            Project.active = self

    def deactivate(self) -> None:
        """Take this project's folders and modules out of Python's sight."""
        with _LOCK:
            self._modules = self.own_modules()
            for name in self._modules:
                del sys.modules[name]
            sys.modules.update(self._hidden)
            self._path, sys.path[:] = list(sys.path), self._outer
            Project.active = None

    def own_modules(self) -> dict[str, ModuleType]:
        """The project's modules that are loaded, while it is active."""
        return {
            name: module
            for name, module in list(sys.modules.items())
            if name not in self._before and self.is_own(module)
        }

    def is_own(self, module: ModuleType) -> bool:
        """True for a module in one of the project's folders."""
        file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")
        if not isinstance(file, str) or not file or is_installed(file):
            return False
        name = getattr(module, "__name__", "")
        return name.partition(".")[0] != "reflux" and any(
            Path(file).is_relative_to(folder) for folder in (*self.ref.folders, *self.ref.last)
        )

    def _own_names(self) -> frozenset[str]:
        """Top-level names of the project that may hide another module of the same name."""
        names = {self.ref.module.partition(".")[0]}
        for folder in self.ref.folders:
            for path in Path(folder).iterdir():
                if path.suffix == ".py" or (path / "__init__.py").is_file():
                    names.add(path.stem)
        return frozenset(names - sys.stdlib_module_names - {"reflux", "__main__"})

    def load(self) -> tuple[Any, ModuleType]:
        """(object, module) of the reference.

        Raises:
            UsageError: there is no such module or object.
            MissingError: the module needs another that is not installed.
            RefluxError: the module fails when it is imported, or exits.
        """
        ref = self.ref
        with _LOCK:
            self.activate()
            with _explained(self), _arguments(str(ref.file or ref.module)):
                module = _outside_loop(self._module)
        value: Any = module
        for part in ref.attribute.split("."):
            try:
                value = getattr(value, part)
            except AttributeError as error:
                public = [key for key in vars(module) if not key.startswith("_")]
                raise UsageError(
                    f"{ref.name}: {ref.file or ref.module} has no {ref.attribute!r}; correct the "
                    f"name: it has {', '.join(public[-8:]) or 'nothing'}"
                ) from error
            except Exception as error:
                raise RefluxError(f"{ref.name} fails when it is looked up: {error!r}") from error
        return value, module

    def _module(self) -> ModuleType:
        ref = self.ref
        if ref.file is None:
            return importlib.import_module(ref.module)
        parent, _, last = ref.module.rpartition(".")
        package = importlib.import_module(parent) if parent else None
        if ref.module in sys.modules:
            return sys.modules[ref.module]
        spec = importlib.util.spec_from_file_location(ref.module, ref.file)
        if spec is None or spec.loader is None:
            raise UsageError(
                f"{ref.name}: {ref.file} is no Python file; name one as file.py:object"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[ref.module] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(ref.module, None)
            raise
        if package is not None:
            setattr(package, last, module)
        return module


def _outside_loop(work: Callable[[], T]) -> T:
    """Run in a thread where an event loop runs, because the user's module may start its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


_shared: dict[tuple[Path, tuple[str, ...]], Project] = {}


def load_object(name: str) -> tuple[Any, ModuleType]:
    """(object, module) of a name. Names of one folder share their modules; see `Project.load`."""
    ref = reference(name)
    project = _shared.setdefault((ref.root, ref.folders), Project(ref))
    project.ref = ref
    return project.load()


def load_instance(name: str) -> Any:
    """The object of a name; of a class, an object without arguments.

    Raises:
        UsageError: the class needs arguments, or fails.
    """
    value, _ = load_object(name)
    try:
        return value() if isinstance(value, type) else value
    except Exception as error:
        raise UsageError(
            f"{name} cannot be made without arguments ({type(error).__name__}: {error}); name an "
            "object of it"
        ) from error


def is_reference(name: str) -> bool:
    """True for `path/file.py:object` and `module:object`."""
    where, _, attribute = name.rpartition(":")
    parts = [*attribute.split("."), *(() if where.endswith(".py") else where.split("."))]
    return bool(where) and all(part.isidentifier() for part in parts)


@contextmanager
def _arguments(program: str) -> Iterator[None]:
    """The user's module must not read our command line."""
    arguments, sys.argv = sys.argv, [program]
    try:
        yield
    finally:
        sys.argv = arguments


@contextmanager
def _explained(project: Project) -> Iterator[None]:
    """An import's failure as one sentence, with the user's part of the traceback as a note."""
    name, where = project.ref.name, project.ref.module
    try:
        yield
    except RefluxError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        failure = _failure_of_import(project, name, where, error)
        failure.add_note(user_traceback(error))
        raise failure from error


def _failure_of_import(
    project: Project, name: str, where: str, error: BaseException
) -> RefluxError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if project.ref.file is None and (where == error.name or where.startswith(f"{error.name}.")):
            return UsageError(
                f"{name}: there is no module {where!r}, neither in {Path.cwd()} nor installed; "
                "write module:object or path/file.py:object"
            )
        top, _, rest = error.name.partition(".")
        for folder in project.ref.folders:
            if rest and (Path(folder) / top).is_dir():
                return UsageError(
                    f"{name} imports {error.name}, and {Path(folder) / top} has no {rest!r}; "
                    "correct the import"
                )
        return MissingError(
            f"{name} needs {error.name}, which is not installed in {sys.prefix}, nor a module of "
            f"{', '.join(project.ref.folders[:2])}; install it there, or correct the import"
        )
    if isinstance(error, SystemExit):  # Uncaught it would end the program with the user's code.
        return RefluxError(
            f"{name} ends the program when it is imported: sys.exit({error.code!r}); put what it "
            'does there under `if __name__ == "__main__":`'
        )
    text = " ".join(str(error).split())[:300]
    return RefluxError(
        f"{name} fails when it is imported: {type(error).__name__}: {text}; correct it"
    )


def user_traceback(error: BaseException) -> str:
    """The traceback's frames in the user's own files, the last ones; empty without any."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not is_installed(frame.filename)
    ]
    if not frames and not isinstance(error, SyntaxError):
        return ""
    lines = traceback.format_list(frames[-FRAMES:]) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()
