"""The registry: a student appears whole, never changes, and is promoted by one pointer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reflux.agents.clients.llama_cpp import file_sha256
from reflux.agents.errors import UsageError
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.registry import Registry

BASE = {"model_id": "org/model", "gguf_sha256": "a" * 64, "dequantised_sha256": "b" * 64}


def fill(folder: Path, content: str = "weights") -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(content)
    (folder / "adapter.gguf").write_text(f"{content} as GGUF")


def make(registry: Registry, id: str, round: int | None = 0, parent: str | None = None) -> None:
    with registry.staging(id) as (folder, card):
        fill(folder, id)
        card.update(described(round, parent))


def described(
    round: int | None = 0, parent: str | None = None, base: Mapping[str, str] = BASE
) -> dict[str, Any]:
    return {
        "parent": parent,
        "round": round,
        "base": base,
        "rows_digest": "rows",
        "config": {"seed": 3},
    }


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "students")


def left(registry: Registry) -> list[str]:
    return sorted(path.name for path in registry.root.iterdir())


def test_an_empty_registry_has_no_students_and_the_base_is_the_agent(registry: Registry) -> None:
    assert registry.list() == []
    assert registry.current() is None
    with pytest.raises(UsageError, match="nothing to roll back"):
        registry.rollback()


def test_a_student_is_read_back_as_written(registry: Registry) -> None:
    make(registry, "student-r1", round=1, parent="student-r0")
    student = registry.get("student-r1")
    assert (student.id, student.parent, student.round) == ("student-r1", "student-r0", 1)
    assert vars(student.base) == {**BASE, "config": BaseConfig()}
    assert (student.rows_digest, student.config) == ("rows", {"seed": 3})
    assert student.path == registry.root / "student-r1"
    assert student.adapter_gguf is not None
    assert student.adapter_gguf.read_text() == "student-r1 as GGUF"
    assert student.adapter_sha256 == file_sha256(student.path / "adapter_model.safetensors")
    assert student.created.endswith("+00:00")
    assert (student.scores, student.gates) == ({}, [])
    assert left(registry) == ["student-r1"]
    with pytest.raises(ValidationError):
        student.id = "other"  # type: ignore[misc]


def test_the_list_is_in_the_order_of_rounds(registry: Registry) -> None:
    for id, round in (("student-r10", 10), ("student-r2", 2), ("free", None)):
        make(registry, id, round)
    assert [student.id for student in registry.list()] == ["free", "student-r2", "student-r10"]


def test_a_staging_that_fails_leaves_nothing(registry: Registry) -> None:
    with pytest.raises(RuntimeError), registry.staging("student-r0") as (folder, _):
        fill(folder)
        raise RuntimeError
    assert left(registry) == []


def test_a_staging_folder_is_no_student_yet(registry: Registry) -> None:
    with registry.staging("student-r0") as (folder, card):
        fill(folder)
        card.update(described())
        assert folder.parent == registry.root
        assert registry.list() == []
    assert [student.id for student in registry.list()] == ["student-r0"]


def test_a_student_that_lacks_a_file_is_not_made(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"is not complete:"), registry.staging("s") as (folder, _):
        fill(folder)
    lacks = pytest.raises(UsageError, match=r"lacks adapter_model\.safetensors")
    with lacks, registry.staging("s") as (folder, card):
        fill(folder)
        (folder / "adapter_model.safetensors").unlink()
        card.update(described())
    lacking = {"model_id": "org/model"}
    with pytest.raises(UsageError, match="gguf_sha256"), registry.staging("s") as (folder, card):
        fill(folder)
        card.update(described(base=lacking))
    assert left(registry) == []


def test_an_id_is_taken_once(registry: Registry) -> None:
    make(registry, "student-r0")
    before = (registry.root / "student-r0" / "student.json").read_bytes()
    with pytest.raises(UsageError, match=r"exists.*choose another"):
        make(registry, "student-r0")
    with pytest.raises(UsageError, match="exists"), registry.staging("late") as (folder, card):
        fill(folder)
        card.update(described())
        (registry.root / "late").mkdir()
    assert (registry.root / "student-r0" / "student.json").read_bytes() == before


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "a/b", "Student", "-x", ".hidden", "a b", "x\n", "a.json"]
)
def test_an_id_cannot_lead_out_of_the_folder(registry: Registry, id: str) -> None:
    with pytest.raises(UsageError, match="cannot name a student"), registry.staging(id):
        pass
    with pytest.raises(UsageError, match="cannot name a student"):
        registry.get(id)


@pytest.mark.parametrize("id", ["base", "amplified", "best-of-8"])
def test_an_id_does_not_mean_anything_else(registry: Registry, id: str) -> None:
    with pytest.raises(UsageError, match="means something else"):
        registry.check_new(id)


def test_an_unknown_student_is_told_with_the_known_ones(registry: Registry) -> None:
    make(registry, "student-r0")
    with pytest.raises(UsageError, match=r"no student 'student-r7'.*known: student-r0"):
        registry.promote("student-r7")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter.gguf"])
def test_an_altered_adapter_is_refused(registry: Registry, name: str) -> None:
    make(registry, "student-r0")
    registry.promote("student-r0")
    (registry.root / "student-r0" / name).write_text("foreign")
    for use in (registry.current, lambda: registry.get("student-r0")):
        with pytest.raises(UsageError, match="corrupted or foreign"):
            use()
    with pytest.raises(UsageError, match="corrupted or foreign"):
        registry.promote("student-r0")
    assert [student.id for student in registry.list()] == ["student-r0"]
    (registry.root / "student-r0" / name).unlink()
    with pytest.raises(UsageError, match="sha256 none"):
        registry.get("student-r0")


def test_promotion_and_rollback_move_one_pointer(registry: Registry) -> None:
    for number in range(3):
        make(registry, f"student-r{number}", number)
    assert registry.promote("student-r0").id == "student-r0"
    registry.promote("student-r1")
    registry.promote("student-r1")
    pointer = json.loads((registry.root / "current.json").read_text())
    assert pointer == {"current": "student-r1", "history": ["student-r0", "student-r1"]}
    registry.promote("student-r2")
    assert Registry(registry.root).current() == registry.get("student-r2")
    assert registry.rollback() == registry.get("student-r1")
    assert registry.rollback() == registry.get("student-r0")
    assert registry.current() == registry.get("student-r0")
    assert registry.rollback() is None
    assert registry.current() is None
    assert len(registry.list()) == 3


def test_a_rollback_to_an_altered_student_changes_nothing(registry: Registry) -> None:
    for number in range(2):
        make(registry, f"student-r{number}", number)
        registry.promote(f"student-r{number}")
    (registry.root / "student-r0" / "adapter.gguf").write_text("foreign")
    with pytest.raises(UsageError, match="corrupted or foreign"):
        registry.rollback()
    assert registry.current() == registry.get("student-r1")


def test_an_evaluation_is_added_once_and_beside(registry: Registry) -> None:
    make(registry, "student-r0")
    folder = registry.root / "student-r0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    scores = {"student": {"accuracy": 0.9, "interval": (0.8, 0.95)}}
    gates: list[dict[str, Any]] = [{"name": "canary", "value": 0.5, "passed": True}]
    registry.record_evaluation("student-r0", scores, gates)
    registry.record_evaluation("student-r0", scores, gates)
    student = registry.get("student-r0")
    assert student.scores["student"] == {"accuracy": 0.9, "interval": [0.8, 0.95]}
    assert student.gates == gates
    assert registry.list() == [student]
    with pytest.raises(UsageError, match="never change"):
        registry.record_evaluation("student-r0", {}, gates)
    with pytest.raises(UsageError, match="no student"):
        registry.record_evaluation("student-r1", scores, gates)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 3}, "is of version 3, this Reflux reads 2"),
        ({"id": "another"}, "holds student another"),
        ({"extra": 1}, "cannot be read"),
        ({"base": {}}, "cannot be read"),
    ],
)
def test_a_foreign_student_json_is_refused(
    registry: Registry, change: dict[str, Any], told: str
) -> None:
    make(registry, "student-r0")
    path = registry.root / "student-r0" / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=told):
        registry.get("student-r0")


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"current": 3}'])
def test_a_broken_pointer_is_told(registry: Registry, text: str) -> None:
    make(registry, "student-r0")
    (registry.root / "current.json").write_text(text)
    with pytest.raises(UsageError, match=r"current\.json cannot be read"):
        registry.current()
