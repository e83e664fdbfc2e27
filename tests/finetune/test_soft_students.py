"""Students of soft targets as a run makes them: with a teacher, after a stop, in every engine."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.errors import RefluxError, UsageError
from reflux.finetune.base_model import load_base
from reflux.finetune.bases import find_base
from reflux.finetune.configs.run import BaseConfig, DistillConfig
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.distillation import StudentPlan, distill
from reflux.finetune.registry import Registry
from reflux.finetune.targets.teacher import teacher_folder
from tests.finetune.test_targets import ROWS
from tests.support.families import make_family

pytestmark = pytest.mark.engine
KINDS = ("hard", "votes", "tokens", "mixed", "on_policy")
SFT = {"per_device_train_batch_size": 3, "learning_rate": 5e-3, "max_steps": 6}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def silent(what: str, done: int, total: int, detail: str) -> None:
    """Shows no progress."""


def plan_of(id: str, base: Path, parent: str | None = None, **settings: Any) -> StudentPlan:
    config = DistillConfig(base=BaseConfig(model=str(base)), **{"sft": SFT, **settings})
    return StudentPlan(id, ROWS, f"rows of {id}", config, parent=parent)


@pytest.fixture(scope="module")
def taught(one_thread: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A student of every kind, each but the first with the first as its teacher."""
    registry = Registry(tmp_path_factory.mktemp("students"))
    distill(registry, plan_of("hard", tiny_base), silent, threading.Event())
    for kind in KINDS[1:]:
        plan = plan_of(
            kind.replace("_", "-"), tiny_base, "hard", targets={"kind": kind, "max_tokens": 6}
        )
        distill(registry, plan, silent, threading.Event())
    return registry  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_every_kind_answers_the_same_in_every_engine(
    taught: Registry, kind: str
) -> None:
    student = taught.get(kind.replace("_", "-"))
    assert student.parity is not None
    assert student.parity["agreement"] == 1.0
    assert student.config["targets"]["kind"] == kind
    assert {path.name for path in student.path.iterdir()} == {
        path.name for path in taught.get("hard").path.iterdir()
    }


def test_the_teacher_is_the_parent_the_base_or_the_one_that_is_named(
    taught: Registry, tiny_base: Path
) -> None:
    base = find_base(BaseConfig(model=str(tiny_base)))
    parent = TargetConfig(kind="tokens")
    assert teacher_folder(parent, taught, "hard", base) == taught.get("hard").path
    assert teacher_folder(parent, taught, None, base) is None
    named = TargetConfig(kind="tokens", teacher="mixed")
    assert teacher_folder(named, taught, "hard", base) == taught.get("mixed").path
    for nobody in (TargetConfig(kind="tokens", teacher="base"), TargetConfig(kind="votes")):
        assert teacher_folder(nobody, taught, "hard", base) is None
    with pytest.raises(UsageError, match="there is no student 'someone'"):
        teacher_folder(TargetConfig(kind="tokens", teacher="someone"), taught, None, base)


def test_a_teacher_of_another_base_is_refused(taught: Registry, tmp_path: Path) -> None:
    other = make_family("qwen2", tmp_path / "qwen2")
    plan = plan_of("of-another", other, "hard", targets="tokens")
    with pytest.raises(UsageError, match=r"targets\.teacher hard is an adapter of"):
        distill(taught, plan, silent, threading.Event())


def test_a_teacher_with_another_tokenizer_is_refused(
    taught: Registry, tiny_base: Path, tmp_path: Path
) -> None:
    import shutil

    registry = Registry(tmp_path / "students")
    shutil.copytree(taught.root, registry.root)
    folder = registry.get("hard").path
    path, card = folder / "tokenizer.json", folder / "student.json"
    path.write_text(path.read_text().replace('"<|endoftext|>"', '"<|another|>"'))
    # Earlier versions wrote no digest of it.
    card.write_text(json.dumps({**json.loads(card.read_text()), "files": {}}))
    plan = plan_of("other", tiny_base, "hard", targets="tokens")
    with pytest.raises(UsageError, match="another tokenizer than"):
        distill(registry, plan, silent, threading.Event())


def test_a_stopped_training_goes_on_with_its_teacher(taught: Registry, tiny_base: Path) -> None:
    stop = threading.Event()

    def stopping(what: str, done: int, total: int, detail: str) -> None:
        if done == 3:
            stop.set()

    plan = plan_of("stopped", tiny_base, "hard", targets="mixed")
    with pytest.raises(RefluxError, match="training was interrupted"):
        distill(taught, plan, stopping, stop)
    notes: list[str] = []
    distill(taught, plan, lambda what, done, n, note: notes.append(note), threading.Event())
    assert any("goes on from its checkpoint" in note for note in notes)
    import torch
    from safetensors.torch import load_file

    whole = plan_of("undisturbed", tiny_base, "hard", targets="mixed")
    distill(taught, whole, silent, threading.Event())
    ours, theirs = (
        load_file(taught.get(id).path / "adapter_model.safetensors")
        for id in ("stopped", "undisturbed")
    )
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight)


@pytest.mark.parametrize("targets", ["hard", "tokens"])
def test_a_loss_that_is_not_finite_leaves_the_last_good_adapter(
    taught: Registry, tiny_base: Path, targets: str
) -> None:
    import torch
    from peft import PeftModel

    wild = {**SFT, "learning_rate": 1e30, "warmup_steps": 3, "max_grad_norm": 0, "max_steps": 9}
    plan = plan_of(f"wild-{targets}", tiny_base, "hard", targets=targets, sft=wild)
    with pytest.raises(RefluxError, match=r"at step \d+ .* the last good one, is kept in") as found:
        distill(taught, plan, silent, threading.Event())
    folder = Path(str(found.value).rpartition("kept in ")[2])
    assert plan.id not in taught.ids()
    student = PeftModel.from_pretrained(load_base(tiny_base)[0], str(folder))
    assert all(bool(torch.isfinite(p).all()) for p in student.parameters())
