"""One tree as a page that stands alone: one file, no script, no outside address.

Text of models and users is escaped, and a policy in the page forbids scripts and every address.
The less likely a token was, the darker its shade.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from reflux.agents.budget import Price
from reflux.agents.clients.reasoning import text_of
from reflux.graphs.traces.revisions import newest
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import NO_PRICES, Node, load_tree
from reflux.report.terminal import (
    LINES,
    counted,
    cut_text,
    in_all,
    printable,
    reasons,
    total_line,
)
from reflux.tasks import writing_named

if TYPE_CHECKING:
    from jinja2 import Template

MAX_CHARS = 20_000
"""Characters of one text on the page."""
SHADES = 5
STATUS_CLASS = {"ok": "ok", "unchecked": "plain", "truncated": "warn", "running": "plain"}
"""The CSS class of a status: green for `ok` alone; `bad` for every other one."""
CALLS = """
SELECT path, role, kind, model, messages, completion, logprobs, finish_reason, prompt_tokens,
  completion_tokens, seconds, cached, error, vote, tool_calls
FROM calls WHERE question = ? AND kind IN ('model', 'tool') ORDER BY id
"""


def tree_page(store: TraceStore, trajectory: str, prices: Mapping[str, Price] = NO_PRICES) -> str:
    """The page of one trajectory, by its id or an unambiguous beginning of it.

    Raises:
        UsageError: no such trajectory, or several.
    """
    id, question = find_question(store, trajectory)
    tree = load_tree(store, id, prices)
    calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in store.select(CALLS, (id,)):
        calls[row["path"]].append(_call(row))
    columns = "SELECT run, round, system, task, source FROM questions WHERE id = ?"
    (root,) = store.select(columns, (id,))
    about = [f"trajectory {id}", f"run {root['run']}", f"system {root['system']}"]
    if root["source"] is not None:
        about = [f"trajectory {id}", f"recorded by {root['source']}"]
    if (last := newest(store, id)) != id:
        about.append(f"edited since, as {last}")
    if writing := writing_named(root["task"]):
        about.append(writing)
    return page_template("tree.html.jinja", MAX_CHARS).render(
        question=question, about=about, total=total_line(tree), tree=tree, calls=calls,
        shades=SHADES,
    )  # fmt: skip


@cache
def page_template(name: str, max_chars: int) -> "Template":
    """A template of `reflux/report/templates/`; the filter `shown` cuts a text to `max_chars`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # Commands start without it.

    environment = Environment(
        loader=PackageLoader("reflux.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": lambda text: cut_text(printable(text, LINES), max_chars),
        "printable": printable,
        "counted": counted,
        "cost": _cost,
        "tone": lambda status: STATUS_CLASS.get(status, "bad"),
        "reasons": lambda node: [
            *(("", text) for text in (node.note, node.error) if text),
            *reasons(node),
        ],
    }
    return environment.get_template(name)


def _cost(node: Node) -> str:
    parts = [f"by {printable(node.answered_by)}"] if node.answered_by else []
    if node.calls:
        own = "own: " if node.children else ""
        parts += [f"{own}{counted(node.calls, 'call')}", f"{node.tokens} tokens"]
        parts.append(f"{node.seconds:.2f} s")
    if node.votes > 1:
        parts.append(f"{node.votes} votes")
    if node.money:
        parts.append(f"{node.money:.3g} in money")
    if node.children:
        parts.append(in_all(node))
    if node.verdict:
        parts.append(node.verdict)
    return ", ".join(parts)


def _call(row: Any) -> dict[str, Any]:
    """A call of a model or a tool, as the template shows it."""
    if row["kind"] == "tool":
        summary = f"tool {row['model']}"
        messages = [("", row["messages"] or "")]
    else:
        seconds = "cached" if row["cached"] else f"{row['seconds']:.2f} s"
        tokens = f"{row['prompt_tokens']} + {row['completion_tokens']} tokens"
        summary = f"{row['role']}, vote {row['vote']}, {row['model']}: {tokens}, {seconds}"
        turns = json.loads(row["messages"] or "[]")
        messages = [(str(turn.get("role")), _said(turn)) for turn in turns]
    calls = [f"{name}({arguments})" for _, name, arguments in json.loads(row["tool_calls"] or "[]")]
    logprobs = () if row["error"] else json.loads(row["logprobs"] or "[]")
    return {
        "summary": summary,
        "messages": messages,
        "reply": "\n".join(filter(None, (row["error"], row["completion"], *calls))),
        "tokens": [_token(token, logprob) for token, logprob, _ in logprobs[:MAX_CHARS]],
    }


def _said(turn: Mapping[str, Any]) -> str:
    """A message as text: its tool calls stand below, and parts that are no text as JSON."""
    content = turn.get("content") or ""
    parts = content if isinstance(content, list) else [content]
    lines = [part if isinstance(part, str) else text_of([part]) or json.dumps(part)
             for part in parts]  # fmt: skip
    for call in turn.get("tool_calls") or ():
        function = call.get("function") or {}
        lines.append(f"{function.get('name')}({function.get('arguments')})")
    return "\n".join(lines).strip()


def _token(token: str, logprob: float) -> dict[str, Any]:
    probability = math.exp(min(0.0, logprob))
    shade = min(SHADES, round(SHADES * (1 - probability)))
    return {"text": printable(token, LINES), "probability": probability, "shade": shade}
