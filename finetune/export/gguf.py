"""Exports a PEFT adapter as the GGUF adapter that llama.cpp loads.

Both files hold the same two matrices for each layer. They differ in the tensors' names and in where
the scale is stored; for the llama architecture also in the order of the rows of q and k
(transformers rotates the halves of a head, llama.cpp neighboring rows).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.files import replacing
from reflux.finetune.adapter_files import ADAPTER, check_adapter

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "Gemma2ForCausalLM": gguf.MODEL_ARCH.GEMMA2,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
    "Phi3ForCausalLM": gguf.MODEL_ARCH.PHI3,
}
"""llama.cpp's name of each; a test compares each with llama.cpp."""

EXPORTED_OPTIONS = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "init_lora_weights",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "ensure_weight_tying", "peft_type", "task_type", "inference_mode", "auto_mapping",
    "base_model_name_or_path", "revision", "peft_version",
)  # fmt: skip
"""LoRA options that may have any value; llama.cpp supports only PEFT's default of all others."""

PLAIN_INIT = (True, False, "gaussian", "orthogonal")
"""Initializations that do not change the base's weights."""

_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_ROTATED = re.compile(r"\.(?P<which>q|k)_proj$")


def can_export(base_folder: Path) -> bool:
    """True where llama.cpp knows the architecture of a base, and we its row order and names."""
    base = _read_json(base_folder / "config.json")
    return (base.get("architectures") or ["none"])[0] in ARCHITECTURES


def export_adapter(adapter_dir: Path, base_config: Path, out: Path) -> Path:
    """Write `adapter_dir`'s LoRA as a GGUF adapter to `out`; returns `out`.

    `base_config` is the transformers folder of the base, read for its architecture and head
    counts. Tensors are float32: `lora_a (rank, in)`, `lora_b (out, rank)`.

    Raises:
        MissingError: a required file is missing.
        UsageError: the adapter or the base has no exact counterpart in llama.cpp.
    """
    base = _read_json(base_config / "config.json")
    config = _read_json(adapter_dir / "adapter_config.json")
    architecture = (base.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"the base {base_config} is a {architecture}; adapters are exported for "
            f"{', '.join(ARCHITECTURES)} only: serve this student with vLLM from its PEFT adapter"
        )
    arch = ARCHITECTURES[architecture]
    _check_plain_lora(config, adapter_dir)
    pairs = _read_pairs(adapter_dir)
    names = gguf.get_tensor_name_map(arch, int(base["num_hidden_layers"]))

    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as scratch:
        writer = gguf.GGUFWriter(scratch, gguf.MODEL_ARCH_NAMES[arch])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
        for module, (a, b) in sorted(pairs.items()):
            name = names.get_name(module)
            if name is None or not name.startswith("blk."):
                raise UsageError(
                    f"{module} has no place in a {gguf.MODEL_ARCH_NAMES[arch]} GGUF adapter: "
                    'train with target_modules="all-linear"'
                )
            if config.get("use_rslora"):
                # llama.cpp scales by alpha / rank, rank-stabilized LoRA by alpha / sqrt(rank).
                b = b * math.sqrt(b.shape[1])
            for side, matrix in (("a", a), ("b", gguf_rows(module, b, base))):
                writer.add_tensor(f"{name}.weight.lora_{side}", np.ascontiguousarray(matrix))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return out


def _check_plain_lora(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise UsageError(
            f"{folder} is a {config.get('peft_type')} adapter; llama.cpp loads LORA only: train "
            "with a LoraConfig"
        )
    for key, plain in LoraConfig().to_dict().items():
        # An absent or empty value of an option means that it is off.
        value = config.get(key)
        if value and value != plain and key not in EXPORTED_OPTIONS:
            raise UsageError(
                f"{folder} was trained with {key}={value!r}, which llama.cpp cannot apply: train "
                f"again with {key}={plain!r}"
            )
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INIT:
        raise UsageError(
            f"{folder} was trained with init_lora_weights={init!r}, which alters the base's "
            "weights: train again with init_lora_weights=True"
        )


def _read_pairs(folder: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """`{module: (A (rank, in), B (out, rank))}`, the modules named as in the base."""
    path = folder / ADAPTER
    check_adapter(folder)
    if not path.is_file():
        raise MissingError(f"{path} is not there: is {folder} a PEFT adapter?")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is not a whole safetensors file: {error}; train again") from error
    sides: dict[str, dict[str, NDArray[np.float32]]] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.match(key)
        if match is None:
            raise UsageError(
                f"{path} holds {key}, which is not a LoRA matrix of a linear layer: train again "
                'with target_modules="all-linear"'
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor.float().numpy()
    for module, pair in sides.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise UsageError(
                f"{path}: the two matrices of {module} do not belong together "
                f"({ {side: matrix.shape for side, matrix in pair.items()} }); train again"
            )
    if not sides:
        raise UsageError(f"{path} holds no LoRA matrix: train again")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def gguf_rows(
    module: str, rows: NDArray[np.float32], base: Mapping[str, Any]
) -> NDArray[np.float32]:
    """A matrix (rows, columns) of a module with its rows in llama.cpp's order, which differs for q
    and k of the llama architecture only."""
    match = _ROTATED.search(module)
    if match is None or ARCHITECTURES[base["architectures"][0]] != gguf.MODEL_ARCH.LLAMA:
        return rows
    heads = int(base["num_attention_heads"])
    if match["which"] == "k":
        heads = int(base.get("num_key_value_heads") or heads)
    count, columns = rows.shape
    if count % (2 * heads):
        raise UsageError(
            f"{module} has {count} rows, which {heads} heads cannot share: was the adapter trained "
            "on another base?"
        )
    return rows.reshape(heads, 2, count // heads // 2, columns).swapaxes(1, 2).reshape(rows.shape)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; write it again") from error
