"""The answers of an evaluation as logs of Inspect, which its viewer and its functions read.

A log is a ZIP file of JSON: `header.json`, and one file in `samples/` for each answer. One log
holds one system; a seed is an epoch.
"""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from reflux.agents.errors import UsageError
from reflux.agents.files import replacing
from reflux.graphs.evals.answers import Answered
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.results import Answers, Results
from reflux.graphs.evals.scores import Score

VERSION = 2
"""Of Inspect's log format."""
SCORER = "reflux"


def check_log_path(path: Path) -> None:
    """Check that a log can be written, before anything is asked.

    Raises:
        UsageError: the path does not end in `.eval`.
    """
    if path.suffix != ".eval":
        raise UsageError(f"--inspect-log {path} must end in .eval, as Inspect's logs do")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_logs(path: Path, results: Results, eval_task: EvalTask) -> list[Path]:
    """Write one log for each system: at `path`, or of several beside it, by their names."""
    written: list[Path] = []
    for key, answers in results.answers.items():
        name = re.sub(r"[^\w.-]+", "-", key)
        several = len(results.answers) > 1
        written.append(path.with_stem(f"{path.stem}-{name}") if several else path)
        _write_log(written[-1], results, answers, results.summaries[key], eval_task)
    return written


def _write_log(
    path: Path, results: Results, answers: Answers, score: Score, eval_task: EvalTask
) -> None:
    now = datetime.now(UTC).isoformat()
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as log,
    ):
        epochs = {seed: index for index, seed in enumerate(results.seeds, start=1)}
        ids: dict[str, int] = {}
        for answer in answers:
            number = ids.setdefault(answer.id, len(ids) + 1)
            sample = _sample(answer, number, epochs[answer.seed], score.model, eval_task)
            log.writestr(f"samples/{number}_epoch_{epochs[answer.seed]}.json", json.dumps(sample))
        log.writestr("header.json", json.dumps(_header(results, score, len(ids), now)))


def _sample(
    answer: Answered, number: int, epoch: int, model: str, eval_task: EvalTask
) -> dict[str, Any]:
    text = answer.answer or ""
    reply: dict[str, Any] = {"role": "assistant", "content": text, "source": "generate"}
    stop = "max_tokens" if answer.status == "truncated" else "stop"
    body: dict[str, Any] = {
        "id": number,
        "epoch": epoch,
        "input": answer.question,
        "choices": list(eval_task.choices(answer.question)) or None,
        "target": list(eval_task.true_answers(answer.question)),
        "messages": [{"role": "user", "content": answer.question, "source": "input"}, reply],
        "output": {
            "model": model,
            "choices": [{"message": reply, "stop_reason": stop}],
            "completion": text,
            "time": answer.seconds,
        },
        "metadata": {
            "status": answer.status, "trajectory": answer.trajectory, "calls": answer.calls,
            "tokens": answer.tokens, "confidence": answer.confidence, "cost": answer.cost,
        },
        "total_time": answer.seconds,
    }  # fmt: skip
    if answer.right is not None:
        grade = "C" if answer.right else "I"
        body["scores"] = {SCORER: {"value": grade, "answer": text, "explanation": answer.error}}
    return body


def _header(results: Results, score: Score, questions: int, now: str) -> dict[str, Any]:
    run, scored = uuid4().hex, score.n - score.unscored
    half = (score.ci95[1] - score.ci95[0]) / 2 / 1.96
    metrics = {"accuracy": score.accuracy, "stderr": half}
    return {
        "version": VERSION,
        "status": "success",
        "eval": {
            "eval_id": run,
            "run_id": run,
            "task_id": uuid4().hex,
            "created": now,
            "task": results.eval_task,
            "dataset": {"name": results.eval_task, "samples": questions},
            "model": score.model,
            "config": {"epochs": len(results.seeds)},
            "metadata": {"score": results.rule, "settings": dict(results.settings)},
        },
        "results": {
            "total_samples": score.n,
            "completed_samples": score.n,
            "scores": [_eval_score(metrics, scored, score.unscored)],
        },
        "stats": {"started_at": now, "completed_at": now},
    }


def _eval_score(metrics: Mapping[str, float], scored: int, unscored: int) -> dict[str, Any]:
    values: Sequence[tuple[str, float]] = list(metrics.items())
    return {
        "name": SCORER,
        "scorer": SCORER,
        "scored_samples": scored,
        "unscored_samples": unscored,
        "metrics": {name: {"name": name, "value": value} for name, value in values},
    }
