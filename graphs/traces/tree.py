"""A trajectory as a tree of nodes, with their steps, votes and costs, and the calls that failed."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.agents.types import Answer, Ask, Step, SubQuestion, step_from_json
from reflux.graphs.traces.database import STOPPED, Rows
from reflux.graphs.traces.revisions import before, first_of
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.store import TraceStore, chains
from reflux.graphs.traces.trajectories import UNFINISHED, feedback_in_words

TRUNCATED_PART = "the token limit cut a sub-answer"
"""The note of a node with a truncated child."""
NO_PRICES: Mapping[str, Price] = {}
LAST_CALL = """
SELECT role, completion, error FROM calls WHERE question = ? AND path = ? ORDER BY step DESC LIMIT 1
"""
STEPS = """
SELECT path, role || coalesce(iif(kind = 'tool', ' runs ', ', ') || nullif(model, ''), '')
  || coalesce(' asks for ' || (
    SELECT group_concat((value ->> 1) || ' ' || substr(value ->> 2, 1, 400), ', ')
    FROM json_each(tool_calls)
  ), '')
  || iif(kind = 'tool', coalesce(' ' || substr(messages, 1, 400), ''), '')
  || coalesce(iif(kind = 'tool', ' -> ', iif(tool_calls IS NULL, ': ', ', saying '))
    || nullif(substr(completion, 1, 400), ''), '')
  || coalesce(': ' || error, '') AS line
FROM calls WHERE question = ? AND kind IN ('model', 'tool') ORDER BY step, id
"""
WAS_STOPPED = f"SELECT {STOPPED} FROM questions q WHERE q.id = ?"  # noqa: S608 - a constant of ours


@dataclass
class Node:
    """One question of a trajectory."""

    path: str
    question: str
    answer: str | None = None
    status: str = "running"
    """See `reflux.graphs.amplify.state.Status`; without an outcome `stopped` or `running`."""
    error: str | None = None
    answered_by: str = ""
    """`H` for a primitive or a combination, `human` for an override, else the model's name."""
    votes: int = 0
    tally: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    """(answer, weight of its votes), heaviest first."""
    checks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Results of the checks, in order: `answer`, `ok`, the `rule` that failed, and the `reason` for
    which the answer could not be tested."""
    verdict: str = ""
    """A human's: `approved` or `rejected`."""
    comments: list[str] = field(default_factory=list[str])
    calls: int = 0
    """Model calls of this node alone."""
    cached: int = 0
    """Those of the calls that the cache answered at no cost."""
    tokens: int = 0
    seconds: float = 0.0
    """Sum over its model calls and tool calls."""
    money: float = 0.0
    """Of its model calls with a known price."""
    tools: int = 0
    note: str = ""
    """The overseer's remark, for example that the question cannot be decomposed, or that the token
    limit cut a sub-answer."""
    candidates: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Different answers that were weighed, each with its `weight` and `votes`, whether it is the
    agent's `direct` answer, and whether the token limit `cut` it; `note` says which was taken."""
    decomposition: str = ""
    """Which one a sub-question belongs to, such as `2 of 2`; empty where its parent has one."""
    division: str = ""
    """Why the question was divided, or was not."""
    chain: dict[str, Any] | None = None
    """The last attempt of a chain: number of `links`, of `doubtful` ones, whose first batch of
    votes did not decide, and the `first` and `last` link as (question, answer)."""
    reasoning: str = ""
    """What the model thought before its last reply, apart from the answer."""
    call_notes: list[str] = field(default_factory=list[str])
    """What the record says of the node's calls: settings that were left out, odd replies."""
    steps: list[str] = field(default_factory=list[str])
    """Of a foreign trajectory: its calls in order, with the tools that they ask for."""
    children: list["Node"] = field(default_factory=list["Node"])

    def walk(self) -> Iterator["Node"]:
        """This node and all below it, in order."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def total(self) -> dict[str, int]:
        """Calls and tokens of this node and all below it."""
        return {n: sum(getattr(node, n) for node in self.walk()) for n in ("calls", "tokens")}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, children nested."""
        children = [child.to_json() for child in self.children]
        total = {
            name: getattr(self, name) + sum(child["total"][name] for child in children)
            for name in ("calls", "tokens")
        }
        return {**vars(self), "total": total, "children": children}


