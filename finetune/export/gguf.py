"""A student's GGUF twin: the PEFT adapter in the form that llama.cpp loads.

Both files hold the same two matrices a layer. They differ in the tensors' names, in the order of
the rows of q and k (transformers rotates halves of a head, llama.cpp neighbours), and in where
the scale stands.
"""

import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from reflux.agents.errors import MissingError, UsageError
from reflux.finetune.registry import check_no_pickle

ARCHITECTURES = {"LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA}
"""Each has its own row order and names, so only what a test holds against llama.cpp is here."""

PLAIN_LORA = {
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "alpha_pattern": {},
    "trainable_token_indices": None,
    "layer_replication": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "use_qalora": False,
}
"""LoRA options that change what is computed, and the only value llama.cpp has a counterpart for."""

PLAIN_INIT = (True, False, "gaussian", "orthogonal")
"""Initialisations that leave the base's weights as they are."""

_TENSOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_ROTATED = re.compile(r"\.(?P<which>q|k)_proj$")


def export_adapter(adapter_dir: Path, base_config: Path, out: Path) -> Path:
    """Write `adapter_dir`'s LoRA as a GGUF adapter to `out`, whole or not at all; returns `out`.

    `base_config` is the transformers folder of the base, read for its architecture and head
    counts. Tensors are float32: `lora_a (rank, in)`, `lora_b (out, rank)`.

    Raises:
        MissingError: a file that is needed is not there.
        UsageError: the adapter or the base has no exact counterpart in llama.cpp.
    """
    base = _read_json(base_config / "config.json")
    config = _read_json(adapter_dir / "adapter_config.json")
    arch = _architecture(base, base_config)
    _require_plain_lora(config, adapter_dir)
    pairs = _read_pairs(adapter_dir)
    names = gguf.get_tensor_name_map(arch, int(base["num_hidden_layers"]))

    out.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    os.close(handle)
    try:
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
                # llama.cpp scales by alpha / rank, rank-stabilised LoRA by alpha / sqrt(rank).
                b = b * math.sqrt(b.shape[1])
            writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(a))
            writer.add_tensor(
                f"{name}.weight.lora_b", np.ascontiguousarray(_llama_rows(module, b, base))
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        Path(scratch).chmod(0o644)
        Path(scratch).replace(out)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return out


def _architecture(base: dict[str, Any], folder: Path) -> gguf.MODEL_ARCH:
    found = (base.get("architectures") or ["none"])[0]
    if found not in ARCHITECTURES:
        raise UsageError(
            f"the base {folder} is a {found}; adapters are exported for "
            f"{', '.join(ARCHITECTURES)} only: serve this student with vLLM from its PEFT adapter"
        )
    return ARCHITECTURES[found]


def _require_plain_lora(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise UsageError(
            f"{folder} is a {config.get('peft_type')} adapter; llama.cpp loads LORA only: train "
            "with a LoraConfig"
        )
    for key, plain in PLAIN_LORA.items():
        # Absent and empty values of an option both mean that it is off.
        value = config.get(key)
        if value != plain and value:
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
    path = folder / "adapter_model.safetensors"
    check_no_pickle(folder)
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
                f"{path} holds {key}, which is no LoRA matrix of a linear layer: train again with "
                'target_modules="all-linear"'
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


def _llama_rows(module: str, b: NDArray[np.float32], base: dict[str, Any]) -> NDArray[np.float32]:
    """`b (rows, rank)` with the rows of q and k in llama.cpp's rotary order, others as they are."""
    match = _ROTATED.search(module)
    if match is None:
        return b
    heads = int(base["num_attention_heads"])
    if match["which"] == "k":
        heads = int(base.get("num_key_value_heads") or heads)
    rows, rank = b.shape
    if rows % (2 * heads):
        raise UsageError(
            f"{module} has {rows} rows, which {heads} heads cannot share: was the adapter trained "
            "on another base?"
        )
    return b.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; write it again") from error
