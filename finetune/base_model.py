"""The pristine base that every student is trained from: a GGUF file unpacked to bf16, once.

The agent runs on llama.cpp's quantized weights; training needs plain ones. Unpacking those same
weights, rather than fetching the original ones, keeps the base that is trained and the base that
is run the same model.
"""

import re
import struct
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from reflux.agents.clients.llama_cpp import file_sha256
from reflux.agents.errors import NO_SPACE, MissingError, RefluxError, UsageError, pip_install
from reflux.finetune import cache_folder, check_cache_folder
from reflux.finetune.chat_template import fit_template
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.data.spelling import spell

DEFAULT_LOADING = BaseConfig()
TORCH_CANNOT_WRITE = re.compile("PytorchStreamWriter|unexpected pos")
"""In what `torch.save` says of a file that it can't write."""


def dequantised_base(gguf: Path, cache: Path | None = None) -> Path:
    """The GGUF's weights in bf16 as a plain transformers folder, created by the first call.

    It lies in `REFLUX_CACHE`, else in the user's cache folder. It is built under another name and
    then renamed, so that an interruption or a second process leaves no partial folder.

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
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=transformers.GgufConfig(dequantize=True),
                local_files_only=True,
                trust_remote_code=False,
            )
            check_found(found)
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (ValueError, OSError, RuntimeError, KeyError, struct.error) as error:
            raise UsageError(
                f"{gguf} cannot be unpacked by transformers {transformers.__version__}: {error}; "
                "use a GGUF of a supported architecture, or a transformers folder as the base"
            ) from error
        with wrapping_write_errors(folder):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def load_base(
    folder: Path, adapter: Path | None = None, config: BaseConfig = DEFAULT_LOADING
) -> tuple[Any, Any]:
    """The model and tokenizer of a base folder, on a GPU if there is one; with a PEFT adapter
    merged in fp32 and rounded once if one is named.

    The tokenizer's chat template is the one that `fit_template` makes. Reads safetensors only,
    because reading a pickle runs its code.

    Raises:
        MissingError: the folder, its tokenizer or some of its weights are missing.
        UsageError: its chat template cannot render a question.
        RefluxError: it does not fit into memory.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no base model folder {folder}")
    cuda = torch.cuda.is_available()
    with quiet_libraries():
        try:
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # It says less of them than we do.
                trust_remote_code=False,  # Nor is the user asked on stdin.
                dtype=getattr(torch, config.dtype),
                # On a CPU, sequences of some dozen tokens train faster without the fused kernel.
                attn_implementation=config.attn_implementation or ("sdpa" if cuda else "eager"),
                quantization_config=_quantization(config),
                use_safetensors=True,
                local_files_only=True,
            )
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            check_found(found)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            made = folder.is_relative_to(cache_folder())
            remedy = "delete the folder to create it" if made else "correct `base`, or save it"
            raise MissingError(
                f"{folder} is no complete base model: {error}; it needs config.json, safetensors "
                f"weights (no pickles) and a tokenizer: {remedy} again"
            ) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise RefluxError(
                f"{folder} does not fit into memory: take a smaller base, or quantization: nf4"
            ) from error
        fit_template(tokenizer, config)
        spell(tokenizer, folder)
        if config.quantization == "none":
            model = model.to("cuda" if cuda else "cpu")
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model, tokenizer


def load_tokenizer(folder: Path, config: BaseConfig = DEFAULT_LOADING) -> Any:
    """The tokenizer of a base folder alone, with the chat template that `load_base` gives it.

    Raises:
        MissingError: there is none.
        UsageError: its chat template cannot render a question.
    """
    with quiet_libraries():
        try:
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise MissingError(f"{folder} has no tokenizer: {error}; save it there") from error
        fit_template(tokenizer, config)
        spell(tokenizer, folder)
    return tokenizer


def check_found(found: Mapping[str, Any]) -> None:
    """Check what transformers found of a model: what it lacks is made up at random.

    Raises:
        ValueError: weights are missing, or have another shape than the config says.
    """
    if missing := sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]):
        raise ValueError(f"it lacks {len(missing)} of its config's weights, such as {missing[0]}")


def _quantization(config: BaseConfig) -> Any:
    """QLoRA's settings (Dettmers et al. 2023, arXiv 2305.14314), or None.

    Raises:
        MissingError: bitsandbytes is not installed.
    """
    if config.quantization == "none":
        return None
    if find_spec("bitsandbytes") is None:
        raise MissingError(f"quantization: nf4 needs bitsandbytes: {pip_install('nf4')}")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        bnb_4bit_use_double_quant=True,
    )


@contextmanager
def wrapping_write_errors(folder: Path) -> Iterator[None]:
    """Turn the write errors of safetensors and torch, which are no `OSError`, into ours.

    Raises:
        RefluxError: weights cannot be written.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not TORCH_CANNOT_WRITE.search(str(error)):
            raise
        raise RefluxError(f"weights cannot be written in {folder}: {error}; {NO_SPACE}") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers and datasets for a block."""
    with warnings.catch_warnings(), ExitStack() as stack:
        # The libraries warn of each other's deprecated names.
        warnings.filterwarnings("ignore", "", FutureWarning, "transformers|trl|peft")
        stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        if transformers_logging.is_progress_bar_enabled():
            stack.callback(transformers_logging.enable_progress_bar)
            transformers_logging.disable_progress_bar()
        if not datasets.are_progress_bars_disabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield
