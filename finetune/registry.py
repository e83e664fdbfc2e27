"""The students of a run: folders that never change, and one pointer to the promoted student.

students/student-r1/                 adapter_config.json, adapter_model.safetensors,
                                     adapter.gguf, student.json
students/student-r1.evaluation.json  scores and gates, measured after the student is written
students/current.json                the student that is the agent, and the agents before it
students/student-r1.overseer/        a learned overseer, whose id is student-r1:overseer
students/overseer.json               as current.json; so have the aggregator and the verifier
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, Field, ValidationError

from reflux.agents.clients.llama_cpp import file_sha256
from reflux.agents.errors import UsageError
from reflux.agents.files import flush, write_json
from reflux.agents.overseers.step_forms import StepStyle
from reflux.finetune.adapter_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    check_adapter,
    check_files,
    check_no_pickle,
    manifest_of,
)
from reflux.finetune.configs.run import BaseConfig, Strict

VERSION = 2
"""Of student.json and the evaluation files."""
ADAPTER_GGUF, CARD = "adapter.gguf", "student.json"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER)
"""What every student has, beside its tokenizer, and its form for llama.cpp where there is one."""
Role = Literal["agent", "overseer", "aggregator", "verifier"]
_OTHERS = get_args(Role)[1:]
"""Roles that the id of a student ends in, after a colon; its folder has a dot there."""
_END = rf"({'|'.join(_OTHERS)})"
_NOT = "".join(rf"(?<!\.{end})" for end in ("json", *_OTHERS))
_ID = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,127}}{_NOT}(:{_END})?")
_RESERVED = re.compile(rf"(amplified|base|direct|student|best-of-.*|cascade-[0-9.]+)(:{_END})?")
"""Names that `--model` and `--systems` give another meaning."""
_FILES = {"agent": "current"}
POINTERS: Mapping[Role, str] = {r: f"{_FILES.get(r, r)}.json" for r in get_args(Role)}
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class StudentBase:
    """The base that a student's adapter fits."""

    model_id: str
    """Id of a model card, or a path."""
    gguf_sha256: str
    """Of the GGUF file that the student runs on; empty for a base that came as a folder."""
    dequantised_sha256: str
    """Of the weights that it was trained on."""
    config: BaseConfig = field(default_factory=BaseConfig)
    """How the base is found and loaded."""

    @property
    def weights(self) -> str:
        """What `Base.weights_digest` was."""
        return self.gguf_sha256 or self.dequantised_sha256


class _Evaluation(Strict):
    version: int
    scores: dict[str, Any]
    gates: list[dict[str, Any]]


class _Pointer(Strict):
    current: str | None = None
    history: tuple[str, ...] = ()


class Student(Strict):
    """One student on disk: its card, and its evaluation once it has one."""

    version: int
    id: str
    role: Role = "agent"
    """What it was trained for: to answer questions, divide them, combine answers or judge them."""
    style: StepStyle | None = None
    """Of an overseer: the prompt and the form of replies that it was trained on."""
    parent: str | None
    """The student that was the agent when this one was trained; None where the base was."""
    round: int | None
    base: StudentBase
    adapter_sha256: str
    adapter_gguf_sha256: str
    """Empty where llama.cpp does not know the architecture."""
    files: dict[str, str] = Field(default={})
    """The sha256 of every other file of its folder; empty in students of earlier versions."""
    rows_digest: str
    config: dict[str, Any]
    parity: dict[str, Any] | None = None
    """Whether every engine gives the answers of plain PEFT; see `reflux.finetune.export.parity`."""
    created: str
    """UTC, ISO 8601."""
    path: Path = Field(exclude=True)
    """Its folder, a standard PEFT adapter."""
    scores: dict[str, Any] = Field(default={}, exclude=True)
    gates: list[dict[str, Any]] = Field(default=[], exclude=True)

    @property
    def adapter_gguf(self) -> Path | None:
        """The adapter in the form that llama.cpp loads, where there is one."""
        return self.path / ADAPTER_GGUF if self.adapter_gguf_sha256 else None


