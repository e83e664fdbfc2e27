"""The files of an adapter: which may be loaded, and the digests by which a change is seen.

An adapter comes from a folder that others may have written. Its weights are safetensors, which hold
numbers only. Its config is JSON, but PEFT imports modules that some of its fields name, and loads
tokenizers that other kinds of adapters name, so those are refused here.
"""

import json
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from reflux.agents.clients.llama_cpp import file_sha256
from reflux.agents.errors import UsageError

ADAPTER, ADAPTER_CONFIG, PICKLE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "adapter_model.bin",
)


class AdapterConfig(BaseModel):
    """What an adapter's config must be; other fields are LoRA's own, and hold plain values."""

    model_config = ConfigDict(extra="allow")

    peft_type: Literal["LORA"] = "LORA"
    """Prompt tuning, for one, loads any tokenizer that the config names, with its code."""
    auto_mapping: None = None
    """A library and a class in it, which PEFT imports."""
    megatron_config: None = None
    megatron_core: Literal["megatron.core"] | None = None
    """A module that PEFT imports."""
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    base_model_name_or_path: str | None = None


def check_adapter(folder: Path) -> None:
    """Check that an adapter's weights are no pickle, and that its config names no code.

    Raises:
        UsageError: one of them is otherwise, or the config is none.
    """
    check_no_pickle(folder)
    path = folder / ADAPTER_CONFIG
    try:
        AdapterConfig.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            _refuse(path, error)
        raise UsageError(f"{path} cannot be read: {error}; restore it") from error


def _refuse(path: Path, error: ValidationError) -> NoReturn:
    first: Any = error.errors()[0]
    name = ".".join(map(str, first["loc"])) or "the file"
    raise UsageError(
        f"{path}: {name} is {json.dumps(first['input'], default=str)[:80]}, and only plain LoRA "
        "adapters are loaded: such fields make PEFT import code; restore the file"
    ) from error


def check_no_pickle(folder: Path) -> None:
    """Check that an adapter has other weights than a pickle: reading a pickle runs its code.

    Raises:
        UsageError: it has not.
    """
    if (folder / PICKLE).exists() and not (folder / ADAPTER).exists():
        raise UsageError(
            f"{folder} holds its adapter as a pickle ({PICKLE}), which runs code when it is read: "
            "save it again with safe_serialization=True"
        )


def manifest_of(folder: Path, but: str) -> dict[str, str]:
    """The sha256 of each file of a folder, by its name, without the one that is to hold them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != but)
    return {path.name: file_sha256(path) for path in files}


def check_files(folder: Path, expected: dict[str, str], manifest: str) -> None:
    """Check that the files of a manifest are there, and unchanged.

    Raises:
        UsageError: one is not.
    """
    for name, digest in expected.items():
        path = folder / name
        if Path(name).name != name or name == "..":
            raise UsageError(f"{folder / manifest} names {name!r}, which is no file beside it")
        found = file_sha256(path) if path.is_file() else "none"
        if found != digest:
            raise UsageError(
                f"{path} has sha256 {found[:12]}, {manifest} says {digest[:12]}: it is corrupted "
                "or foreign; restore the folder, or make the student again under another id"
            )
