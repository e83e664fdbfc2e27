"""Options that name a file whose content decides the answers: recorded with its digest, so that a
question is asked again with the same content or not at all; a policy is recorded whole."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from reflux.agents.errors import UsageError
from reflux.agents.policy.policy import Policy
from reflux.finetune.configs.run import read_yaml

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


def policy_named(name: str | None) -> Policy | None:
    """A policy by its name, or out of a YAML file; None without one.

    Raises:
        UsageError: there is no such policy, or the file holds none.
    """
    if not name or not name.endswith((".yaml", ".yml")):
        return Policy.of(name or None)
    fields = read_yaml(Path(name))
    if not isinstance(fields, dict):
        raise UsageError(f"{name} holds no policy: write its fields, one `key: value` a line")
    return Policy.of(cast(dict[str, Any], fields))


def recorded_policy(name: str | None) -> Mapping[str, Any]:
    """A policy as the options of a question record it; empty without one.

    Raises:
        UsageError: as `policy_named`.
    """
    policy = policy_named(name)
    return {} if policy is None else policy.to_json()
