"""Soft targets: their loss and gradients are those of brute force, row by row and unpadded."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reflux.agents.errors import UsageError
from reflux.finetune.base_model import load_base
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.targets.dataset import SoftCollator, SoftRows, soft_passes
from reflux.finetune.targets.on_policy import WATCHED, sampler_for
from reflux.finetune.targets.training import trainer_for
from reflux.finetune.train.sft import train

pytestmark = pytest.mark.engine
CONTEXT = 87
"""Tokens of the models."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def row(question: str, answer: str, found: str = "", **more: Any) -> dict[str, Any]:
    """A row whose teacher has read what was found."""
    asked = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
    made = {"prompt": asked, "completion": [{"role": "assistant", "content": answer}], **more}
    if found:
        made["teacher"] = [asked[0], {"role": "user", "content": f"{found}\n{question}"}]
    return made


ROWS = [
    row("1+2=?", "3", "- 1+2 is 3"),
    row("31+47=?", "78", "- 1+7 8"),
    row("Say hello.", "Hello to you"),
    row("x" * 40, "cut at the end", "- y"),
    row("5+5=?", "10", "- 5+5 is 10, as everyone knows, " * 2),
    row("4+4=?", "8 or 9", "- 4+4", weight=0.25),
]
"""Of other lengths, one that nobody grades, one whose student is cut, one whose teacher is."""
LIMIT = 84


