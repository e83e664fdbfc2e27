"""Tiny random models, one of each family, with a byte-level tokenizer and a template in its manner.

The weights are random, wide enough that every step has a decided winner, and the same each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<bos>", "<eos>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "<think>", "</think>",
)  # fmt: skip
MERGES = (("e", "s"), ("a", "t"), ("\u0120", "t"))

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
QWEN2 = (
    """\
{%- if messages[0].role != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"""
    + CHATML
)
QWEN3 = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}\
{{ m.content + '<|im_end|>\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{%- if enable_thinking is defined and enable_thinking is false %}\
{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
LLAMA3 = """\
{{ bos_token }}{%- for m in messages %}\
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}\
{%- endfor %}{%- if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
MISTRAL = """\
{{ bos_token }}{%- for m in messages %}\
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{%- endif %}{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
{%- else %}{{ m.content + eos_token }}{%- endif %}{%- endfor %}"""
GEMMA = """\
{{ bos_token }}{%- if messages[0].role == 'system' %}\
{{ raise_exception('System role not supported') }}{%- endif %}\
{%- for m in messages %}{%- set role = 'model' if m.role == 'assistant' else m.role %}\
{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}"""
PHI3 = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{%- else %}{{ eos_token }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """How one family differs from a small llama."""

    model_type: str
    template: str | None
    end: str
    """The token that ends a reply."""
    eos: str
    """The tokenizer's own end of text."""
    bos: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def special(self) -> list[str]:
        """The special tokens that it knows: llama.cpp ends a reply at any family's."""
        text = " ".join(filter(None, (self.template, self.end, self.eos, self.bos)))
        roles = ["<|user|>", "<|assistant|>", "<|system|>"] if self.template == PHI3 else []
        return ["<pad>", *(token for token in SPECIAL if token in text or token in roles)]

    @property
    def ends(self) -> list[str]:
        """The tokens that end a reply, as the model's own generation config has them."""
        return list(dict.fromkeys([self.eos, self.end]))


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
SLIDING = ["sliding_attention", "full_attention"]
GEMMA_OPTIONS: dict[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 24,
    "layer_types": SLIDING,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", LLAMA3, "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    "qwen2": Family("qwen2", QWEN2, "<|im_end|>", "<|im_end|>"),
    "qwen3": Family("qwen3", QWEN3, "<|im_end|>", "<|im_end|>", options={"head_dim": 32}),
    "qwen3_moe": Family(
        "qwen3_moe",
        QWEN3,
        "<|im_end|>",
        "<|im_end|>",
        options={
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "mistral": Family("mistral", MISTRAL, "</s>", "</s>", "<s>", {"sliding_window": None}),
    "mistral-window": Family("mistral", MISTRAL, "</s>", "</s>", "<s>", {"sliding_window": 24}),
    "gemma2": Family(
        "gemma2",
        GEMMA,
        "<end_of_turn>",
        "<eos>",
        "<bos>",
        {**GEMMA_OPTIONS, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0},
    ),
    "gemma3": Family("gemma3_text", GEMMA, "<end_of_turn>", "<eos>", "<bos>", GEMMA_OPTIONS),
    "phi3": Family("phi3", PHI3, "<|end|>", "<|endoftext|>"),
    "gpt2": Family(
        "gpt2",
        None,
        "<|endoftext|>",
        "<|endoftext|>",
        options={"num_key_value_heads": None, "intermediate_size": None},
    ),
}


def tokenizer_of(family: Family) -> Any:
    """Bytes, a few merges, and every family's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*family.special, *letters, *("".join(pair) for pair in MERGES)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(family.special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=family.eos, bos_token=family.bos, pad_token="<pad>"
    )
    if family.template is not None:
        fast.chat_template = family.template
    return fast


def make_family(name: str, folder: Path, **options: Any) -> Path:
    """A family's model and tokenizer as a transformers folder in float32; `options` go to its
    config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    given = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **options,
        **family.options,
        **{key: value for key, value in options.items() if key in family.options},
    }
    # GPT-2 has no such keys.
    given = {
        k: v for k, v in given.items() if v is not None or k in ("bos_token_id", "sliding_window")
    }
    if kinds := given.get("layer_types"):
        layers = given["num_hidden_layers"]
        given["layer_types"] = (kinds * layers)[:layers]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.model_type, **given)
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # Norms and biases that say nothing would hide a mistake.
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif "embed" in parameter_name or "wte" in parameter_name:
            parameter.data *= 0.2  # Else the next token follows from the last one alone.
        elif "attn" in parameter_name:
            parameter.data *= 2
    if config.tie_word_embeddings:  # The small embeddings say little as a head.
        norm = model.get_decoder().norm.weight
        norm.data = 4 + 5 * norm.data  # Gemma's norms count from one.
    model.generation_config = GenerationConfig(eos_token_id=ids(family.ends))
    model.save_pretrained(folder)
    return folder
