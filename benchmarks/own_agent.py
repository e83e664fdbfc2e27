"""An agent that does not know Reflux: how many tasks its teacher, the base and the student solve.

An agent of `examples/shop` answers questions about orders with three tools. It is recorded while a
teacher works, a student is distilled from the record, and the same agent then runs on held-out
tasks, about orders that no training task names, against teacher, base and student. Only its URL
changes. All three have the same limits: 8 replies a task of at most 96 tokens each.

The teacher is a program that solves the tasks by calling the tools, behind an OpenAI-compatible
endpoint: a stand-in for a strong model, which this repository cannot bring. Its success is that of
a teacher without faults, its latency is not told, and its price is that of a model with the list
price of `--list-price` that says the same. The others' price is the time of their calls on this
machine at `--hour`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import Claim, Report, middle
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import RecordedCall, load
from tests.support.endpoint_server import serving
from tests.support.shop_teacher import make_shop, make_tasks, respond, solves

SHOP = Path(__file__).parents[1] / "examples" / "shop"
ASKED = "gpt-4.1"
"""The model that the agents ask for."""
STUDENT = "student-shop"


@dataclass(frozen=True)
class Config:
    """One run."""

    model: str = ""
    """The base: a GGUF, a folder or an id of the Hub; empty for the default one."""
    agent: str = "openai"
    """Of `examples/shop`: openai, langgraph or pydantic."""
    train: int = 600
    """Recorded tasks that the student learns from."""
    held_out: int = 240
    epochs: int = 3
    list_price: tuple[float, float] = (2.0, 8.0)
    """USD for a million tokens read and written, of the model that the teacher stands for."""
    hour: float = 0.1
    """USD for an hour of this machine."""
    seed: int = 0
    quick: bool = False


QUICK = Config(train=6, held_out=6, quick=True)


def reflux(*words: object) -> str:
    """What a command of Reflux prints.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "reflux", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def agent(config: Config, folder: Path, tasks: str) -> list[str]:
    """The command that runs the agent on a file of tasks."""
    return [sys.executable, str(SHOP / f"{config.agent}_agent.py"), str(folder / tasks)]


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
            process.wait(60)


def calls_of(run: Path, model: str) -> list[list[RecordedCall]]:
    """The calls of each trajectory that a model answered."""
    with closing(TraceStore(run / "traces.db")) as store:
        ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
        found = [trajectory for id in ids if (trajectory := load(store, id)) is not None]
    calls = [list(each.calls) for each in found]
    return [each for each in calls if each and each[0].model == model]