class Registry:
    """The folder `students/` of one run; one process at a time writes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def staging(self, id: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield a temporary folder and the fields of a card, which become the student when the
        block ends without an error.

        The block writes the adapter, its tokenizer and, where there is one, its form for llama.cpp
        into the folder, and sets `parent`, `round`, `base`, `rows_digest`, `config` of `Student`.

        Raises:
            UsageError: the id is invalid or exists, or a file or a field is missing at the end.
        """
        self.check_new(id)
        self.root.mkdir(parents=True, exist_ok=True)
        staged = f".{self._folder(id).name}"
        for left in self.root.glob(f"{staged}-????????"):  # By a process that was killed.
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{staged}-", dir=self.root))
        fields: dict[str, Any] = {}
        try:
            yield folder, fields
            if missing := [name for name in ADAPTER_FILES if not (folder / name).is_file()]:
                raise UsageError(
                    f"student {id} lacks {', '.join(missing)}: train and export into the staging "
                    "folder"
                )
            _write(folder / CARD, _card(id, folder, fields))
            self.check_new(id)
            for file in folder.iterdir():
                flush(file)
            folder.chmod(0o755)
            folder.replace(self._folder(id))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def record_evaluation(
        self, id: str, scores: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]
    ) -> None:
        """Record a student's scores and gates once; recording the same again changes nothing.

        Raises:
            UsageError: no such student, or other scores or gates are recorded.
        """
        self._read(id)
        evaluation = _Evaluation(
            version=VERSION, scores=dict(scores), gates=[dict(gate) for gate in gates]
        )
        recorded = self._evaluation(id)
        if recorded is None:
            _write(self._evaluated(id), evaluation)
        elif recorded != _Evaluation.model_validate_json(evaluation.model_dump_json()):
            raise UsageError(
                f"student {id} has another recorded evaluation, and evaluations never change: "
                "make another student"
            )

    def get(self, id: str) -> Student:
        """The student, after its adapter files are verified.

        Raises:
            UsageError: no such student, one of another version, or its files were altered.
        """
        student = self._read(id)
        check_no_pickle(student.path)
        files = {ADAPTER: student.adapter_sha256}
        if student.adapter_gguf is not None:
            files[ADAPTER_GGUF] = student.adapter_gguf_sha256
        check_files(student.path, files | student.files, CARD)
        check_adapter(student.path)
        return student

    def current(self, role: Role = "agent") -> Student | None:
        """The promoted student, verified; None where the base is the agent, or where no learned
        overseer divides."""
        id = self._pointer(role).current
        return None if id is None else self.get(id)

    def promote(self, id: str) -> Student:
        """Make a student the agent, or a learned overseer that of the run.

        Raises:
            UsageError: as `get`.
        """
        student = self.get(id)
        pointer = self._pointer(student.role)
        if pointer.current != id:
            self._point((*pointer.history, id), student.role)
        return student

    def rollback(self, role: Role = "agent") -> Student | None:
        """Make the one before the current one of a role current again; None is the base, or no
        learned overseer.

        Raises:
            UsageError: none is promoted, or as `get`.
        """
        history = self._pointer(role).history
        if not history:
            raise UsageError("there is nothing to roll back: no student is promoted")
        earlier = history[:-1]
        student = self.get(earlier[-1]) if earlier else None
        self._point(earlier, role)
        return student

    def list(self, role: Role | None = None) -> list[Student]:
        """Every student, or those of a role, by round, then id; adapter files are not verified."""
        students = [self._read(name) for name in self.ids()]
        students = [each for each in students if role in (None, each.role)]
        return sorted(students, key=lambda s: (-1 if s.round is None else s.round, s.id))

    def ids(self) -> set[str]:
        """The names of all students, readable or not."""
        if not self.root.is_dir():
            return set()
        names = (path.name for path in self.root.glob("*/"))
        ids = (re.sub(rf"\.{_END}$", r":\1", name) for name in names)
        return {id for id in ids if _ID.fullmatch(id)}

    def _folder(self, id: str) -> Path:
        """The folder of a student of this id."""
        return self.root / id.replace(":", ".")

    def _evaluated(self, id: str) -> Path:
        return self.root / f"{self._folder(id).name}.evaluation.json"

    def _read(self, id: str) -> Student:
        _check_id(id)
        folder = self._folder(id)
        if not folder.is_dir():
            known = ", ".join(sorted(self.ids())) or "none"
            raise UsageError(f"there is no student {id!r} in {self.root}; known: {known}")
        evaluation = self._evaluation(id)
        results = evaluation.model_dump(exclude={"version"}) if evaluation else {}
        student = _load(folder / CARD, Student, path=folder, **results)
        if student.id != id:
            raise UsageError(
                f"{folder} holds student {student.id}: rename the folder back, it must "
                "have the student's name"
            )
        return student

    def _evaluation(self, id: str) -> _Evaluation | None:
        path = self._evaluated(id)
        return _load(path, _Evaluation) if path.exists() else None

    def _pointer(self, role: Role) -> _Pointer:
        path = self.root / POINTERS[role]
        return _load(path, _Pointer) if path.exists() else _Pointer()

    def _point(self, history: tuple[str, ...], role: Role) -> None:
        pointer = _Pointer(current=history[-1] if history else None, history=history)
        _write(self.root / POINTERS[role], pointer)

    def check_new(self, id: str) -> None:
        """Check that a new student may have this id.

        Raises:
            UsageError: it is invalid, reserved or exists.
        """
        _check_id(id)
        if _RESERVED.fullmatch(id):
            raise UsageError(
                f"{id!r} cannot name a student: it means something else; choose another"
            )
        if self._folder(id).exists():
            raise UsageError(
                f"student {id} exists in {self.root} and never changes: choose another name"
            )


def role_of(id: str) -> Role:
    """The role of a student of this id."""
    return cast(Role, id.partition(":")[2] or "agent")


def _card(id: str, folder: Path, fields: Mapping[str, Any]) -> Student:
    gguf = folder / ADAPTER_GGUF
    try:
        return Student(
            version=VERSION,
            id=id,
            role=role_of(id),
            path=folder,
            adapter_sha256=file_sha256(folder / ADAPTER),
            adapter_gguf_sha256=file_sha256(gguf) if gguf.is_file() else "",
            files=manifest_of(folder, but=CARD),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **fields,
        )
    except ValidationError as error:
        raise UsageError(f"student {id} is not complete: {error}") from error


def _check_id(id: str) -> None:
    if not _ID.fullmatch(id):
        raise UsageError(
            f"{id[:130]!r} cannot name a student: use at most 128 small letters, digits, '.', '_' "
            "and '-', beginning with a letter or digit, and not ending in .json or .overseer"
        )


def _load(file: Path, model: type[_Model], **more: Any) -> _Model:
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        if "version" in model.model_fields and body.get("version") != VERSION:
            raise UsageError(
                f"{file} is of version {body.get('version')}, this Reflux reads {VERSION}: use "
                "the Reflux that wrote it, or make the student again"
            )
        return model.model_validate({**body, **more})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} cannot be read: {error}; restore it") from error


def _write(path: Path, body: BaseModel) -> None:
    write_json(path, body.model_dump(mode="json"))
