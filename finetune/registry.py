"""The students of a run: folders that never change, and one pointer to the promoted one.

students/student-r1/                 adapter_config.json, adapter_model.safetensors,
                                     adapter.gguf, student.json
students/student-r1.evaluation.json  scores and gates, known only after the student is written
students/current.json                which student is the agent now, and which were before it
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from reflux.agents.clients.llama_cpp import file_sha256
from reflux.agents.errors import UsageError

VERSION = 1
ADAPTER, TWIN, CARD = "adapter_model.safetensors", "adapter.gguf", "student.json"
PICKLE = "adapter_model.bin"
FILES = ("adapter_config.json", ADAPTER, TWIN, CARD)
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}(?<!\.json)")
_TAKEN = re.compile(r"amplified|base|direct|student|best-of-.*")
"""Names by which something else is asked for; a student of that name would never be."""
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Base:
    """What a student's adapter belongs to."""

    model_id: str
    """The upstream model, as adapter_config.json names it."""
    gguf_sha256: str
    """The file that the student runs on."""
    dequantised_sha256: str
    """The weights that it was trained on."""


@dataclass(frozen=True)
class Student:
    """One student on disk."""

    path: Path
    """Its folder, a standard PEFT adapter."""
    id: str
    parent: str | None
    """The student that was the agent when this one was made; none where the base was."""
    round: int | None
    base: Base
    adapter_sha256: str
    twin_sha256: str
    rows_digest: str
    config: Mapping[str, Any]
    created: str
    """UTC, ISO 8601."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    gates: Sequence[Mapping[str, Any]] = ()

    @property
    def adapter_gguf(self) -> Path:
        """The adapter as llama.cpp loads it."""
        return self.path / TWIN

    @property
    def adapter_model(self) -> Path:
        """The adapter's weights as PEFT loads them."""
        return self.path / ADAPTER


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Card(_Strict):
    version: int
    id: str
    parent: str | None
    round: int | None
    base: Base
    adapter_sha256: str
    twin_sha256: str
    rows_digest: str
    config: dict[str, Any]
    created: str


class _Evaluation(_Strict):
    version: int
    scores: dict[str, Any]
    gates: list[dict[str, Any]]


class _Pointer(_Strict):
    current: str | None = None
    history: tuple[str, ...] = ()