def solved(stdout: str, tasks: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Tasks solved, with their interval."""
    answers = [json.loads(line)["answer"] for line in stdout.splitlines()]
    pairs = zip(answers, tasks, strict=True)
    right = sum(solves(answer, task["answer"]) for answer, task in pairs)
    low, high = wilson(right, len(tasks))
    return {"n": len(tasks), "success": right / len(tasks), "95%": (low, high)}


def spent(calls: Sequence[Sequence[RecordedCall]], hour: float) -> dict[str, Any]:
    """Tokens, seconds and price of a task."""
    replies = [[call.reply for call in each] for each in calls]
    seconds = [sum(reply.seconds for reply in each) for each in replies]
    return {
        "calls": sum(map(len, replies)) / len(replies),
        "read": sum(reply.prompt_tokens for each in replies for reply in each) / len(replies),
        "written": sum(reply.completion_tokens for each in replies for reply in each)
        / len(replies),
        "seconds, median": middle(seconds),
        "USD/1000 tasks": 1000 * sum(seconds) / len(seconds) / 3600 * hour,
    }


def distilled(config: Config, folder: Path) -> tuple[float, float]:
    """Make the student; tokens that a teacher reads and writes in a task, as the base counts."""
    base = {"tools": "text"} | ({"model": config.model} if config.model else {})
    sft = {"num_train_epochs": config.epochs, "per_device_train_batch_size": 4}
    path = folder / "distill.yaml"
    path.write_text(yaml.safe_dump({"base": base, "sft": sft, "seed": config.seed}))
    words = ["distill", "--config", path, "--near", 0, "--json"]
    whole, each = (
        json.loads(reflux(*words, "--run", folder / "teacher", "--rows", rows, "--dry-run"))
        for rows in ("trajectories", "calls")
    )
    reflux(*words, "--run", folder / "app", "--rows", "trajectories", "--student", STUDENT)
    written = whole["tokens"]["counted"] / whole["measured"]
    sent = each["tokens"]["sum"] / each["measured"] * each["rows"] / whole["rows"]
    return sent - written, written


def replayed(config: Config, folder: Path, report: Report) -> None:
    """The recorded held-out calls, asked again one by one."""
    words = ["eval", "--run", folder / "app", "--replay", folder / "teacher", "--json"]
    words += ["--base", config.model] if config.model else []
    systems = json.loads(reflux(*words, "--systems", f"base,{STUDENT}"))["systems"]
    for name, result in systems.items():
        shares = {key: value["share"] for key, value in result["shares"].items()}
        report.rows.append({"system": f"{name}, call by call", **shares})


def main(config: Config) -> None:
    """Record, distill, run the agent on each model, and report."""
    report = Report("own_agent", seed=config.seed, quick=config.quick)
    shop = make_shop(config.train + config.held_out, config.seed)
    names = list(shop["orders"])
    tasks = make_tasks(shop, names[config.train :])
    with tempfile.TemporaryDirectory() as scratch, serving(respond, (ASKED,)) as endpoint:
        folder = Path(scratch)
        (folder / "shop.json").write_text(json.dumps(shop))
        files = {"train": make_tasks(shop, names[: config.train]), "held_out": tasks}
        for name, lines in files.items():
            text = "".join(json.dumps({"task": task["task"]}) + "\n" for task in lines)
            (folder / f"{name}.jsonl").write_text(text)
        os.environ |= {"SHOP": str(folder / "shop.json"), "OPENAI_API_KEY": "none"}
        os.environ.pop("OPENAI_BASE_URL", None)
        for run, file in (("app", "train"), ("teacher", "held_out")):
            words = ["record", "--run", folder / run, "--upstream", endpoint.url]
            stdout = reflux(*words, "--", *agent(config, folder, f"{file}.jsonl"))
        teacher: dict[str, Any] = {"system": "teacher (scripted)", **solved(stdout, tasks)}
        teacher["calls"] = spent(calls_of(folder / "teacher", ASKED), 0)["calls"]
        report.rows.append(teacher)
        report.claims.append(claim("teacher, tasks solved", teacher, 0.99))
        if not config.quick:
            read, written = distilled(config, folder)
            price = (read * config.list_price[0] + written * config.list_price[1]) / 1000
            teacher |= {"read": read, "written": written, "USD/1000 tasks": price}
            measured: dict[str, dict[str, Any]] = {}
            for model in ("base", STUDENT):
                with reflux_serve(config, folder, model) as url:
                    env = {**os.environ, "OPENAI_BASE_URL": url}
                    command = agent(config, folder, "held_out.jsonl")
                    done = subprocess.run(command, env=env, check=True, stdout=-1, text=True)
                measured[model] = solved(done.stdout, tasks)
                measured[model] |= spent(calls_of(folder / "app", model), config.hour)
                report.rows.append({"system": model, **measured[model]})
                print(report.rows[-1], flush=True)
            replayed(config, folder, report)
            base, student = measured["base"], measured[STUDENT]
            title = "student, tasks solved, lower end, against the base"
            low, high = student["95%"]
            report.claims += [
                Claim(title, low, ">=", base["success"], student["n"], (low, high)),
                claim("student, tasks solved, of the teacher's", student, 0.9),
            ]
    report.finish()


def claim(name: str, row: Mapping[str, Any], target: float) -> Claim:
    """Success and its target."""
    return Claim(name, row["success"], ">=", target, row["n"], row["95%"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--model", default="", help="a GGUF, a folder or an id of the Hub")
    parser.add_argument("--agent", choices=("openai", "langgraph", "pydantic"), default="openai")
    parser.add_argument("--train", type=int, default=Config.train, help="recorded tasks")
    parser.add_argument("--n", type=int, default=Config.held_out, help="held-out tasks")
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--hour", type=float, default=Config.hour, help="USD an hour, here")
    priced = "USD for a million tokens read and written, of the teacher"
    parser.add_argument("--list-price", type=float, nargs=2, default=Config.list_price, help=priced)
    given = parser.parse_args()
    prices = (given.list_price[0], given.list_price[1])
    full = Config(given.model, given.agent, given.train, given.n, given.epochs, prices, given.hour)
    main(QUICK if given.quick else full)
