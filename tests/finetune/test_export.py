"""A student's GGUF export says in llama.cpp what the PEFT adapter says in transformers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles, default_gguf, start_server
from reflux.agents.errors import MissingError, UsageError
from reflux.finetune.base_model import dequantised_base, load_base
from reflux.finetune.bases import INDEX, find_base, folder_digest
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.export.gguf import export_adapter

pytestmark = pytest.mark.engine

QUESTIONS = [
    "12+34=?",
    "What is the capital of France?",
    "Name a colour.",
    "Translate to German: good morning",
    "Is 17 a prime number? Answer yes or no.",
    "What is the opposite of hot?",
    "Write the first letter of the word apple.",
    "On which continent is Kenya?",
]
TOP = 5
EXACT = 0.005
"""Maximum difference of float32 on both sides, in nats. Measured: 0.0012 with the export, 0.036
with q and k in the wrong order, 0.087 without the adapter."""
QUANTISED = 0.2
"""Nats: most that llama.cpp's 4-bit weights and 8-bit activations may differ from float32. Measured
0.093 with the export, and 0.102 for the base without any adapter."""


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": ""}, {"role": "user", "content": question}]


def adapter_for(base: Path, folder: Path, std: float = 0.02, **lora: Any) -> Path:
    """A LoRA with random matrices, large enough to change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, _ = load_base(base)
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}
    student: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=std)
    student.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def default_base() -> Path:
    return dequantised_base(default_gguf())


