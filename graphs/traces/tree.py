"""A trajectory as the tree that it was: nodes by path, with their steps, votes and costs.

The steps of a recorded trajectory, as `reflux.agents.overseers.recorded` replays them.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.agents.types import Answer, Ask, Step, SubQuestion, step_from_json
from reflux.graphs.traces.chain_links import chains
from reflux.graphs.traces.database import NODE_ENDED, STOPPED, Rows
from reflux.graphs.traces.revisions import before
from reflux.graphs.traces.store import TraceStore

NO_PRICES: Mapping[str, Price] = {}
WAS_STOPPED = f"SELECT {STOPPED} FROM questions q WHERE q.id = ?"  # noqa: S608 - a constant of ours


@dataclass
class Node:
    """One question of a trajectory."""

    path: str
    question: str
    answer: str | None = None
    status: str = "running"
    """`ok`, `rejected`, `over_budget`, `failed`; where no outcome is recorded, `stopped` if that
    is, else `running`."""
    error: str | None = None
    answered_by: str = ""
    """`H` for a primitive or a combination, `human` where one overrode it, otherwise the model's
    name."""
    votes: int = 0
    tally: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    """Answers and the weight of their votes, the heaviest first, where there were votes."""
    checks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What checks said, in order: `answer`, `ok`, and `rule` where one was broken."""
    verdict: str = ""
    """A person's: `approved` or `rejected`."""
    comments: list[str] = field(default_factory=list[str])
    """Persons'."""
    calls: int = 0
    """Model calls of this node alone."""
    cached: int = 0
    """Of them, those that were replayed or known and cost nothing."""
    tokens: int = 0
    """Prompt and completion."""
    seconds: float = 0.0
    """Of its model calls and tools, one after the other."""
    money: float = 0.0
    """Of its model calls, where their prices are known."""
    tools: int = 0
    """Calls of tools."""
    note: str = ""
    """Why H asked as it did, for example that the question cannot be decomposed."""
    chain: dict[str, Any] | None = None
    """Where H asked a chain, of its last attempt: `links` that were begun, `doubtful` ones, whose
    first votes did not decide, and the `first` and `last` link as (question, answer)."""
    children: list["Node"] = field(default_factory=list["Node"])

    def walk(self) -> Iterator["Node"]:
        """This node and all below it, in the order in which they were asked."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, children nested."""
        return {**vars(self), "children": [child.to_json() for child in self.children]}


def find_question(store: Rows, question: str) -> tuple[str, str]:
    """Id and text of a root question, by its id or an unambiguous beginning of it.

    A beginning without `~` is that of a trajectory as it was asked, not of its revisions.

    Raises:
        UsageError: no such trajectory, or several.
    """
    asked = {"q": question}
    found = list(store.select("SELECT id, text FROM questions WHERE id = :q", asked))
    if not found:
        # By the index: a scan of 100,000 questions would hold up everything else.
        found = list(
            store.select(
                "SELECT id, text FROM questions WHERE id > :q AND id < :q || char(1114111)"
                " AND substr(id, 1, length(:q)) = :q AND (revises IS NULL OR instr(:q, '~'))"
                " LIMIT 2",
                asked,
            )
        )
    if len(found) != 1 and "~" in question and not question.startswith("~"):
        asked_first, _, number = question.partition("~")
        whole = f"{find_question(store, asked_first)[0]}~{number}"
        if whole != question:
            return find_question(store, whole)
    if len(found) != 1:
        what = "several trajectories begin" if found else "no trajectory begins"
        raise UsageError(f"{what} with {question!r}; `reflux traces list` names them")
    return found[0]["id"], found[0]["text"]


def load_tree(store: Rows, question: str, prices: Mapping[str, Price] = NO_PRICES) -> Node:
    """The tree of one root question, by its id or an unambiguous beginning of it.

    `prices` are those of the models, by name.

    Raises:
        UsageError: no such trajectory, or several.
    """
    root_id, text = find_question(store, question)
    nodes = {"": Node("", text)}
    asked: dict[str, SubQuestion] = {}
    calls = store.select(
        "SELECT * FROM calls WHERE question=? AND error IS NULL ORDER BY length(path), id",
        (root_id,),
    )
    for row in calls:
        node = nodes.setdefault(row["path"], Node(row["path"], ""))
        node.seconds += row["seconds"]
        if row["kind"] == "model":
            node.calls += 1
            node.cached += row["cached"]
            node.tokens += row["prompt_tokens"] + row["completion_tokens"]
            node.answered_by = row["model"]
            if not row["cached"] and (price := prices.get(row["model"])) is not None:
                node.money += price.of(row["prompt_tokens"], row["completion_tokens"])
        elif row["kind"] == "tool":
            node.tools += 1
            node.answered_by = node.answered_by or f"tool:{row['model']}"
        elif row["kind"] == "graph":  # Somebody else's graph: what it does within is not seen.
            node.calls += json.loads(row["completion"])["calls"]
            node.tokens += row["prompt_tokens"] + row["completion_tokens"]
            node.answered_by = row["model"]
        else:
            step = step_from_json(json.loads(row["completion"]))
            _take_step(nodes, asked, node, row["attempt"], row["step"], step)
    for path, body, calls_made, tokens, model in chains(store, root_id):
        node = nodes.setdefault(path, Node(path, ""))
        node.chain, node.answered_by = body, model
        node.calls += calls_made
        node.tokens += tokens
    votes: dict[tuple[str, str], int] = {}
    for row in store.select(
        "SELECT * FROM judgements WHERE question=? AND kind IN ('leaf', 'outcome') ORDER BY id",
        (root_id,),
    ):
        detail = json.loads(row["detail"])
        node = nodes.setdefault(row["path"], Node(row["path"], ""))
        node.question = node.question or detail["question"]
        node.answer, node.status = detail["answer"], detail["status"]
        node.error = detail["error"]
        node.answered_by = detail.get("by", node.answered_by)
        node.tally = [(text, weight) for text, weight in detail.get("tally", node.tally)]
        # A leaf that was answered anew after an outage is judged twice: the newest counts.
        votes[row["path"], (row["key"] or "").rsplit(":", 1)[0]] = detail.get("votes", 0)
    for (path, _), number in votes.items():
        nodes[path].votes += number
    _judge(store, root_id, nodes)
    if nodes[""].status == "running" and next(store.select(WAS_STOPPED, (root_id,)))[0]:
        for node in nodes.values():
            node.status = "stopped" if node.status == "running" else node.status
    for path in sorted(nodes, key=_order):
        if path:
            parent = path.rsplit("/", 1)[0]
            nodes[parent].children.append(nodes[path])
        if path in asked:
            nodes[path].question = _filled(nodes, path, asked[path])
    return nodes[""]


