"""Writes a tiny model as a GGUF file in float32, with the names and orders that llama.cpp expects.

As llama.cpp's own converter does it: llama's q and k in its rotary order, Gemma's norms plus one,
GPT-2's matrices the other way round.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from reflux.finetune.export.gguf import ARCHITECTURES, gguf_rows
from tests.support.families import MERGES, tokenizer_of


def write_gguf(folder: Path, family: Any, out: Path) -> Path:
    """The model of a transformers folder as one GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    _write_sizes(writer, arch, config)
    _write_tokenizer(writer, family)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for key, tensor in load_file(folder / "model.safetensors").items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        module = key.rsplit(".", 1)[0]
        value = gguf_rows(module, tensor, config)
        if "gemma" in config["model_type"] and module.endswith("norm"):
            value = value + 1
        writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _write_sizes(writer: Any, arch: Any, config: dict[str, Any]) -> None:
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    ropes = config.get("rope_parameters") or {}
    writer.add_file_type(0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if "sliding_attention" in ropes:
        writer.add_float32("gemma3.rope.freq_base_swa", ropes["sliding_attention"]["rope_theta"])
    if config.get("layer_types") and "sliding_attention" in config["layer_types"]:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(len(set(config["layer_types"])))
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _write_tokenizer(writer: Any, family: Any) -> None:
    tokenizer = tokenizer_of(family)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in family.special else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids(family.eos))
    writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(family.end))
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if family.bos:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)
    if family.template:
        writer.add_chat_template(family.template)
