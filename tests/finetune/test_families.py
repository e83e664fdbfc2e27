"""Each family of models: trained here, loaded by plain PEFT, answered alike by every engine.

Tiny random models in fp32, where rounding turns no token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_trainer import SFTTrainer

from reflux.agents.types import ChatRequest, Sampling
from reflux.finetune.base_model import load_base
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig, BatchedConfig
from reflux.finetune.engine.generate import GenerateScheduler, scheduler_for
from reflux.finetune.export.gguf import can_export, export_adapter
from reflux.finetune.export.parity import certify
from reflux.finetune.registry import ADAPTER_GGUF
from reflux.finetune.train.packing import MODELS, pack, packable
from reflux.finetune.train.sft import train
from reflux.finetune.train.trainer import StudentTrainer
from tests.support.adapters import adapter_trainer
from tests.support.families import FAMILIES, make_family
from tests.support.family_gguf import write_gguf

pytestmark = pytest.mark.engine

IN_LLAMA_CPP = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3")
SYSTEM = "Answer in one word."
TOKENS = 8


def chat(question: str, system: str | None = SYSTEM) -> list[dict[str, str]]:
    user = {"role": "user", "content": question}
    return [user] if system is None else [{"role": "system", "content": system}, user]


ROWS: list[dict[str, Any]] = [
    {"prompt": chat(question), "completion": [{"role": "assistant", "content": answer}]}
    for question, answer in (("a?", "tea"), ("bb?", "no"), ("c c c?", "yes"), ("the end?", "7"))
]
CHATS = [
    *(chat(f"{'word ' * n}{n}?") for n in range(4)),
    *(chat(f"{n}?", "") for n in range(2)),
    *(chat(f"{n}?", None) for n in range(2)),
]


@dataclass(frozen=True)
class Trained:
    name: str
    base: Base
    student: Path

    @property
    def folder(self) -> Path:
        return self.base.folder


def base_at(folder: Path, gguf: Path | None = None) -> Base:
    return Base(BaseConfig(model=str(folder), dtype="float32"), given=folder, gguf=gguf)


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A family's model, with a student of a few steps."""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_at(make_family(request.param, folder / "base"))
    sft = {"max_steps": 4, "learning_rate": 5e-3, "warmup_steps": 0, "max_length": 128}
    report = train(ROWS, base, folder / "student", sft=sft, lora={"r": 4, "lora_alpha": 16})
    assert report.truncated == report.dropped == 0
    assert report.lean == (request.param != "qwen3_moe")  # TRL balances its experts.
    losses = [loss for _, loss in report.curve["loss"]]
    assert min(losses[1:]) < losses[0]
    return Trained(request.param, base, folder / "student")


