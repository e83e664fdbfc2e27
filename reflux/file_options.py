"""Options that name a file whose content decides the answers: recorded with its digest, so that a
question is asked again with the same content or not at all."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from reflux.agents.errors import UsageError

T = TypeVar("T")


class FileOption(Generic[T]):
    """An option whose file `read` makes a value and a digest (hex) of.

    A file is read again only after its time or size has changed.
    """

    def __init__(self, read: Callable[[Path], tuple[T, str]]) -> None:
        self._read = lru_cache(maxsize=4)(lambda path, *_: read(path))

    def _at(self, path: Path) -> tuple[T, str]:
        found = path.stat() if path.is_file() else None
        return self._read(path, *((found.st_mtime_ns, found.st_size) if found else ()))

    def recorded(self, path: Path | None) -> dict[str, str]:
        """A file as the options of a question record it: `file` and `digest`; empty without one.

        Raises:
            UsageError: as `read`.
        """
        return {} if path is None else {"file": str(path.absolute()), "digest": self._at(path)[1]}

    def of(self, recorded: Mapping[str, str]) -> T | None:
        """What a question was asked with; None without any.

        Raises:
            UsageError: the file is gone, or was changed since.
        """
        if not recorded:
            return None
        value, digest = self._at(Path(recorded["file"]))
        if digest != recorded["digest"]:
            raise UsageError(
                f"{recorded['file']} was changed since the question was asked with it: restore it, "
                "or ask the question again"
            )
        return value
