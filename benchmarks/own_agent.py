"""An agent that does not know Reflux: how many tasks its teacher, the base and the student solve.

An agent of `examples/shop` answers questions about orders with three tools. It is recorded while a
teacher works, a student is distilled from the record, and the same agent then runs on held-out
tasks, about orders that no training task names, against teacher, base and student. Only its URL
changes, and several agents work at once. All three have the same limits: 8 replies a task of at
most 96 tokens each. The base reads its tools as the student does, by the same template.

The teacher is a program that solves the tasks by calling the tools, behind an OpenAI-compatible
endpoint: a stand-in for a strong model, which this repository cannot bring. Its success is that of
a teacher without faults, its latency is not told, and its price is that of a model with the list
price of `--list-price` that says the same. The others' price is the time of all tasks on this
machine at `--hour`; the seconds of a task are those of its calls, beside other tasks.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.default_model import model_name
from benchmarks.report import Claim, Report, middle
from reflux.finetune.bases import find_base
from reflux.finetune.configs.run import BaseConfig
from reflux.graphs.evals.metrics import difference, wilson
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import RecordedCall, load
from tests.support.endpoint_server import serving
from tests.support.shop_teacher import make_shop, make_tasks, respond, solves

SHOP = Path(__file__).parents[1] / "examples" / "shop"
ASKED = "gpt-4.1"
"""The model that the agents ask for."""
BASE, STUDENT = "student-untrained", "student-shop"
"""The base is an adapter of no step, so that its requests are rendered as the student's are."""
AGENTS = ("openai", "langgraph", "pydantic")
WRONG = 6
"""Wrong answers that are printed."""
WORKERS = 4
"""Agents that work at the same time."""


@dataclass(frozen=True)
class Config:
    """One run."""

    model: str = ""
    """The base: a GGUF, a folder or an id of the Hub; empty for the default one."""
    agents: tuple[str, ...] = AGENTS[:1]
    """Of `examples/shop`."""
    train: int = 600
    """Recorded tasks that the student learns from."""
    held_out: int = 210
    replayed: int = 100
    """Recorded held-out calls that are asked again one by one."""
    epochs: int = 2
    list_price: tuple[float, float] = (2.0, 8.0)
    """USD for a million tokens read and written, of the model that the teacher stands for."""
    hour: float = 0.1
    """USD for an hour of this machine."""
    seed: int = 0
    quick: bool = False
    more: bool = False
    """Keeps the last run's figures of other models and agents."""


QUICK = Config(train=6, held_out=6, quick=True)


