"""The pristine base that every student is trained from: a GGUF file unpacked to bf16, once.

The agent runs on llama.cpp's quantised weights; training needs plain ones. Unpacking those same
weights, rather than fetching the original ones, keeps the base that is trained and the base that
is run the same model.
"""

import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from reflux.agents.clients.llama_cpp import file_sha256
from reflux.agents.errors import NO_SPACE, MissingError, RefluxError, UsageError
from reflux.finetune import cache_folder, check_cache_folder

WEIGHTS = "model.safetensors"


def dequantised_base(gguf: Path, cache: Path | None = None) -> Path:
    """The GGUF's weights in bf16 as a plain transformers folder, created by the first call.

    It is built under another name and then renamed, so that an interruption or a second process
    leaves no partial folder.

    Raises:
        MissingError: there is no such file, or the cache folder cannot be written.
        UsageError: transformers cannot read it.
    """
    if not gguf.is_file():
        raise MissingError(f"there is no model file {gguf}")
    root = cache or cache_folder()
    folder = root / f"base-{file_sha256(gguf)}"
    if folder.is_dir():
        return folder
    check_cache_folder(root)
    with tempfile.TemporaryDirectory(prefix=".base-", dir=root) as scratch:
        built = Path(scratch) / "base"
        _unpack(gguf, built)
        try:
            built.replace(folder)
        except OSError:
            # Another process finished the folder first; equal names have equal content.
            if not folder.is_dir():
                raise
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    with quiet_libraries():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=transformers.GgufConfig(dequantize=True),
                local_files_only=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, local_files_only=True
            )
        except (ValueError, OSError, RuntimeError, KeyError, struct.error) as error:
            raise UsageError(
                f"{gguf} cannot be unpacked by transformers {transformers.__version__}: {error}; "
                "use a GGUF of a supported architecture, or a transformers folder as the base"
            ) from error
        with wrapping_write_errors(folder):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def base_digest(folder: Path) -> str:
    """sha256 of a base folder's weights (hex), recorded with every adapter.

    Raises:
        MissingError: the folder holds no `model.safetensors`.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise MissingError(
            f"{folder} holds no {WEIGHTS}: delete the folder to create it again, or save the "
            "model in one safetensors file"
        )
    return file_sha256(weights)


def load_base(folder: Path) -> tuple[Any, Any]:
    """The model and tokenizer of a base folder, in bf16, on a GPU if there is one.

    Reads safetensors only, because reading a pickle runs its code.

    Raises:
        MissingError: the folder, its safetensors or its tokenizer is missing.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no base model folder {folder}")
    cuda = torch.cuda.is_available()
    with quiet_libraries():
        try:
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.bfloat16,
                # On a CPU, sequences of some dozen tokens train faster without the fused kernel.
                attn_implementation="sdpa" if cuda else "eager",
                use_safetensors=True,
                local_files_only=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise MissingError(
                f"{folder} is no complete base model: {error}; it needs config.json, safetensors "
                "weights (no pickles) and a tokenizer: delete the folder to create it again"
            ) from error
    return model.to("cuda" if cuda else "cpu"), tokenizer


def load_adapted(folder: Path, adapter: Path) -> tuple[Any, Any]:
    """The model of a base folder with a PEFT adapter on it, and its tokenizer; see `load_base`."""
    from peft import PeftModel

    model, tokenizer = load_base(folder)
    with quiet_libraries():
        return PeftModel.from_pretrained(model, str(adapter)), tokenizer


@contextmanager
def wrapping_write_errors(folder: Path) -> Iterator[None]:
    """Turn safetensors' write errors into ours.

    Raises:
        RefluxError: weights cannot be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise RefluxError(f"weights cannot be written in {folder}: {error}; {NO_SPACE}") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers and datasets for a block."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    dataset_bars = datasets.are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # The libraries warn of each other's deprecated names.
            warnings.filterwarnings("ignore", "", FutureWarning, "transformers|trl|peft")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if not dataset_bars:
            datasets.enable_progress_bars()
