"""What an adapter's folder may hold: nothing in it runs code, and a change of it is seen."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.errors import UsageError
from reflux.finetune.adapter_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    PICKLE,
    check_adapter,
    check_files,
)
from reflux.finetune.registry import CARD, Registry

BASE = {"model_id": "org/model", "gguf_sha256": "a" * 64, "dequantised_sha256": "b" * 64}


class Touches:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """One student, promoted."""
    registry = Registry(tmp_path / "students")
    with registry.staging("s") as (folder, card):
        (folder / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8}))
        (folder / ADAPTER).write_bytes(b"weights")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        card.update(parent=None, round=0, base=BASE, rows_digest="rows", config={})
    registry.promote("s")
    return registry


def config(**fields: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(fields))

    return write


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"auto_mapping": {"base_model_class": "A", "parent_library": "evil"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}, "megatron_core": "megatron.core"}, "megatron_config"),
        ({"megatron_core": "evil"}, "megatron_core"),
        ({"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "evil/repo"}, "peft_type"),
        ({"target_modules": [{"a": 1}]}, "target_modules"),
    ],
)
def test_a_config_that_names_code_is_refused_and_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], says: str
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config(**fields)(tmp_path)
    with pytest.raises(UsageError, match=f"{ADAPTER_CONFIG}: {says}.* only plain LoRA adapters"):
        check_adapter(tmp_path)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("content", ["", "[1", "\x00"])
def test_a_config_that_is_no_json_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        check_adapter(tmp_path)


def test_what_training_writes_passes(tmp_path: Path) -> None:
    """The config of PEFT's own LoRA, with all its fields."""
    from peft import LoraConfig

    LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear").save_pretrained(str(tmp_path))
    check_adapter(tmp_path)


def test_an_adapter_that_is_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    config(peft_type="LORA")(tmp_path)
    (tmp_path / PICKLE).write_bytes(pickle.dumps(Touches(tmp_path / "ran")))
    with pytest.raises(UsageError, match="runs code when it is read"):
        check_adapter(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [ADAPTER, ADAPTER_CONFIG, "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_student_with_a_changed_file_is_not_loaded(
    registry: Registry, name: str, gone: bool
) -> None:
    path = registry.get("s").path / name
    path.unlink() if gone else path.write_text("{}  ")
    with pytest.raises(UsageError, match=f"{name} has sha256 .*, {CARD} says"):
        registry.current()


def test_a_student_without_a_manifest_is_held_to_the_schema(registry: Registry) -> None:
    """Earlier versions wrote the digests of the weights only."""
    folder = registry.get("s").path
    card = json.loads((folder / CARD).read_text())
    del card["files"]
    (folder / CARD).write_text(json.dumps(card))
    (folder / "tokenizer.json").write_text("{} ")
    registry.get("s")
    config(peft_type="LORA", auto_mapping={"parent_library": "evil"})(folder)
    with pytest.raises(UsageError, match="auto_mapping"):
        registry.get("s")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", ".."])
def test_a_manifest_names_files_beside_it_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no file beside it"):
        check_files(tmp_path, {name: "0" * 64}, CARD)