def reflux(*words: object) -> str:
    """What a command of Reflux prints.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "reflux", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def agent(name: str, path: Path) -> list[str]:
    """The command that runs an agent on a file of tasks."""
    return [sys.executable, str(SHOP / f"{name}_agent.py"), str(path)]


def answers_of(name: str, path: Path, url: str) -> list[str]:
    """The answers to a file of tasks of several agents at once, each of which has a part of it."""
    lines = path.read_text().splitlines(keepends=True)
    parts = [path.with_suffix(f".{worker}") for worker in range(WORKERS)]
    for worker, part in enumerate(parts):
        part.write_text("".join(lines[worker::WORKERS]))
    env = {**os.environ, "OPENAI_BASE_URL": url}
    started = [
        subprocess.Popen(agent(name, part), env=env, stdout=subprocess.PIPE, text=True)
        for part in parts
    ]
    printed = [process.communicate()[0].splitlines() for process in started]
    if codes := [process.returncode for process in started if process.returncode]:
        raise RuntimeError(f"{name}_agent.py ended with the codes {codes}")
    return [json.loads(printed[i % WORKERS][i // WORKERS])["answer"] for i in range(len(lines))]


@contextmanager
def reflux_serve(config: Config, folder: Path, model: str) -> Iterator[str]:
    """The address at which a model answers for the one that the agent asks for."""
    (folder / "serve.yaml").write_text(yaml.safe_dump({"alias": {ASKED: model}}))
    words = ["serve", "--run", folder / "app", "--config", folder / "serve.yaml", "--port", 0]
    words += ["--base", config.model] if config.model else []
    command = [sys.executable, "-m", "reflux", *map(str, words), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        text = ""
        while not text.endswith("}\n") and process.poll() is None:
            text += process.stdout.readline() if process.stdout else ""
        try:
            yield f"{json.loads(text)['url']}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def calls_of(run: Path, model: str) -> list[list[RecordedCall]]:
    """The calls of a model in each trajectory."""
    with closing(TraceStore(run / "traces.db")) as store:
        ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
        found = [trajectory for id in ids if (trajectory := load(store, id)) is not None]
    agents = [each for each in found if each.source]  # Others are calls that were asked again.
    calls = [[call for call in each.calls if call.model == model] for each in agents]
    return [each for each in calls if each]


def solved(answers: Sequence[str], tasks: Sequence[Mapping[str, str]]) -> list[bool]:
    """Whether each task is solved."""
    pairs = zip(answers, tasks, strict=True)
    return [solves(answer, task["answer"]) for answer, task in pairs]


def success(right: Sequence[bool]) -> dict[str, Any]:
    """The share of solved tasks, with its interval, and that of each kind of task."""
    low, high = wilson(sum(right), len(right))
    kinds = {name: right[at::3] for at, name in enumerate(("where", "cost", "cost of two"))}
    shares = {name: round(sum(each) / len(each), 3) for name, each in kinds.items()}
    return {
        "n": len(right),
        "success": round(sum(right) / len(right), 3),
        "95%": [round(low, 3), round(high, 3)],
        **shares,
    }


def spent(calls: Sequence[Sequence[RecordedCall]]) -> dict[str, Any]:
    """Calls, tokens and seconds of a task."""
    replies = [[call.reply for call in each] for each in calls]
    read = sum(reply.prompt_tokens for each in replies for reply in each)
    written = sum(reply.completion_tokens for each in replies for reply in each)
    return {
        "calls": round(sum(map(len, replies)) / len(replies), 2),
        "read": round(read / len(replies)),
        "written": round(written / len(replies)),
        "seconds, median": round(middle([sum(r.seconds for r in each) for each in replies]), 2),
    }


def words_of(folder: Path, name: str, base: Any, sft: Any, seed: int) -> list[object]:
    """The command that distills with these settings."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": base, "sft": sft, "seed": seed}))
    return ["distill", "--config", path, "--near", 0]


def distilled(config: Config, folder: Path) -> tuple[float, float]:
    """Make the student; tokens that a teacher reads and writes in a task, as the base counts."""
    base = {"tools": "text"} | ({"model": config.model} if config.model else {})
    settings = {
        STUDENT: {"num_train_epochs": config.epochs},
        BASE: {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 1},
    }
    for student, sft in settings.items():
        words = [*words_of(folder, student, base, sft, config.seed), "--run", folder / "app"]
        reflux(*words, "--student", student, "--rows", "trajectories")
    words = words_of(folder, BASE, base, {}, config.seed)
    words += ["--run", folder / "teacher", "--dry-run", "--json"]
    whole, each = (json.loads(reflux(*words, "--rows", by)) for by in ("trajectories", "calls"))
    written = whole["tokens"]["counted"] / whole["measured"]
    sent = each["tokens"]["sum"] / each["measured"] * each["rows"] / whole["rows"]
    return sent - written, written


def replayed(config: Config, folder: Path) -> dict[str, dict[str, float]]:
    """The shares of recorded held-out calls that base and student reply to as the teacher did."""
    words = ["eval", "--run", folder / "app", "--replay", folder / "teacher", "--json"]
    words += ["--limit", config.replayed, "--systems", f"{BASE},{STUDENT}"]
    systems = json.loads(reflux(*words))["systems"]
    return {
        name: {f"{key}, by call": value["share"] for key, value in result["shares"].items()}
        for name, result in systems.items()
    }


def recorded(config: Config, name: str, folder: Path, endpoint: str) -> list[dict[str, str]]:
    """The held-out tasks, after an agent did them and those to learn from with its teacher."""
    shop = make_shop(config.train + config.held_out, config.seed)
    (folder / "shop.json").write_text(json.dumps(shop))
    os.environ |= {"SHOP": str(folder / "shop.json"), "OPENAI_API_KEY": "none"}
    names, tasks = list(shop["orders"]), []
    for run, part in (("app", names[: config.train]), ("teacher", names[config.train :])):
        tasks = make_tasks(shop, part)
        path = folder / f"{run}.jsonl"
        path.write_text("".join(json.dumps({"task": task["task"]}) + "\n" for task in tasks))
        words = ["record", "--run", folder / run, "--upstream", endpoint]
        stdout = reflux(*words, "--", *agent(name, path))
    answers = [json.loads(line)["answer"] for line in stdout.splitlines()]
    (folder / "teacher.json").write_text(json.dumps(answers))
    return tasks