@pytest.fixture(scope="module")
def student(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = adapter_for(default_base, tmp_path_factory.mktemp("student"))
    export_adapter(folder, default_base, folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="module")
def peft_says(default_base: Path, student: Path) -> list[Any]:
    return transformers(default_base, student)


@pytest.fixture(scope="module")
def exact_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default model with the dequantised base's weights in float32, half a gigabyte."""
    import torch

    folder = tmp_path_factory.mktemp("exact")
    given = gguf.GGUFReader(default_gguf())
    writer = gguf.GGUFWriter(folder / "exact.gguf", "llama")
    for key, field in given.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        listed = field.types[0] == gguf.GGUFValueType.ARRAY
        value = 0 if key == "general.file_type" else field.contents()
        sub_type = field.types[-1] if listed else None
        writer.add_key_value(key, value, field.types[0], sub_type=sub_type)
    for tensor in given.tensors:
        plain = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, torch.from_numpy(plain).bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield folder / "exact.gguf"
    shutil.rmtree(folder)


def llama_cpp(adapter: Path | None, model: Path | None = None) -> list[dict[int, float]]:
    """`{token: log-probability}` of the likeliest first tokens of each answer."""
    server = start_server(ModelFiles(model or default_gguf(), adapter), EngineConfig(parallel=1))
    found: list[dict[int, float]] = []
    for question in QUESTIONS:
        reply = server.handle_chat_completions(
            {
                "messages": messages(question),
                "logprobs": True,
                "top_logprobs": TOP,
                "temperature": 0,
                "max_tokens": 1,
            }
        )
        reply = json.loads(reply) if isinstance(reply, str | bytes) else reply
        likeliest = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found.append({entry["id"]: entry["logprob"] for entry in likeliest})
    return found


def transformers(base: Path, adapter: Path | None) -> list[Any]:
    """Log-probabilities `(vocab,)` of the first token of each answer, computed in float32."""
    import torch
    from peft import PeftModel

    model, tokenizer = load_base(base)
    model = model.cpu().float()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    found: list[Any] = []
    with torch.inference_mode():
        for question in QUESTIONS:
            batch = tokenizer.apply_chat_template(
                messages(question),
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            found.append(model(**batch).logits[0, -1].log_softmax(-1))
    return found


def distance(ours: list[dict[int, float]], theirs: list[Any]) -> float:
    """Mean distance over llama.cpp's likeliest tokens, in nats."""
    pairs = zip(ours, theirs, strict=True)
    return float(np.mean([abs(p - float(q[t])) for few, q in pairs for t, p in few.items()]))


def same_first(ours: list[dict[int, float]], theirs: list[Any]) -> int:
    pairs = zip(ours, theirs, strict=True)
    return sum(max(few, key=lambda t: few[t]) == int(q.argmax()) for few, q in pairs)


def test_the_gguf_export_is_the_peft_adapter(
    student: Path, exact_gguf: Path, peft_says: list[Any]
) -> None:
    exported = llama_cpp(student / "adapter.gguf", exact_gguf)
    assert distance(exported, peft_says) < EXACT
    assert same_first(exported, peft_says) == len(QUESTIONS)
    assert distance(llama_cpp(None, exact_gguf), peft_says) > 5 * EXACT


def test_the_rows_of_q_and_k_in_the_other_order_would_be_noticed(
    default_base: Path,
    student: Path,
    exact_gguf: Path,
    peft_says: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reflux.finetune.export.gguf.gguf_rows", lambda module, b, base: b)
    wrong = export_adapter(student, default_base, tmp_path / "wrong.gguf")
    assert distance(llama_cpp(wrong, exact_gguf), peft_says) > 3 * EXACT


def test_the_gguf_export_agrees_on_the_quantised_base(student: Path, peft_says: list[Any]) -> None:
    assert distance(llama_cpp(student / "adapter.gguf"), peft_says) < QUANTISED


def test_llama_cpp_cuts_text_into_the_same_tokens(default_base: Path) -> None:
    _, tokenizer = load_base(default_base)
    server = start_server(ModelFiles(default_gguf()), EngineConfig(parallel=1))
    for question in [*QUESTIONS, "1234567 +\n\n  \u00fcber 3.14", "def f(x):\n\treturn x"]:
        asked = {"messages": messages(question), "max_tokens": 1}
        ids = tokenizer.apply_chat_template(
            messages(question), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        reply = server.handle_chat_completions(asked)
        reply = json.loads(reply) if isinstance(reply, str | bytes) else reply
        assert reply["usage"]["prompt_tokens"] == len(ids), question


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {tensor.name: tensor.data for tensor in reader.tensors}


def test_the_file_is_a_llama_cpp_adapter(tiny_base: Path, tmp_path: Path) -> None:
    folder = adapter_for(tiny_base, tmp_path / "a")
    out = export_adapter(folder, tiny_base, tmp_path / "new" / "adapter.gguf")
    fields, tensors = read(out)
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == 8.0
    assert len(tensors) == 2 * 7 * 2
    assert tensors["blk.1.attn_k.weight.lora_a"].shape == (4, 64)
    assert tensors["blk.1.attn_k.weight.lora_b"].shape == (32, 4)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert [path.name for path in out.parent.iterdir()] == ["adapter.gguf"]


def test_only_q_and_k_change_the_order_of_their_rows(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = adapter_for(tiny_base, tmp_path / "a")
    _, tensors = read(export_adapter(folder, tiny_base, tmp_path / "adapter.gguf"))
    given = load_file(folder / "adapter_model.safetensors")
    attention = "base_model.model.model.layers.0.self_attn."
    for name, heads in (("q", 4), ("k", 2)):
        rows = given[f"{attention}{name}_proj.lora_B.weight"]
        half = len(rows) // heads // 2
        for at, row in enumerate(tensors[f"blk.0.attn_{name}.weight.lora_b"]):
            head, check_range = divmod(at, 2 * half)
            pair, side = divmod(check_range, 2)
            np.testing.assert_array_equal(row, rows[head * 2 * half + side * half + pair])
    np.testing.assert_array_equal(
        tensors["blk.0.attn_v.weight.lora_b"], given[f"{attention}v_proj.lora_B.weight"]
    )


def test_rank_stabilised_scaling_goes_into_the_matrices(tiny_base: Path, tmp_path: Path) -> None:
    plain = adapter_for(tiny_base, tmp_path / "plain")
    stable = adapter_for(tiny_base, tmp_path / "stable", use_rslora=True)
    _, one = read(export_adapter(plain, tiny_base, tmp_path / "plain.gguf"))
    _, two = read(export_adapter(stable, tiny_base, tmp_path / "stable.gguf"))
    name = "blk.0.ffn_up.weight.lora_b"
    np.testing.assert_allclose(two[name], 2.0 * one[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora=True.*train again with use_dora=False"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
    ],
)
def test_what_llama_cpp_cannot_apply_is_refused(
    tiny_base: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = adapter_for(tiny_base, tmp_path / "a")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UsageError, match=told):
        export_adapter(folder, tiny_base, tmp_path / "out" / "adapter.gguf")
    assert not (tmp_path / "out").exists()


def test_an_unknown_architecture_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = adapter_for(tiny_base, tmp_path / "a")
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(UsageError, match=r"is a MambaForCausalLM.*LlamaForCausalLM, Mistral"):
        export_adapter(folder, tmp_path, tmp_path / "adapter.gguf")


def test_a_layer_without_a_name_in_llama_cpp_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = adapter_for(tiny_base, tmp_path / "a")
    odd = {
        "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": np.zeros((4, 64), "f4"),
        "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": np.zeros((64, 4), "f4"),
    }
    save_file(odd, folder / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"layers\.9.*has no place"):
        export_adapter(folder, tiny_base, tmp_path / "adapter.gguf")
    odd.popitem()
    save_file(odd, folder / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="do not belong together"):
        export_adapter(folder, tiny_base, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_pickles_and_missing_files_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder = adapter_for(tiny_base, tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        export_adapter(folder, tiny_base, tmp_path / "adapter.gguf")
    weights.unlink()
    with pytest.raises(MissingError, match=r"adapter_model\.safetensors is not there"):
        export_adapter(folder, tiny_base, tmp_path / "adapter.gguf")
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="as a pickle"):
        export_adapter(folder, tiny_base, tmp_path / "adapter.gguf")
    with pytest.raises(MissingError, match=r"config\.json is not there"):
        export_adapter(folder, tmp_path, tmp_path / "adapter.gguf")


def test_the_default_base_is_made_once_and_whole(
    default_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dequantised_base(default_gguf()) == default_base
    assert default_base.name.startswith("base-b179c9523d0e")
    assert len(folder_digest(default_base)) == 64
    with pytest.raises(MissingError, match="there is no model file"):
        dequantised_base(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but no more")
    monkeypatch.setenv("REFLUX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="cannot be unpacked"):
        dequantised_base(tmp_path / "bad.gguf")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(MissingError, match=r"has no config\.json"):
        folder_digest(tmp_path)


@pytest.mark.parametrize(
    ("file", "body", "says"),
    [
        ("config.json", {"num_hidden_layers": 3}, r"it lacks \d+ of its config's weights"),
        ("config.json", {"intermediate_size": 24}, r"it lacks \d+ of its config's weights"),
        ("config.json", {"model_type": "none-of-ours"}, "does not recognize"),
        (INDEX, {"weight_map": 3}, "is no index of weights"),
    ],
)
def test_a_base_whose_weights_are_not_those_of_its_config_is_refused(
    file: str, body: dict[str, Any], says: str, tiny_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | body))
    with pytest.raises(MissingError, match=says) as refused:
        load_base(find_base(BaseConfig(model=str(folder))).folder)
    assert "delete the folder" not in str(refused.value)