class Registry:
    """The folder `students/` of one run. One process at a time writes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def staging(self, id: str) -> Iterator[Path]:
        """A temporary folder that becomes the student when the block ends, or nothing at all.

        The block puts the adapter and its twin there, then calls `write`.

        Raises:
            UsageError: a bad or a taken id, or a file is missing at the end.
        """
        self.require_free(id)
        self.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{id}-", dir=self.root))
        try:
            yield folder
            missing = [name for name in FILES if not (folder / name).is_file()]
            if missing:
                raise UsageError(
                    f"student {id} lacks {', '.join(missing)}: train and export into the staging "
                    "folder, then call write()"
                )
            self.require_free(id)
            for name in FILES:
                _sync(folder / name)
            folder.chmod(0o755)
            folder.replace(self.root / id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write(
        self,
        folder: Path,
        *,
        id: str,
        parent: str | None,
        round: int | None,
        base: Mapping[str, str],
        rows_digest: str,
        config: Mapping[str, Any],
    ) -> None:
        """Describe the student in a staging folder that already holds its adapter and twin.

        Raises:
            UsageError: the adapter or its twin is not there, or `base` lacks a digest.
        """
        for name in (ADAPTER, TWIN):
            if not (folder / name).is_file():
                raise UsageError(f"student {id} lacks {name}: train and export it before write()")
        try:
            known = TypeAdapter(Base).validate_python(dict(base))
        except ValidationError as error:
            raise UsageError(f"student {id}: its base is not described: {error}") from error
        card = _Card(
            version=VERSION,
            id=id,
            parent=parent,
            round=round,
            base=known,
            adapter_sha256=file_sha256(folder / ADAPTER),
            twin_sha256=file_sha256(folder / TWIN),
            rows_digest=rows_digest,
            config=dict(config),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        _write_whole(folder / CARD, card)

    def record_evaluation(
        self, id: str, scores: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a student's scores and gates, once; the same ones again change nothing.

        Raises:
            UsageError: no such student, or other scores or gates are recorded.
        """
        self._read(id)
        told = _Evaluation(
            version=VERSION, scores=dict(scores), gates=[dict(gate) for gate in gates]
        )
        known = self._evaluation(id)
        if known is None:
            _write_whole(self._evaluation_path(id), told)
        elif known != _Evaluation.model_validate_json(told.model_dump_json()):
            raise UsageError(
                f"student {id} was evaluated before, with another result: evaluations are never "
                "rewritten, make another student"
            )

    def get(self, id: str) -> Student:
        """The student, its adapter and twin verified.

        Raises:
            UsageError: no such student, one of another version, or its files were altered.
        """
        student = self._read(id)
        check_no_pickle(student.path)
        for path, expected in (
            (student.adapter_model, student.adapter_sha256),
            (student.adapter_gguf, student.twin_sha256),
        ):
            found = file_sha256(path) if path.is_file() else "none"
            if found != expected:
                raise UsageError(
                    f"{path} has sha256 {found[:12]}, student.json says {expected[:12]}: it is "
                    "corrupted or foreign; restore the folder, or make the student again under "
                    "another id"
                )
        return student

    def current(self) -> Student | None:
        """The promoted student, verified; none where the base is the agent."""
        id = self._pointer().current
        return None if id is None else self.get(id)

    def promote(self, id: str) -> Student:
        """Make a student the agent; nothing changes where it is already.

        Raises:
            UsageError: as `get`.
        """
        student = self.get(id)
        pointer = self._pointer()
        if pointer.current != id:
            self._point(_Pointer(current=id, history=(*pointer.history, id)))
        return student

    def rollback(self) -> Student | None:
        """Make the agent before the current one the agent again; none is the base.

        Raises:
            UsageError: the base is the agent already, or as `get`.
        """
        history = self._pointer().history
        if not history:
            raise UsageError("there is nothing to roll back: no student is promoted")
        earlier = history[:-1]
        student = self.get(earlier[-1]) if earlier else None
        self._point(_Pointer(current=student.id if student else None, history=earlier))
        return student

    def list(self) -> list[Student]:
        """Every student by round, then id; adapters are not verified here."""
        if not self.root.is_dir():
            return []
        names = [path.name for path in self.root.iterdir() if path.is_dir()]
        students = [self._read(name) for name in names if _ID.fullmatch(name)]
        return sorted(students, key=lambda s: (-1 if s.round is None else s.round, s.id))

    def _read(self, id: str) -> Student:
        _require_id(id)
        if not (self.root / id).is_dir():
            known = ", ".join(sorted(p.name for p in self.root.glob("[a-z0-9]*/"))) or "none"
            raise UsageError(f"there is no student {id!r} in {self.root}; known: {known}")
        card = _load(self.root / id / CARD, _Card)
        if card.id != id:
            raise UsageError(
                f"{self.root / id} holds student {card.id}: a folder keeps the name of its "
                "student, rename it back"
            )
        told = self._evaluation(id)
        fields = {name: getattr(card, name) for name in type(card).model_fields}
        del fields["version"]
        return Student(
            path=self.root / id,
            **fields,
            scores=told.scores if told else {},
            gates=told.gates if told else (),
        )

    def _evaluation(self, id: str) -> _Evaluation | None:
        path = self._evaluation_path(id)
        return _load(path, _Evaluation) if path.exists() else None

    def _evaluation_path(self, id: str) -> Path:
        return self.root / f"{id}.evaluation.json"

    def _pointer(self) -> _Pointer:
        path = self.root / "current.json"
        return _load(path, _Pointer) if path.exists() else _Pointer()

    def _point(self, pointer: _Pointer) -> None:
        _write_whole(self.root / "current.json", pointer)

    def require_free(self, id: str) -> None:
        """Hold an id to what a new student may be called.

        Raises:
            UsageError: it is taken, or is none.
        """
        _require_id(id)
        if _TAKEN.fullmatch(id):
            raise UsageError(f"{id!r} names no student: it means something else; choose another")
        if (self.root / id).exists():
            raise UsageError(
                f"student {id} exists in {self.root} and never changes: choose another name"
            )


def check_no_pickle(folder: Path) -> None:
    """Where an adapter's weights are a pickle only, they are not read: that would run its code.

    Raises:
        UsageError: they are.
    """
    if (folder / PICKLE).exists() and not (folder / ADAPTER).exists():
        raise UsageError(
            f"{folder} holds its adapter as a pickle ({PICKLE}), which runs code when it is read: "
            "save it again with safe_serialization=True"
        )


def _require_id(id: str) -> None:
    if not _ID.fullmatch(id):
        raise UsageError(
            f"{id[:130]!r} cannot name a student: use at most 128 small letters, digits, '.', '_' "
            "and '-', beginning with a letter or digit, and not ending in .json"
        )


def _load(path: Path, model: type[_Model]) -> _Model:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "version" in model.model_fields and found.get("version") != VERSION:
            raise UsageError(
                f"{path} is of version {found.get('version')}, this Reflux reads {VERSION}: use "
                "the Reflux that wrote it, or make the student again"
            )
        return model.model_validate(found)
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; restore it") from error


def _write_whole(path: Path, body: BaseModel) -> None:
    """Readers, and a kill, see the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    plain = json.dumps(body.model_dump(mode="json"), indent=2) + "\n"
    temporary.write_text(plain, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
