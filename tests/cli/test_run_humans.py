"""A run whose overseer is a human: it ends while it waits, and goes on with the replies."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from reflux.agents.errors import UsageError
from reflux.cli import ask, review
from reflux.cli.runs import rounds
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.review import queue

pytestmark = pytest.mark.engine

GATES = {"retention": 0.0, "regression": 1.0, "parity": 0.0}


class Desk:
    """A run folder and its commands, as a user gives them."""

    def __init__(self, folder: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        questions = "".join(
            json.dumps({"question": f"{i}+{i}?", "answer": str(2 * i)}) + "\n" for i in range(30)
        )
        (folder / "q.jsonl").write_text(questions)
        self.config, self.run, self._capsys = folder / "run.yaml", folder / "run", capsys
        body = {
            "base": str(base), "questions": "q.jsonl", "overseer": "human", "anchor": 2,
            "rounds": [{"questions": 3, "held_out": 2}], "canaries": 0, "max_tokens": 4,
            "gates": GATES, "sft": {"max_steps": 2, "per_device_train_batch_size": 2},
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump(body))

    def go(self) -> list[str]:
        """Begin or resume; the ids of what waits."""
        begun = self.run.exists()
        rounds.run(self.run, None if begun else self.config, resume=begun, as_json=True)
        return [item["id"] for item in self.told().get("waiting", ())]

    def reply(self, id: str, words: str) -> dict[str, Any]:
        ask.reply(id, words, run=self.run, as_json=True)
        return self.told()

    def edit(self, id: str, answer: str) -> dict[str, Any]:
        review.review(id, self.run, answer=answer, as_json=True)
        return self.told()

    def waiting(self) -> list[str]:
        """The ids of what is queued for review."""
        with closing(RunFolder(self.run).store()) as store:
            return [item.id for item in queue(store)]

    def told(self) -> Any:
        return json.loads(self._capsys.readouterr().out)


def test_a_run_waits_for_humans_and_goes_on_with_their_replies(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(tmp_path, tiny_base, capsys)
    first, second, third = desk.go()
    assert desk.reply(first, "answer: one")["waiting"] == 2
    assert desk.edit(second, "two")["did"].endswith("`reflux run --resume`")
    with pytest.raises(UsageError, match="no proposal to approve"):
        desk.reply(third, "approve")
    desk.reply(third, "1+1?\n2+2?")
    parts = desk.go()
    assert parts == [f"{third}/0.0.0", f"{third}/0.0.1"]
    with pytest.raises(UsageError, match=f"nothing waits at {third}/9; pending: {parts[0]}"):
        desk.reply(f"{third}/9", "pass")
    for part in parts:
        desk.reply(part, f"answer: {part[-1]}")
    assert desk.go() == [third]
    desk.reply(third, "answer: three")
    with pytest.raises(UsageError, match="does not wait for a human"):
        desk.reply(third, "answer: 3")
    assert desk.waiting() == []
    held_out = desk.go()  # They are queued, since the run needs them.
    assert len(held_out) == 2
    for id in held_out:
        desk.reply(id, "answer: 8")
    assert desk.go() == []
    (report,) = RunFolder(desk.run).report()["rounds"]
    assert (report["amplify"]["accepted"], report["rows"], report["amplified"]["n"]) == (3, 3, 2)

    edited = desk.edit(parts[0], "other")  # The human sees the new parts, and answers again.
    assert edited["outcome"] is None
    (item,) = desk.waiting()
    assert item == edited["trajectory"] == f"{third}~1"
    assert desk.edit(item, "four")["outcome"]["answer"] == "four"