def held(store: Rows, last: str, path: str) -> tuple[str, Node]:
    """(revision, node): a node by its path, as the newest revision that came to it holds it.

    One that is still being recomputed, or whose recomputing was cut off, has not come to all.

    Args:
        last: the newest revision.

    Raises:
        UsageError: there is no such node.
    """
    for id in (last, *before(last)):
        node = next((node for node in load_tree(store, id).walk() if node.path == path), None)
        if node is not None:
            return id, node
        if next(store.select(NODE_ENDED, (id, "")), None) is not None:
            break
    raise UsageError(
        f"{last} has no node {path!r}; `reflux traces show {last}` shows its tree, --json the paths"
    )


def tokens_of(store: Rows, question: str) -> tuple[int, int]:
    """Prompt and completion tokens of a tree, cache hits among them; `question` is its id."""
    (row,) = store.select(
        "SELECT sum(prompt_tokens) AS asked, sum(completion_tokens) AS said FROM calls"
        " WHERE question=? AND error IS NULL",
        (question,),
    )
    return row["asked"] or 0, row["said"] or 0


def _judge(store: Rows, root_id: str, nodes: dict[str, Node]) -> None:
    """What checks and persons said of the nodes."""
    for row in store.select(
        "SELECT path, kind, ok, detail FROM judgements WHERE question=?"
        " AND kind IN ('check', 'verdict', 'comment') ORDER BY id",
        (root_id,),
    ):
        node = nodes.setdefault(row["path"], Node(row["path"], ""))
        detail = json.loads(row["detail"])
        if row["kind"] == "check":
            rule = {"rule": detail["rule"]} if detail.get("rule") else {}
            node.checks.append({"answer": detail["answer"], "ok": bool(row["ok"])} | rule)
        elif row["kind"] == "verdict":
            node.verdict = "approved" if row["ok"] else "rejected"
        if detail.get("comment"):
            node.comments.append(detail["comment"])


def _take_step(
    nodes: dict[str, Node],
    asked: dict[str, SubQuestion],
    node: Node,
    attempt: int,
    number: int,
    step: Step,
) -> None:
    if isinstance(step, Answer):
        node.answer, node.status, node.answered_by = step.text, "ok", "H"
    elif isinstance(step, Ask):
        node.note = step.note
        for index, sub in enumerate(step.subquestions):
            path = f"{node.path}/{attempt}.{number}.{index}"
            nodes.setdefault(path, Node(path, sub.text))
            asked[path] = sub


def _filled(nodes: dict[str, Node], path: str, sub: SubQuestion) -> str:
    """What was asked: with the answers that it needed, as far as there are any."""
    batch = path.rsplit(".", 1)[0]
    needed = {need: nodes.get(f"{batch}.{need}") for need in sub.needs}
    return sub.filled({n: node.answer for n, node in needed.items() if node and node.answer})


def _order(path: str) -> list[tuple[int, ...]]:
    return [tuple(int(n) for n in part.split(".")) for part in path.split("/")[1:]]


def recorded_steps(store: TraceStore, question: str) -> dict[str, list[list[Step]]]:
    """H's steps on every question of one trajectory, by the question's text: one list an attempt.

    A question that stands in the tree more than once has the steps of its first place. Steps are
    those that were taken: where a person edited or answered, the person's.

    Args:
        question: id of the root question, or an unambiguous beginning of it.

    Raises:
        UsageError: no such trajectory, or several.
    """
    root = load_tree(store, question)
    root_id, _ = find_question(store, question)
    taken: dict[str, dict[int, list[Step]]] = defaultdict(lambda: defaultdict(list))
    for row in store.select(
        "SELECT path, attempt, completion FROM calls WHERE question = ? AND role = 'overseer'"
        " AND kind = 'script' AND error IS NULL ORDER BY path, attempt, step",
        (root_id,),
    ):
        taken[row["path"]][row["attempt"]].append(step_from_json(json.loads(row["completion"])))
    steps: dict[str, list[list[Step]]] = {}
    for node in root.walk():
        if node.path in taken and node.question not in steps:
            steps[node.question] = list(taken[node.path].values())
    return steps