def load_tree(store: Rows, question: str, prices: Mapping[str, Price] = NO_PRICES) -> Node:
    """The tree of one root question, by its id or an unambiguous prefix of it.

    `prices` are those of the models, by name.

    Raises:
        UsageError: no trajectory matches, or several do.
    """
    root_id, text = find_question(store, question)
    nodes = {"": Node("", text)}
    subquestions = _read_calls(store, root_id, nodes, prices)
    for path, body, link_calls, tokens, model in chains(store, root_id):
        node = nodes.setdefault(path, Node(path, ""))
        node.chain, node.answered_by = body, model
        node.calls += link_calls
        node.tokens += tokens
    _read_judgements(store, root_id, nodes)
    is_foreign = _complete_foreign(store, root_id, nodes)
    if nodes[""].status == "running" and next(store.select(WAS_STOPPED, (root_id,)))[0]:
        for node in nodes.values():
            node.status = "stopped" if node.status == "running" else node.status
    for path in sorted(nodes, key=_order):
        if path:
            parent = nodes[path.rsplit("/", 1)[0]]
            parent.children.append(nodes[path])
            if nodes[path].status == "truncated" and TRUNCATED_PART not in parent.note:
                parent.note = "; ".join(filter(None, (parent.note, TRUNCATED_PART)))
        if path in subquestions:
            # With those answers that it needs and that exist.
            batch, needs = path.rsplit(".", 1)[0], subquestions[path].needs
            needed = {need: nodes.get(f"{batch}.{need}") for need in needs}
            answers = {n: node.answer for n, node in needed.items() if node and node.answer}
            nodes[path].question = subquestions[path].filled(answers)
    limits = {} if is_foreign else _limits_of(store, root_id)
    for node in nodes.values() if not is_foreign else ():
        _name_decompositions(node)
        node.division = _division(node, limits.get("depth"))
    return nodes[""]


def _complete_foreign(store: Rows, root_id: str, nodes: dict[str, Node]) -> bool:
    """Whether a trajectory is any program's; its nodes then are named after those of its graph,
    and answer with what their last call said."""
    ((source,),) = store.select("SELECT source FROM questions WHERE id = ?", (root_id,))
    if source is None:
        return False
    for row in store.select(STEPS, (root_id,)):
        nodes.setdefault(row["path"], Node(row["path"], "")).steps.append(row["line"])
    for parent in [path[:i] for path in nodes for i, char in enumerate(path) if char == "/"]:
        nodes.setdefault(parent, Node(parent, ""))
    for path, node in nodes.items():
        last = next(store.select(LAST_CALL, (root_id, path)), None)
        if path and last is not None and node.status == "running":
            node.question = node.question or last["role"]
            node.answer = last["completion"] if last["error"] is None else None
            node.status, node.error = "failed" if last["error"] else "unchecked", last["error"]
        node.status = UNFINISHED if not path and node.status == "running" else node.status
    return True


def _limits_of(store: Rows, root_id: str) -> dict[str, Any]:
    """The limits that a question was asked with; empty where no record says so."""
    sql = "SELECT detail FROM judgements WHERE question=? AND kind='how' ORDER BY id LIMIT 1"
    row = next(store.select(sql, (first_of(root_id),)), None)
    return json.loads(row["detail"]).get("limits") or {} if row is not None else {}


def _name_decompositions(node: Node) -> None:
    """Tell the sub-questions of several decompositions apart."""
    attempts = [int(child.path.rpartition("/")[2].split(".")[0]) for child in node.children]
    order = sorted(set(attempts))
    for child, attempt in zip(node.children, attempts, strict=True):
        if len(order) > 1:
            child.decomposition = f"{order.index(attempt) + 1} of {len(order)}"


def _division(node: Node, depth: int | None) -> str:
    """Why a question was divided, or was not, as far as its note does not say it."""
    if node.chain is not None:
        return "asked as a chain of questions"
    if node.children:
        sizes = Counter(child.path.rpartition("/")[2].split(".")[0] for child in node.children)
        times = f" {len(sizes)} times" if len(sizes) > 1 else ""
        parts = " and ".join(map(str, sizes.values()))
        return f"divided{times} into {parts} sub-question{'s' * (parts != '1')}"
    if node.answered_by.startswith("tool:") or node.answered_by in ("human", "H"):
        return ""
    if depth is not None and node.path.count("/") >= depth:
        return f"not divided: as deep as the limit of {depth} allows"
    reason = "its note says why" if node.note else "the overseer left it to the agent"
    return f"not divided: {reason}" if node.answer is not None else ""


