"""Python of the user's by name: `module:object`, or `path/file.py:object`.

A thread for each job: for code of the user's, which may block for ever.
"""

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
    """What `module:object` names, and its module; modules of the working folder come first.

    Raises:
        UsageError: there is no such module, or nothing of this name in it.
        MissingError: it needs a module that is not installed.
        RefluxError: the module fails when it is imported, or ends the program.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise UsageError(f"{name!r} names no object; write module:object or path/file.py:object")
    module = _load_module(where, name)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UsageError(f"{name}: {where} has no {attribute!r}; correct the name") from error
        except Exception as error:
            raise RefluxError(f"{name} fails when it is looked up: {error!r}") from error
    return found, module


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
    except SystemExit as error:  # No Exception: unheard, it would end us as if all were well.
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
    """Runs each job at once, in a thread of its own that nobody waits for at the end.

    asyncio's own pool has some threads more than there are processors. Of 32 blocking graphs the
    others would wait for one while their seconds run out, and a single one that never returns would
    keep the whole program from ending.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a job."""
        job: Future[Any] = Future()

        def work() -> None:
            if not job.set_running_or_notify_cancel():
                return
            try:
                job.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the job is told
                job.set_exception(error)

        threading.Thread(target=work, name="own-thread", daemon=True).start()
        return job
