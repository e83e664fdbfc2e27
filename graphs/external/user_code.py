"""Loads a user's Python objects by name, importing as `python that/file.py` would.

Each project has its own modules: two projects may both have a `helper.py` or a package `agents`,
and a system that is loaded twice shares no state with itself.
"""

import ast
import asyncio
import functools
import importlib
import importlib.util
import inspect
import os
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from reflux.agents.errors import MissingError, RefluxError, UsageError
from reflux.agents.redaction import redact
from reflux.graphs.external.user_sources import Reference, is_installed, reference, source_digest

T = TypeVar("T")
FRAMES = 5
"""Frames of the user's code that are shown of an error."""
_LOCK = threading.RLock()


def one_line(error: BaseException) -> str:
    """An exception as it is recorded."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}); raise an error or return instead"
    while isinstance(error, BaseExceptionGroup):  # As a TaskGroup wraps what failed in it.
        error = error.exceptions[0]
    text = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    return text.encode(errors="replace").decode()  # Half a surrogate pair cannot be recorded.


class Project:
    """A user's code with its own modules, which no other project sees.

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

    def digest(self, module: ModuleType) -> str:
        """Of the sources of a module, and of all that the project has loaded."""
        loaded = [getattr(own, "__file__", None) for own in self.own_modules().values()]
        files = [module.__file__, *sorted(file for file in loaded if file)]
        return source_digest(self.ref, [file for file in files if file])

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
            for variable, text in ref.env.items():
                os.environ.setdefault(variable, text)
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


def code_digest(name: str) -> str:
    """The digest of the sources of a user's object; see `load_object`."""
    _, module = load_object(name)
    return Project.active.digest(module) if Project.active else ""


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


@contextmanager
def _arguments(program: str) -> Iterator[None]:
    """The user's module must neither read our command line nor move us to another folder."""
    arguments, sys.argv, here = sys.argv, [program], Path.cwd()
    try:
        yield
    finally:
        sys.argv = arguments
        os.chdir(here)


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


def _user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not is_installed(frame.filename)]


def place_of(error: BaseException) -> str:
    """The last line of the user's own that an exception passed, in brackets; empty without one."""
    frames = _user_frames(error)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def user_traceback(error: BaseException) -> str:
    """The traceback's frames in the user's own files, the last ones; empty without any."""
    frames = _user_frames(error)
    if not frames and not isinstance(error, SyntaxError):
        return ""
    lines = traceback.format_list(frames[-FRAMES:]) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()


def parameters_of(function: Any) -> list[inspect.Parameter] | None:
    """The parameters of a function; None for one in C that does not tell."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return None


def hints_of(function: Any) -> Mapping[str, Any]:
    """The types that a function or an object that can be called states."""
    target = function.func if isinstance(function, functools.partial) else function
    try:
        return get_type_hints(target if inspect.isroutine(target) else type(target).__call__)
    except Exception:  # noqa: BLE001 - a name in the hints may not exist
        return {}


def class_of(hint: Any) -> type | None:
    """The class of a type hint, `list` for `Annotated[list[str], …]`; None without one."""
    hint = plain_hint(hint)
    kind = get_origin(hint) or hint
    return kind if inspect.isclass(kind) else None


def plain_hint(hint: Any) -> Any:
    """A type hint without `Annotated`."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def keys_used(function: Any) -> Mapping[str, None]:
    """The keys that a function's source takes from its first parameter."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return {}
    name = next((p.name for p in parameters_of(function) or ()), "")
    keys: dict[str, None] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(ast.Name(id), ast.Constant(str(key))) if id == name:
                keys[key] = None
            case ast.Call(ast.Attribute(ast.Name(id), "get"), [ast.Constant(str(key)), *_]) if (
                id == name
            ):
                keys[key] = None
            case _:
                pass
    return keys
