"""Loads a user's Python objects by name, and runs code that may block forever."""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from reflux.agents.errors import MissingError, RefluxError, UsageError


def load_object(name: str) -> tuple[Any, ModuleType]:
    """(object, module) of `module:object` or `path/file.py:object`; the working folder comes first.

    Raises:
        UsageError: there is no such module or object.
        MissingError: the module needs another that is not installed.
        RefluxError: the module fails when it is imported, or exits.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise UsageError(f"{name!r} names no object; write module:object or path/file.py:object")
    module = _load_module(where, name)
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise UsageError(f"{name}: {where} has no {attribute!r}; correct the name") from error
        except Exception as error:
            raise RefluxError(f"{name} fails when it is looked up: {error!r}") from error
    return value, module


def _load_module(where: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if not where.endswith(".py"):
            if where.startswith("."):
                raise UsageError(f"{name} names a module within another; write it from the top")
            return importlib.import_module(where)
        if not Path(where).is_file():
            raise UsageError(f"{name}: there is no file {where}; name one as path/file.py:object")
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None:
            raise UsageError(f"{name}: {where} is no Python file; name one as path/file.py:object")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)
        spec.loader.exec_module(module)
    except RefluxError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise UsageError(
                f"{name}: there is no module {where!r}, neither in {here} nor installed; write "
                "module:object or path/file.py:object"
            ) from error
        raise MissingError(f"{name} needs {error.name}, which is not installed") from error
    except SystemExit as error:  # Uncaught it would end the program with the user's exit code.
        raise RefluxError(
            f"{name} ends the program when it is imported: sys.exit({error.code!r}); put what it "
            'does there under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise RefluxError(
            f"{name} fails when it is imported: {type(error).__name__}: {str(error)[:300]}; "
            "correct it"
        ) from error
    return module


class OwnThreads(ThreadPoolExecutor):
    """Runs each job at once in a separate daemon thread.

    asyncio's default pool has few threads: blocking graphs would wait for each other while their
    time limits run, and one that never returns would keep the program from exiting.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job."""
        job: Future[Any] = Future()

        def work() -> None:
            if not job.set_running_or_notify_cancel():
                return
            try:
                job.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - the job's future raises it
                job.set_exception(error)

        threading.Thread(target=work, name="own-thread", daemon=True).start()
        return job