def answers(model: Any, tokenizer: Any) -> list[str]:
    """What `generate` says to each chat, asked alone."""
    texts: list[str] = []
    for messages in CHATS:
        batch = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
        drawn = ids[0, batch["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(drawn, skip_special_tokens=True))
    return texts


def engine_answers(scheduler: Any, **sampling: Any) -> list[str]:
    requests = [
        ChatRequest("x", tuple((m["role"], m["content"]) for m in messages),
                    Sampling(**{"max_tokens": TOKENS, **sampling}), vote=index)
        for index, messages in enumerate(CHATS)
    ]  # fmt: skip
    rows = [scheduler.add(request) for request in requests[:5]]
    scheduler.step()
    rows += [scheduler.add(request) for request in requests[5:]]
    while scheduler.busy:
        scheduler.step()
    return [row.text for row in rows]


def test_plain_peft_and_the_batched_engine_give_the_same_answers(trained: Trained) -> None:
    # As a stranger would load it, with nothing of ours but the folders.
    base = AutoModelForCausalLM.from_pretrained(trained.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained.student)
    before = answers(base, tokenizer)
    expected = answers(PeftModel.from_pretrained(base, str(trained.student)), tokenizer)
    assert sum(map(str.__ne__, before, expected)) > len(CHATS) / 2
    assert len(set(expected)) > len(CHATS) / 3
    weights = load_base(trained.folder, trained.student, trained.base.config)
    for prefix_cache in (True, False):
        config = BatchedConfig(rows=8, context=256, prefix_cache=prefix_cache)
        assert engine_answers(scheduler_for(*weights, config)) == expected
    # The fallback reads the same answers from transformers' own cache, and draws the same.
    fallback = GenerateScheduler(*load_base(trained.folder, trained.student, trained.base.config),
                                 BatchedConfig(rows=5, context=256))  # fmt: skip
    assert engine_answers(fallback) == expected
    hot: dict[str, Any] = {"temperature": 1.5, "top_logprobs": 1, "stop": ("e",)}
    engine = scheduler_for(*weights, BatchedConfig(rows=5, context=256))
    assert engine_answers(fallback, **hot) == engine_answers(engine, **hot)


def test_the_certificate_says_so(trained: Trained) -> None:
    parity = certify(trained.base, trained.student, ROWS)
    n = parity["n"]
    assert parity == {"n": n, "agreement": 1.0, "engines": {"batched": {"same": n, "near": 0}}}


def test_the_gguf_export_gives_the_same_answers_in_llama_cpp(
    trained: Trained, tmp_path: Path
) -> None:
    if trained.name not in IN_LLAMA_CPP:
        assert trained.name == "mistral-window" or not can_export(trained.folder)
        pytest.skip("not exported: llama.cpp has no window for it, or we no test")
    gguf = write_gguf(trained.folder, FAMILIES[trained.name], tmp_path / "base.gguf")
    base = base_at(trained.folder, gguf)
    export = trained.student / ADAPTER_GGUF
    try:
        export_adapter(trained.student, trained.folder, export)
        parity = certify(base, trained.student, ROWS)
        n = parity["n"]  # Its KV cache is in fp16, which turned one token by 0.0007 nats.
        assert parity["agreement"] == 1.0
        assert parity["engines"]["llama.cpp"]["same"] >= n - 1
        # An export that does nothing is noticed.
        export_adapter(silent(trained.student, tmp_path / "silent"), trained.folder, export)
        broken = certify(base, trained.student, ROWS)["engines"]["llama.cpp"]
        assert broken["same"] < n / 2
    finally:
        export.unlink(missing_ok=True)


def silent(student: Path, folder: Path) -> Path:
    """The adapter with no effect."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(student, folder)
    path = folder / "adapter_model.safetensors"
    tensors = {key: t * 0 if "lora_B" in key else t for key, t in load_file(path).items()}
    save_file(tensors, path)
    return folder


def trainer_of(kind: Any, base: Base, folder: Path, rows: Any = ROWS, **config: Any) -> Any:
    settings = base.config.model_copy(update=config)
    model, tokenizer = load_base(base.folder, config=settings)
    # The experts' balance is a loss of TRL's own.
    balance = 0.0 if "moe" in model.config.model_type else None
    return adapter_trainer(kind, model, tokenizer, rows, folder, router_aux_loss_coef=balance)


def loss_and_gradients(trainer: Any) -> Any:
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.eval()  # Without dropout, which would differ.
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=30)
    loss.backward()
    named = trainer.model.named_parameters()
    return batch, loss, {n: p.grad.clone() for n, p in named if p.requires_grad}


def test_the_lean_loss_and_its_gradients_are_trls(trained: Trained, tmp_path: Path) -> None:
    trainer = trainer_of(StudentTrainer, trained.base, tmp_path)
    batch, lean, ours = loss_and_gradients(trainer)
    _, loss, theirs = loss_and_gradients(trainer_of(SFTTrainer, trained.base, tmp_path))
    torch.testing.assert_close(lean, loss, rtol=1e-5, atol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)
    model = trainer.model.get_base_model()
    assert packable(model) == (model.config.model_type in MODELS)
    if not packable(model):
        return
    packed = pack({k: batch[k] for k in ("input_ids", "labels", "attention_mask")},
                  model.config, model.dtype)  # fmt: skip
    window = getattr(model.config, "sliding_window", None)
    assert (packed is None) == (window is not None)  # These rows are longer than the tiny windows.


CALL = {"function": {"name": "find", "arguments": '{"of": "b"}'}}
TOOL = {"type": "function", "function": {"name": "find", "description": "", "parameters": {}}}
CONVERSATIONS: list[dict[str, Any]] = [
    *ROWS,
    {
        "prompt": chat("d?"),
        "completion": [
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "more?"},
            {"role": "assistant", "content": "left out", "weight": 0},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "two"},
        ],
    },
    {
        "prompt": chat("where is b?"),
        "completion": [
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "here"},
            {"role": "assistant", "content": "yonder"},
        ],
        "tools": [TOOL],
    },
]


def test_rows_of_several_replies_are_learned_alike_by_both_trainers(
    trained: Trained, tmp_path: Path
) -> None:
    """And rows of one plain reply are encoded as TRL encodes them."""
    # The tiny GPT-2 has no room for the row with tools.
    n = len(CONVERSATIONS) - (trained.name == "gpt2")
    rows = CONVERSATIONS[:n]
    trainer = trainer_of(StudentTrainer, trained.base, tmp_path, rows, tools="text")
    plain = trainer_of(SFTTrainer, trained.base, tmp_path).train_dataset
    dataset, tokenizer = trainer.train_dataset, trainer.processing_class
    keys = ("input_ids", "labels")
    assert [[row[key] for key in keys] for row in list(dataset)[: len(ROWS)]] == [
        [row[key] for key in keys] for row in plain
    ]
    later = [
        tokenizer.decode([label for label in row["labels"] if label != -100])
        for row in list(dataset)[len(ROWS) :]
    ]
    replies = ("one", "two", '"name": "find", "arguments": {"of": "b"}', "yonder")[
        : 2 * (n - len(ROWS))
    ]
    assert all(sum(text in told for told in later) == 1 for text in replies)
    assert not any(
        word in text for text in later for word in ("left out", "more?", "here<", SYSTEM)
    )
    _, lean, ours = loss_and_gradients(trainer)
    theirs = trainer_of(SFTTrainer, trained.base, tmp_path, rows, tools="text")
    assert theirs.train_dataset.to_list() == dataset.to_list()
    _, loss, gradients = loss_and_gradients(theirs)
    torch.testing.assert_close(lean, loss, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)


def test_rows_within_a_window_are_packed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if getattr(load_base(trained.folder)[0].config, "sliding_window", None) is None:
        pytest.skip("no window")
    wide = make_family(trained.name, tmp_path / "wide", sliding_window=200)
    packed: list[bool] = []
    import reflux.finetune.train.trainer as trainer_file

    def spy(*args: Any) -> Any:
        found = pack(*args)
        packed.append(found is not None)
        return found

    monkeypatch.setattr(trainer_file, "pack", spy)
    _, lean, ours = loss_and_gradients(trainer_of(StudentTrainer, base_at(wide), tmp_path))
    _, loss, theirs = loss_and_gradients(trainer_of(SFTTrainer, base_at(wide), tmp_path))
    assert packed == [True]
    torch.testing.assert_close(lean, loss, rtol=1e-5, atol=1e-5)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)


def test_rows_and_requests_are_rendered_alike_and_the_end_is_learned(
    trained: Trained, tmp_path: Path
) -> None:
    dataset = trainer_of(SFTTrainer, trained.base, tmp_path).train_dataset
    model, tokenizer = load_base(trained.folder, config=trained.base.config)
    scheduler = scheduler_for(model, tokenizer, BatchedConfig(context=256))
    own = AutoTokenizer.from_pretrained(trained.student)
    assert own.chat_template == tokenizer.chat_template
    end = tokenizer.convert_tokens_to_ids(FAMILIES[trained.name].end)
    for row, encoded in zip(ROWS, dataset, strict=True):
        ids, mask = encoded["input_ids"], [int(label != -100) for label in encoded["labels"]]
        asked = tuple((turn["role"], turn["content"]) for turn in row["prompt"])
        request = scheduler.add(ChatRequest("x", asked, Sampling()))
        assert ids[: mask.index(1)] == request.ids
        text = tokenizer.decode(ids)
        assert SYSTEM in text
        learned = ids[mask.index(1) :]
        assert end in learned
        assert tokenizer.decode(learned[: learned.index(end)]) == row["completion"][0]["content"]


def test_a_family_that_our_cache_cannot_serve_is_answered_by_generate(tmp_path: Path) -> None:
    """Attention sinks: our attention would leave them out without a word."""
    from transformers import AutoConfig

    folder = make_family("qwen2", tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_local_experts=2, num_experts_per_tok=1, sliding_window=16, initializer_range=0.3,
        max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    expected = answers(model, tokenizer)
    scheduler = scheduler_for(model, tokenizer, BatchedConfig(rows=5, context=256))
    assert type(scheduler) is GenerateScheduler
    assert engine_answers(scheduler) == expected