def peft_model(tiny_base: Path) -> tuple[Any, Any]:
    """(a base in float64 with a student's and a teacher's random adapters, its tokenizer)."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_base(tiny_base)
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model.double(), config, autocast_adapter_dtype=False)
    peft.add_adapter("teacher", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    peft.set_adapter("default")
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return peft.double(), tokenizer


def trainer_of(tiny_base: Path, folder: Path, targets: TargetConfig, has_adapter: bool) -> Any:
    """A trainer whose student, and teacher, are those of `peft_model`."""
    import torch
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig

    model, tokenizer = load_base(tiny_base)
    reference, _ = peft_model(tiny_base)
    adapter = None
    if has_adapter:
        reference.save_pretrained(folder / "saved", selected_adapters=["teacher"])
        adapter = folder / "saved" / "teacher"
    trainer: Any = trainer_for(targets, adapter)(
        (ROWS, []),
        folder,
        lambda note: None,
        model=model.double(),
        args=SFTConfig(
            output_dir=str(folder),
            max_length=LIMIT,
            bf16=False,
            use_cpu=True,
            report_to="none",
            gradient_checkpointing=False,
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.model.double()
    given = dict(reference.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        parameter.data = given[name].data.clone()
    assert all(p.dtype == torch.float64 for p in trainer.model.parameters())
    return trainer


def by_hand(tiny_base: Path, targets: TargetConfig, has_adapter: bool) -> Any:
    """(loss, gradients) of one row after another, unpacked, unpadded, by PEFT's own forward."""
    import torch

    from reflux.finetune.targets.divergence import soft_loss

    peft, tokenizer = peft_model(tiny_base)

    def ids(turns: Sequence[Any], asks: bool) -> list[int]:
        made = tokenizer.apply_chat_template(turns, add_generation_prompt=asks)
        return list(made["input_ids"])

    def logits(tokens: list[int]) -> Any:
        return peft(input_ids=torch.tensor([tokens])).logits[0]

    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    share = targets.soft_weight
    for each in ROWS:
        asked, whole = ids(each["prompt"], True), ids([*each["prompt"], *each["completion"]], False)
        reply = whole[len(asked) : LIMIT]
        ours = logits(whole[:LIMIT])[len(asked) - 1 : len(asked) - 1 + len(reply)]
        hard = -ours.log_softmax(-1)[range(len(reply)), reply]
        losses = list(hard)
        if "teacher" in each and targets.needs_teacher:
            theirs = ids(each["teacher"], True)
            seen = [*theirs, *reply][:CONTEXT]
            peft.eval()
            with torch.no_grad():
                if has_adapter:
                    peft.set_adapter("teacher")
                    other = logits(seen)
                    peft.set_adapter("default")
                else:
                    with peft.disable_adapter():
                        other = logits(seen)
            other = other[len(theirs) - 1 : -1]
            soft = soft_loss(
                ours[: len(other)],
                other,
                beta=targets.beta or 0.0,
                temperature=targets.temperature,
                top_k=targets.top_k,
            )
            for i, distance in enumerate(soft):
                losses[i] = share * distance + (1 - share) * hard[i]
        total = total + each.get("weight", 1.0) * torch.stack(losses).sum()
        weight += each.get("weight", 1.0) * len(losses)
    loss = total / weight
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def short_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_base` with a context that cuts the longest teacher."""
    model, tokenizer = load_base(tiny_base)
    model.config.max_position_embeddings = CONTEXT
    folder = tmp_path_factory.mktemp("short_base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CASES = [
    (TargetConfig(kind="votes"), False),
    (TargetConfig(kind="tokens"), False),
    (TargetConfig(kind="tokens", top_k=5, beta=1.0), True),
    (TargetConfig(kind="mixed", beta=0.5, temperature=2.0, weight=0.3), True),
    (TargetConfig(kind="mixed", top_k=3), False),
]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(("targets", "has_adapter"), CASES)
def test_loss_and_gradients_are_those_of_each_row_alone(
    short_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    targets: TargetConfig,
    has_adapter: bool,
    packs: bool,
) -> None:
    import torch

    if not packs:
        monkeypatch.setattr("reflux.finetune.train.trainer.packable", lambda model: False)
    monkeypatch.setattr("reflux.finetune.targets.trainer.TILE", 600)  # Several parts.
    trainer = trainer_of(short_base, tmp_path, targets, has_adapter)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
    if targets.needs_teacher:
        student, teacher = batch["input_ids"].shape[1], batch["soft"]["teacher"]["input_ids"]
        assert (student, teacher.shape[1]) == (LIMIT, CONTEXT)
        graded = int(batch["soft"]["graded"].sum())
        assert graded == int((teacher_labels := batch["soft"]["teacher"]["labels"] != -100).sum())
        assert graded < int((batch["labels"] != -100).sum())
        assert not bool(teacher_labels.all())
    trainer.model.train()
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    found = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
    found.backward()
    expected, gradients = by_hand(short_base, targets, has_adapter)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-9)
    ours = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        # Attention's softmax is in float32.
        close = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=close)


@pytest.mark.parametrize(
    "targets",
    [TargetConfig(kind="mixed", top_k=4), TargetConfig(kind="mixed", source="log", top_k=2)],
)
def test_a_step_in_several_passes_has_the_gradients_of_one(
    short_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: TargetConfig
) -> None:
    import torch

    rows = [{**each, "logged": logged(each["completion"][0]["content"])} for each in ROWS[:4:2]]
    rows = [*rows, ROWS[1], *ROWS[3:]] if targets.needs_log else ROWS
    monkeypatch.setattr("tests.finetune.test_targets.ROWS", rows)
    trainer = trainer_of(short_base, tmp_path, targets, False)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    found: list[dict[str, Any]] = []
    for limit in (10**6, 90, 1):
        monkeypatch.setattr("reflux.finetune.train.trainer.PASS_TOKENS", {"cpu": limit})
        parts = list(soft_passes(batch, limit))
        assert len(parts) == {10**6: 1, 1: len(rows)}.get(limit, len(parts))
        trainer.model.zero_grad()
        items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        loss = trainer.training_step(trainer.model, dict(batch), items)
        named = trainer.model.named_parameters()
        gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
        found.append({"loss": loss.double(), **gradients})
    for other in found[1:]:
        for name, value in found[0].items():
            close = 1e-5 * float(value.abs().max())
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=close)


def test_hard_targets_take_the_trainer_of_texts() -> None:
    from reflux.finetune.train.sft import text_trainer

    assert trainer_for(TargetConfig()) is text_trainer


QUICK = {"per_device_train_batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 2}


@pytest.mark.parametrize("kind", ["votes", "tokens", "mixed", "on_policy"])
def test_a_training_leaves_a_standard_adapter(tiny_base: Path, tmp_path: Path, kind: Any) -> None:
    import torch
    from peft import PeftModel

    notes: list[str] = []
    targets = TargetConfig(kind=kind, cold_start=0.5, max_tokens=8)
    sft = {**QUICK, "num_train_epochs": 6}
    report = train(
        ROWS, tiny_base, tmp_path, sft=sft, evaluation=0.2, make_trainer=trainer_for(targets),
        on_note=notes.append,
    )  # fmt: skip
    losses = report.curve["loss"]
    assert report.steps == len(losses) == 12
    assert losses[5][1] < losses[0][1]
    assert report.curve["eval_loss"]
    assert "kind" not in notes[-1]
    assert (report.sampling is not None) == (kind == "on_policy")
    if report.sampling is not None:
        assert report.sampling["samples"] > 0
    student = PeftModel.from_pretrained(load_base(tiny_base)[0], str(tmp_path))
    assert list(student.peft_config) == ["default"]
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())


def features(tiny_base: Path, rows: Sequence[Any], **targets: Any) -> tuple[SoftRows, list[Any]]:
    _, tokenizer = load_base(tiny_base)
    made = SoftRows(tokenizer, TargetConfig(kind="tokens", **targets), None, None)
    return made, list(made.features(rows))


def logged(text: str, end: bool = True, size: int = 1) -> list[Any]:
    """A record of bytes, or of pieces of another size."""
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return [[token, -0.5, [[token, -0.5], ["x", -1.5]]] for token in [*pieces, *[""] * end]]


def test_logged_tokens_are_found_again(tiny_base: Path) -> None:
    rows = [row("1+2=?", "13", logged=logged("13")), row("2?", "4")]
    made, (one, other) = features(tiny_base, rows, source="log", top_k=2)
    assert made.seen == {"rows": 2, "graded": 1, "without log-probabilities": 1}
    assert "1 of 2 rows" in made.note
    assert sum(one["graded"]) == len(one["top_ids"]) == 3
    assert sum(other["graded"]) == 0
    labels = [label for label in one["labels"] if label != -100]
    assert [ids[0] for ids in one["top_ids"][:2]] == labels[:2]
    assert labels[2] in one["top_ids"][2]  # The end, which has no text.
    batch = SoftCollator(0)([one, other])["soft"]
    assert batch["top_ids"].shape == batch["top_logprobs"].shape
    assert batch["graded"].sum() == len(batch["top_ids"])


@pytest.mark.parametrize(
    ("rows", "targets", "says"),
    [
        ([row("1+2=?", "13", logged=logged("13", size=2))], {"source": "log"}, "1 of 1 rows are"),
        ([row("1+2=?", "13")], {"source": "log"}, "no row has log-probabilities"),
        ([row("1?", "13", logged=logged("14"))], {"source": "log"}, "no row has log-probabilities"),
        ([row("1+2=?", "13")], {}, "no row has sub-answers"),
    ],
)
def test_what_no_student_can_learn_is_refused(
    tiny_base: Path, rows: Any, targets: Any, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        features(tiny_base, rows, **targets)


@pytest.mark.parametrize(
    ("given", "says"),
    list(
        product(
            [{"kind": "on_policy", "source": "log"}, {"source": "log", "temperature": 2}],
            ["source: teacher"],
        )
    ),
)
def test_settings_that_contradict_each_other_are_refused(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TargetConfig(**given)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ([1], "short: 1.0 tokens"),
        ([4, 5, 6, 7, 8, 9, 4, 5], "endless: 100%"),
        ([4, 4, 4, 4, 4, 4, 1], "repetitive: 60%"),
        ([4, 5, 6, 7, 8, 1], ""),
    ],
)
def test_samples_that_collapse_end_the_sampling(reply: list[int], says: str) -> None:
    notes: list[str] = []
    texts = [{"labels": [-100, *range(2, 12), 1], "graded": [0, *[1] * 11]}]
    features = [{**f, "input_ids": f["labels"], "teacher_ids": f["labels"]} for f in texts]
    targets = TargetConfig(kind="on_policy", cold_start=0.5)
    sampler = sampler_for(targets, SoftCollator(0), features, [1], 100, notes.append)
    assert (sampler.max_tokens, sampler.text_tokens, sampler.text_repeated) == (22, 11, 0)
    state = SimpleNamespace(global_step=4, max_steps=10)
    assert not sampler.is_due(state)
    state.global_step = 5
    for _ in range(WATCHED):
        assert sampler.is_due(state)
        sampler._watch([reply])
    assert sampler.is_due(state) == (not says)
    assert sampler.collapsed.startswith(says)
    assert bool(sampler.collapsed) == bool(says) == bool(notes)
    assert sampler.report()["samples"] == WATCHED


def test_a_sample_leaves_room_in_the_context() -> None:
    features = [{"labels": [-100, 2, 1], "graded": [0, 1, 1], "input_ids": [3] * 3,
                 "teacher_ids": [3] * 17}]  # fmt: skip
    sampler = sampler_for(
        TargetConfig(kind="on_policy", max_tokens=50), SoftCollator(0), features, [1], 20, print
    )
    assert sampler.max_tokens == 3
    assert sampler._ended([7, 1, 9]) == [7, 1]
    assert sampler._ended([7, 8, 9]) == [7, 8, 9]