def _read_calls(
    store: Rows, root_id: str, nodes: dict[str, Node], prices: Mapping[str, Price]
) -> dict[str, SubQuestion]:
    """Add the steps and calls to the nodes; returns the sub-questions by path."""
    subquestions: dict[str, SubQuestion] = {}
    for row in store.select(
        "SELECT * FROM calls WHERE question=? AND error IS NULL ORDER BY length(path), id",
        (root_id,),
    ):
        node = nodes.setdefault(row["path"], Node(row["path"], ""))
        node.seconds += row["seconds"]
        if row["kind"] == "model":
            node.calls += 1
            node.cached += row["cached"]
            node.tokens += row["prompt_tokens"] + row["completion_tokens"]
            node.answered_by = row["model"]
            node.reasoning = row["reasoning"] or node.reasoning
            notes: list[str] = json.loads(row["notes"] or "[]")
            node.call_notes += [note for note in notes if note not in node.call_notes]
            if not row["cached"] and (price := prices.get(row["model"])) is not None:
                node.money += price.of(row["prompt_tokens"], row["completion_tokens"])
        elif row["kind"] == "tool":
            node.tools += 1
            node.answered_by = node.answered_by or f"tool:{row['model']}"
        elif row["kind"] == "graph":  # An external graph: its inner calls are not recorded.
            node.calls += json.loads(row["completion"])["calls"]
            node.tokens += row["prompt_tokens"] + row["completion_tokens"]
            node.answered_by = row["model"]
        elif isinstance(step := step_from_json(json.loads(row["completion"])), Answer):
            node.answer, node.status, node.answered_by = step.text, "unchecked", "H"
            node.note = "; ".join(filter(None, (node.note, step.reason)))
        elif isinstance(step, Ask):
            node.note = step.note or node.note
            for index, subquestion in enumerate(step.subquestions):
                path = f"{node.path}/{row['attempt']}.{row['step']}.{index}"
                nodes.setdefault(path, Node(path, subquestion.text))
                subquestions[path] = subquestion
    return subquestions


def _read_judgements(store: Rows, root_id: str, nodes: dict[str, Node]) -> None:
    """Add outcomes, and the judgements of checks and humans, to the nodes."""
    votes: dict[tuple[str, str], int] = {}
    for row in store.select(
        "SELECT path, kind, ok, key, detail, author FROM judgements WHERE question=? AND kind IN"
        " ('direct', 'outcome', 'check', 'verdict', 'comment', 'feedback') ORDER BY id",
        (root_id,),
    ):
        detail = json.loads(row["detail"])
        if row["kind"] == "feedback":  # None is shown of a node that is not there.
            nodes.get(row["path"], Node("", "")).comments.append(
                feedback_in_words(detail, row["author"])
            )
            continue
        node = nodes.setdefault(row["path"], Node(row["path"], ""))
        if row["kind"] == "check":
            why = {name: detail[name] for name in ("rule", "reason") if detail.get(name)}
            node.checks.append({"answer": detail["answer"], "ok": bool(row["ok"]), **why})
        elif row["kind"] == "verdict":
            node.verdict = "approved" if row["ok"] else "rejected"
        elif row["kind"] != "comment":
            node.question = node.question or detail["question"]
            node.answer, node.status = detail["answer"], detail["status"]
            node.error = detail["error"]
            node.note = "; ".join(filter(None, (node.note, detail.get("note"))))
            node.answered_by = detail.get("by", node.answered_by)
            node.candidates = detail.get("candidates", node.candidates)
            node.tally = [(text, weight) for text, weight in detail.get("tally", node.tally)]
            # A direct answer repeated after an outage has two judgements: the newest counts.
            votes[row["path"], (row["key"] or "").rsplit(":", 1)[0]] = detail.get("votes", 0)
        if detail.get("comment"):
            node.comments.append(detail["comment"])
    for (path, _), number in votes.items():
        nodes[path].votes += number


def held(store: Rows, last: str, path: str) -> tuple[str, Node]:
    """(revision, node): a node by its path, from the newest revision that has computed it.

    `last` is the newest revision, whose unfinished recomputation has not computed all nodes.

    Raises:
        UsageError: there is no such node.
    """
    for id in (last, *before(last)):
        node = next((node for node in load_tree(store, id).walk() if node.path == path), None)
        if node is not None:
            return id, node
        if store.how_ended(id) is not None:
            break
    raise UsageError(
        f"{last} has no node {path!r}; `reflux traces show {last}` shows its tree, --json the paths"
    )


def _order(path: str) -> list[tuple[int, ...]]:
    return [tuple(int(n) for n in part.split(".")) for part in path.split("/")[1:]]


def recorded_steps(store: TraceStore, question: str) -> dict[str, list[list[Step]]]:
    """The overseer's steps of one trajectory, by the question's text: one list for each attempt.

    `reflux.agents.overseers.scripted` replays them. A question that occurs twice has the steps of
    its first node. A human's edits and answers count as steps. The trajectory is named by its id
    or an unambiguous prefix of it.

    Raises:
        UsageError: no trajectory matches, or several do.
    """
    root_id, _ = find_question(store, question)
    by_path: dict[str, dict[int, list[Step]]] = defaultdict(lambda: defaultdict(list))
    sql = (
        "SELECT path, attempt, completion FROM calls WHERE question = ? AND role = 'overseer'"
        " AND kind = 'script' AND error IS NULL ORDER BY path, attempt, step"
    )
    for row in store.select(sql, (root_id,)):
        by_path[row["path"]][row["attempt"]].append(step_from_json(json.loads(row["completion"])))
    steps: dict[str, list[list[Step]]] = {}
    for node in load_tree(store, root_id).walk():
        if node.path in by_path:
            steps.setdefault(node.question, list(by_path[node.path].values()))
    return steps
