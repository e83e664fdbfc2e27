"""Preferences: pairs of answers from votes, checks and people, and DPO on top of the student."""

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.types import ChatRequest
from reflux.finetune.configs.run import DistillConfig, RoundsConfig
from reflux.finetune.data.preferences import preference_rows, training_pairs
from reflux.finetune.data.recorded import LeftOut
from reflux.finetune.data.rows import Row, accepted, corrections
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import amplified, asking, rejecting
from tests.support.overriding import override
from tests.support.run_folders import make_run, put_base
from tests.support.sums import compare_little

TRAIN = Origin("run", 1, "amplified", "words", "train")
VOTES = VotePolicy(margin=2, max_votes=3, min_logprob=None)


class Words(Task):
    name = "words"

    def primitives(self) -> Sequence[str]:
        """None of them is held out."""
        return ("root", "x", "y", "z")


def doubtful(request: ChatRequest) -> str:
    """The second copy says something else; of `z` the first says what the check refuses."""
    question = request.messages[-1][1]
    if question == "z" and request.vote == 0:
        return "bad"
    return "other" if request.vote == 1 and question == "x" else question.upper()


async def pairs_in(store: TraceStore, left_out: LeftOut | None = None) -> set[tuple[str, ...]]:
    task = Words()
    rows = [*accepted(store, "train", "amplified", 1, ""), *corrections(store, task)]
    found: list[Row] = preference_rows(store, rows, task, left_out=left_out)
    return {(row.question, row.reply, str(row.rejected)) for row in found}


async def test_copies_that_lost_a_vote_or_broke_a_rule_are_the_rejected_answers(
    store: TraceStore,
) -> None:
    client = ScriptedClient(doubtful)
    check = rejecting("bad")
    system = amplified(store, client, asking("x", "y", "z"), votes=VOTES, checker=check)
    await answer_all(system, TRAIN, ["root"])
    left_out = LeftOut()
    assert await pairs_in(store, left_out) == {("x", "X", "other"), ("z", "Z", "bad")}
    assert left_out.counts == {"no answer was rejected": 2}  # The root and y.
    await override(system.context, TRAIN.question_id("root"), "/0.0.0", "mine")
    edited = await pairs_in(store)
    # The parts of a tree that was edited are those of the new revision.
    assert edited == {("x", "mine", "X"), ("root", "mine+Y+Z", "X+Y+Z")}
    config = RoundsConfig.model_validate({"rounds": 1})
    assert training_pairs(store, [], Words(), 1, config) == []


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    prompt = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
    return {"prompt": prompt, "chosen": said[0], "rejected": said[1]}


@pytest.mark.engine
def test_the_student_prefers_what_was_accepted_and_keeps_the_form_of_a_student(
    tiny_base: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    from reflux.finetune.base_model import load_base
    from reflux.finetune.bases import Base
    from reflux.finetune.configs.run import BaseConfig
    from reflux.finetune.train.preferences import prefer
    from reflux.finetune.train.sft import train

    torch.set_num_threads(1)
    pairs = [pair(f"{a}+{b}=?", str(a + b), str(a + b + 1)) for a in range(4) for b in range(4)]
    rows = [{"prompt": each["prompt"], "completion": each["chosen"]} for each in pairs]
    base = Base(BaseConfig(model=str(tiny_base)), given=tiny_base)
    train(rows, base, tmp_path, sft={"max_steps": 2})
    before = load_file(tmp_path / "adapter_model.safetensors")

    def margin() -> float:
        """Mean log-probability of the accepted answers over that of the rejected ones, in nats."""
        model, tokenizer = load_base(tiny_base)
        student = PeftModel.from_pretrained(model, tmp_path).eval()
        total = 0.0
        for each in pairs:
            for sign, key in ((1, "chosen"), (-1, "rejected")):
                prompt = tokenizer.apply_chat_template(each["prompt"], add_generation_prompt=True)
                whole = tokenizer.apply_chat_template([*each["prompt"], *each[key]])
                n, ids = len(prompt["input_ids"]), torch.tensor([whole["input_ids"]])
                logits = student(input_ids=ids).logits[0, n - 1 : -1].float().log_softmax(-1)
                total += sign * logits.gather(1, ids[0, n:, None]).sum().item()
        return total / len(pairs)

    first = margin()
    dpo = {"max_steps": 12, "learning_rate": 5e-3}
    report = prefer(pairs, base, tmp_path, dpo=dpo)
    after = load_file(tmp_path / "adapter_model.safetensors")
    assert after.keys() == before.keys()  # Nothing of the reference is left.
    assert not (tmp_path / "ref").exists()
    assert (report.pairs, report.steps) == (16, 12)
    assert margin() > first + 0.1
    with pytest.raises(UsageError, match=r"preferences\.dpo\.betta.*beta"):
        prefer(pairs, base, tmp_path, dpo={"betta": 1})
    with pytest.raises(RefluxError, match="loss on pairs is nan"):
        prefer(pairs, base, tmp_path, dpo={"max_steps": 3, "learning_rate": 1e30})
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == before.keys()


@pytest.mark.engine
def test_a_disk_that_is_full_in_mid_save_leaves_the_old_student_whole(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reflux.finetune.distillation import StudentPlan, distill
    from reflux.finetune.train import sft

    put_base(tiny_base, monkeypatch.setattr)
    compare_little(monkeypatch.setattr)
    registry = make_run(tmp_path / "run").registry
    before = sorted(path.name for path in registry.root.rglob("*"))
    pairs = [pair(f"{a}+1=?", str(a + 1), str(a)) for a in range(4)]
    rows = [{"prompt": each["prompt"], "completion": each["chosen"]} for each in pairs]
    config = DistillConfig.model_validate(
        {"sft": {"max_steps": 1}, "preferences": {"dpo": {"max_steps": 1}, "min_pairs": 4}}
    )
    written: list[str] = []
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        written.append(target.name)
        copy(source, target)
        if len(written) == 4:  # The adapter of the rows was written; that of the pairs is half.
            target.write_bytes(target.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(sft.shutil, "copyfile", full)
    plan = StudentPlan("student-new", rows, "digest", config, pairs=pairs)
    with pytest.raises(OSError, match="No space left"):
        distill(registry, plan, lambda *_: None, Event())
    assert len(written) == 4
    assert sorted(path.name for path in registry.root.rglob("*")) == before
    assert registry.current().id == "student-r1"  # type: ignore[union-attr] - verified
    monkeypatch.setattr(sft.shutil, "copyfile", copy)
    distill(registry, plan, lambda *_: None, Event())
    report = registry.get("student-new").config["report"]["preferences"]
    assert (report["pairs"], report["steps"]) == (4, 1)
