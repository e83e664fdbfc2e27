"""Where a user's object is, and one digest over the sources behind it.

    path/file.py:object     the file's folder comes first; in a package it is the package's module
    module:object           any module that Python finds from the working folder
    langgraph.json:graph    a graph that LangGraph's own config file names

The digest covers the object's file, all that it imports from the project, also inside functions,
and the versions of the packages that these files import. No other file of the project counts.
"""

import ast
import hashlib
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from dotenv import dotenv_values

from reflux.agents.errors import UsageError

ROOT_FILES = ("pyproject.toml", "setup.py", "setup.cfg", "langgraph.json", ".git")
"""One of them marks the folder of a whole project."""
MAX_FILES = 2_000
"""Further files are left out, the farthest from the graph's own file first."""
PARSED_BYTES = 1_000_000
"""A larger file counts by its bytes alone."""
OURS = str(Path(__file__).parents[2])
STDLIB = sysconfig.get_paths()["stdlib"]


def is_installed(file: str) -> bool:
    """True for a file of an installed package, of Python's own library, or of Reflux."""
    parts = Path(file).parts
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or file.startswith((STDLIB, OURS, "<frozen"))
    )


@dataclass(frozen=True)
class Reference:
    """Where a user's object is, and where its module finds what it imports."""

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
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables that its code reads, where they are not set."""


def reference(name: str) -> Reference:
    """Find what a name refers to, without importing it.

    Raises:
        UsageError: there is no such file, or the name has another form.
    """
    where, _, attribute = name.rpartition(":")
    if name.endswith((".json", ".py")):
        where, attribute = name, ""
    if where.endswith(".json"):
        return _in_langgraph_json(name, Path(where).expanduser(), attribute)
    if not where or not attribute:
        raise UsageError(f"{name!r} names no object; write path/file.py:object or module:object")
    return _placed(name, Path(), where, attribute)


def is_reference(name: str) -> bool:
    """True for `path/file.py:object` and `module:object`."""
    where, _, attribute = name.rpartition(":")
    parts = [*attribute.split("."), *(() if where.endswith(".py") else where.split("."))]
    return bool(where) and all(part.isidentifier() for part in parts)


def _placed(
    name: str, folder: Path, where: str, attribute: str, more: Sequence[Path] = ()
) -> Reference:
    """The reference to an object of a file or a module, as it is written within a folder."""
    path = folder / Path(where).expanduser()
    if path.is_dir() and (path / "__init__.py").is_file():
        path /= "__init__.py"
    if path.suffix == ".py" and (path.is_file() or where.endswith(".py")):
        return _in_file(name, path, attribute, more)
    if path.is_file() or "/" in where or where.startswith("."):
        raise UsageError(
            f"{name}: {where} is neither a Python file nor a module; write path/file.py:object or "
            "module:object, from the top"
        )
    root = folder.resolve()
    return Reference(name, where, None, attribute, _texts(*more, *_with_src(root)), root=root)


def _in_file(name: str, file: Path, attribute: str, more: Sequence[Path]) -> Reference:
    if not file.is_file():
        raise UsageError(f"{name}: there is no file {file}; name one as path/file.py:object")
    file = file.resolve()
    root = next((folder for folder in file.parents if _is_root(folder)), file.parent)
    top, level = file.parent, _package_level(file)
    while (top / "__init__.py").is_file() and top != top.parent:
        top = top.parent
    if top == file.parent and level:  # A package without `__init__.py`.
        wanted = file.parents[min(level, len(file.parents) - 1)]
        around = (root / "src", Path.cwd(), root)
        top = next((folder for folder in around if wanted.is_relative_to(folder)), wanted)
    parts = file.relative_to(top).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
    if len(parts) == 1:
        module = file.stem.replace(".", "_")
        if module in sys.stdlib_module_names or module == "reflux":
            module += "_of_user"  # Nobody else may get it for Python's.
    # Run as a file, its siblings come first; run as a module, its package does.
    around = [top, *more, *_with_src(root), *_with_src(Path.cwd())]
    folders = [folder for folder in around if folder != file.parent or top == folder]
    first = () if level else (file.parent,)
    # A module beats a package without `__init__.py`, wherever it comes.
    package, _, _ = module.partition(".")
    beaten = (file.parent / f"{package}.py").is_file()
    last = () if beaten else (str(file.parent),)
    return Reference(name, module, file, attribute, _texts(*first, *folders), last, root)


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
    graph = graph or next(iter(graphs)) if len(graphs) == 1 else graph
    if graph not in graphs:
        raise UsageError(f"{name}: the graphs of {config} are {names}; write {config}:GRAPH")
    target = graphs[graph]["path"] if isinstance(graphs[graph], dict) else graphs[graph]
    where, _, attribute = str(target).rpartition(":")
    folder = config.resolve().parent
    local = [folder / str(each) for each in body.get("dependencies") or ()]
    ref = _placed(name, folder, where, attribute, [path for path in local if path.is_dir()])
    return replace(ref, env=_env_of(name, folder, body.get("env")))


def _env_of(name: str, folder: Path, env: Any) -> dict[str, str]:
    """The `env` of LangGraph's config file: variables, or a file of them, which may be missing."""
    try:
        values = dotenv_values(folder / env) if isinstance(env, str) and env else env
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{name}: its `env` {env} cannot be read: {error}") from error
    items = cast(Mapping[str, Any], values).items() if isinstance(values, Mapping) else ()
    return {key: str(value) for key, value in items if value is not None}


def _is_root(folder: Path) -> bool:
    outside = folder in (Path.home(), Path(folder.anchor))
    return not outside and any((folder / name).exists() for name in ROOT_FILES)


def _with_src(folder: Path) -> list[Path]:
    return [path for path in (folder, folder / "src") if path.is_dir()]


def _texts(*folders: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(folder.resolve()) for folder in folders))


def _package_level(file: Path) -> int:
    """How many folders up the package of a file begins, by its relative imports and those of its
    own folder's name; 0 for a file that imports neither."""
    level = 0
    for node in _nodes(file.read_bytes()):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            level = max(level, node.level)
            names = [node.module or ""] if node.level == 0 else []
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if any(name.startswith(f"{file.parent.name}.") for name in names):
            level = max(level, 1)
    return level


def _nodes(source: bytes) -> Iterator[ast.AST]:
    with suppress(SyntaxError, ValueError, RecursionError):
        yield from ast.walk(ast.parse(source))


def source_digest(ref: Reference, files: Iterable[str]) -> str:
    """Digest (hex, 16) of a project's files and of all that they import, the nearest first."""
    queue = [Path(file) for file in files]
    folders = [Path(folder) for folder in (*ref.folders, *ref.last)]
    sources: dict[str, str] = {}
    packages: set[str] = set()
    for path in queue:  # It grows.
        name = _relative(path, ref.root)
        if name in sources or len(sources) >= MAX_FILES:
            continue
        source = path.read_bytes() if path.is_file() else b""
        sources[name] = hashlib.sha256(source).hexdigest()
        for base, parts in _imports(source, path):
            tried = (_files(folder, parts) for folder in ([base] if base else folders))
            found = next(filter(None, tried), list[Path]())
            if not found and base is None:
                found, package = _elsewhere(parts)
                packages |= {package} if package else set()
            queue += found
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
    for node in _nodes(source):
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
