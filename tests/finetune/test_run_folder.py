"""A run does not depend on the name of its folder."""

import asyncio
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import ChatRequest, Completion
from reflux.cli.runs.distill_rows import rows_for
from reflux.finetune.configs.run import config_from
from reflux.finetune.data.rows import Row, reply_of, rows_digest, training_order
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from tests.support.sums import CONFIG, SuspiciousAddition, exact


async def trained_rows(
    folder: Path, client: ScriptedClient, max_concurrency: int = 64, seed: int = 0
) -> tuple[list[Row], list[str]]:
    """(rows that round 2's student learns, in their order; ids of all questions asked)."""
    config = CONFIG.model_copy(update={"max_concurrency": max_concurrency, "seed": seed})
    run = OpenRun(RunFolder(folder), client=client)
    stages = Stages(config, SuspiciousAddition(), run, lambda *_: None)
    async with run:
        for number, model in ((0, "base"), (1, "student-r0"), (2, "student-r1")):
            await stages.amplify(number, model)
        questions = [row["id"] for row in run.store.select("SELECT id FROM questions ORDER BY id")]
        return stages.rows(2)[1], questions


class Unpunctual(ScriptedClient):
    """Answers in another order than it is asked."""

    async def complete(self, request: ChatRequest) -> Completion:
        await asyncio.sleep(len(self.requests) % 7 / 1000)
        return await super().complete(request)


@pytest.mark.slow
async def test_two_runs_of_one_config_in_two_folders_learn_the_same_rows_in_the_same_order(
    tmp_path: Path,
) -> None:
    rows, questions = await trained_rows(tmp_path / "demo", ScriptedClient(exact))
    others = await trained_rows(tmp_path / "demo2", Unpunctual(exact), max_concurrency=3)
    assert [row.train() for row in others[0]] == [row.train() for row in rows]
    assert rows_digest(others[0]) == rows_digest(rows)
    assert others[1] == questions
    assert RunFolder(tmp_path / "demo").id != RunFolder(tmp_path / "demo2").id
    assert {row.provenance["run"] for row in rows} == {RunFolder(tmp_path / "demo").id}


@pytest.mark.slow
async def test_a_folder_that_is_renamed_or_copied_replays_everything(tmp_path: Path) -> None:
    rows, _ = await trained_rows(tmp_path / "demo", ScriptedClient(exact))
    shutil.copytree(tmp_path / "demo", tmp_path / "copy")
    (tmp_path / "demo").rename(tmp_path / "renamed")
    for name in ("renamed", "copy"):
        client = ScriptedClient(exact)
        again, _ = await trained_rows(tmp_path / name, client)
        assert client.requests == []
        assert again == rows


def test_the_order_of_rows_follows_from_seed_and_content_alone() -> None:
    prompt = ({"role": "user", "content": "?"},)
    rows = [Row(prompt, reply_of(str(n % 40)), "?", "t", {"trajectory": str(n)}) for n in range(60)]
    renamed = [replace(row, provenance={"trajectory": "x"}) for row in reversed(rows)]
    order = [row.reply for row in training_order(rows, 0)]
    assert [row.reply for row in training_order(renamed, 0)] == order
    assert sorted(order) == sorted(row.reply for row in rows)
    assert [row.reply for row in training_order(rows, 1)] != order


@pytest.mark.slow
async def test_distill_takes_the_same_rows_from_any_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunFolder(tmp_path / name).save_config(CONFIG.model_dump(mode="json"))
        await trained_rows(tmp_path / name, ScriptedClient(exact))
    assert rows_for(RunFolder(tmp_path / "a"), None) == rows_for(RunFolder(tmp_path / "b"), None)


def test_a_run_id_is_written_once(tmp_path: Path) -> None:
    id = RunFolder(tmp_path / "r").id
    assert RunFolder(tmp_path / "r").id == id
    (tmp_path / "r").rename(tmp_path / "s")
    assert RunFolder(tmp_path / "s").id == id
    (tmp_path / "s" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"run.json holds no run id"):
        _ = RunFolder(tmp_path / "s").id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 3}, "begun with seed: 0, and new.yaml says 3: "),
        ({"base": "other"}, "begun with base.model: '', and new.yaml says 'other'"),
        ({"task": "multiplication"}, "begun with task: 'addition', and new.yaml says 'multipl"),
        ({"overseer": "plain"}, "begun with overseer.name: '', and new.yaml says 'plain'"),
        ({"overseer": {"demos": "d.jsonl"}}, "begun with overseer.demos: ''"),
        ({"limits": {"depth": 2}}, "begun with limits.depth: 1, and new.yaml says 2"),
        ({"rounds": 3}, "begun with rounds.2: None, and new.yaml says {"),
        ({"rounds": 1}, "begun with rounds.1: {"),
        ({"spend_limit": {"calls": 9}, "max_concurrency": 2}, ""),
    ],
)
def test_a_run_goes_on_with_the_config_that_decides_its_answers(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    body: dict[str, Any] = {"rounds": 2}
    folder = RunFolder(tmp_path)
    folder.save_config(config_from(body, "old.yaml").model_dump(mode="json"))
    config = config_from(body | change, "new.yaml")
    if not words:
        folder.check_config(config, Path("new.yaml"))
        return
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        folder.check_config(config, Path("new.yaml"))
    assert "name another --run; only spend_limit and max_concurrency" in str(caught.value)