def measure(
    config: Config, who: Mapping[str, str], folder: Path, endpoint: str, report: Report
) -> None:
    """Record an agent, distill its calls, run it on each model, and report."""
    name, title = who["agent"], " on ".join(who.values())
    tasks = recorded(config, name, folder, endpoint)
    right = {"teacher": solved(json.loads((folder / "teacher.json").read_text()), tasks)}
    report.rows.append({**who, "system": "teacher (scripted)", **success(right["teacher"])})
    teacher = report.rows[-1]
    teacher["calls"] = spent(calls_of(folder / "teacher", ASKED))["calls"]
    report.claims.append(claim(f"{title}: teacher, tasks solved", teacher, 0.99))
    if config.quick:
        return
    read, written = distilled(config, folder)
    price = (read * config.list_price[0] + written * config.list_price[1]) / 1000
    teacher |= {"read": round(read), "written": round(written), "USD/1000 tasks": round(price, 3)}
    by_call = replayed(config, folder)
    for model in (BASE, STUDENT):
        with reflux_serve(config, folder, model) as url:
            begun = time.perf_counter()
            answers = answers_of(name, folder / "teacher.jsonl", url)
            hours = (time.perf_counter() - begun) / 3600
        right[model] = solved(answers, tasks)
        shown = "base" if model == BASE else f"student of {config.train} tasks"
        row = {**who, "system": shown, **success(right[model])}
        row |= spent(calls_of(folder / "app", model))
        price = 1000 * hours / len(tasks) * config.hour
        report.rows.append(row | {"USD/1000 tasks": round(price, 3)} | by_call[model])
        print(json.dumps(report.rows[-1]), flush=True)
        triples = zip(tasks, answers, right[model], strict=True)
        wrong = [{**task, "said": said} for task, said, is_right in triples if not is_right]
        print("\n".join(map(json.dumps, wrong[:WRONG])), flush=True)
    pairs = zip(right[STUDENT], right[BASE], strict=True)
    gain = difference(STUDENT, BASE, {str(i): [pair] for i, pair in enumerate(pairs)}, config.seed)
    gained = f"{title}: student, tasks solved more than by the base, lower end"
    report.claims += [
        Claim(gained, gain.ci95[0], ">=", 0.5, gain.n, gain.ci95),
        claim(f"{title}: student, tasks solved", report.rows[-1], 0.9),
    ]


def main(config: Config) -> None:
    """Measure each agent."""
    report = Report("own_agent", seed=config.seed, quick=config.quick, more=config.more)
    os.environ.pop("OPENAI_BASE_URL", None)
    model = model_name(find_base(BaseConfig(model=config.model)))
    for name in config.agents:
        who = {"agent": name, "model": model}
        title = " on ".join(who.values()) + ":"
        report.rows[:] = [row for row in report.rows if not who.items() <= row.items()]
        report.claims[:] = [each for each in report.claims if not each.name.startswith(title)]
        with tempfile.TemporaryDirectory() as scratch, serving(respond, (ASKED,)) as endpoint:
            measure(config, who, Path(scratch), endpoint.url, report)
        if not config.quick:
            report.write()
    report.finish()


def claim(name: str, row: Mapping[str, Any], target: float) -> Claim:
    """Success and its target."""
    low, high = row["95%"]
    return Claim(name, row["success"], ">=", target, row["n"], (low, high))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--model", default="", help="a GGUF, a folder or an id of the Hub")
    parser.add_argument("--agent", choices=AGENTS, nargs="+", default=Config.agents)
    parser.add_argument("--train", type=int, default=Config.train, help="recorded tasks")
    parser.add_argument("--n", type=int, default=Config.held_out, help="held-out tasks")
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--hour", type=float, default=Config.hour, help="USD an hour, here")
    priced = "USD for a million tokens read and written, of the teacher"
    parser.add_argument("--list-price", type=float, nargs=2, default=Config.list_price, help=priced)
    kept = "keep figures of other models and agents"
    parser.add_argument("--more", action="store_true", help=kept)
    given = parser.parse_args()
    prices = (given.list_price[0], given.list_price[1])
    chosen = Config(
        given.model, tuple(given.agent), given.train, given.n, epochs=given.epochs,
        list_price=prices, hour=given.hour, more=given.more,
    )  # fmt: skip
    main(QUICK if given.quick else chosen)
