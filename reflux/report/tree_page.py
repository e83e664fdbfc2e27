"""One tree as a page that stands alone: one file, no script, no outside address.

What models and users wrote is shown as text, whatever it holds, and a policy in the page forbids
scripts and every address besides. The less likely a token was, the darker its shade.
"""

import json
import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from reflux.agents.budget import Price
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.traces.revisions import newest
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import NO_PRICES, Node, find_question, load_tree
from reflux.report.terminal import LINES, STATUS_CLASS, counted, html_text, printable
from reflux.tasks import writing_named

CHARS = 20_000
"""Characters of one text on the page."""
SHADES = 5
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--fg:#1d1d1f;--bg:#fff;--dim:#66686d;--line:#d9dadd;
--ok:#1f6f3a;--bad:#a52a2a;--warn:#8a5a00;--shade:200,120,0}
@media(prefers-color-scheme:dark){:root{--fg:#e8e8ea;--bg:#17181b;--dim:#9a9ca3;--line:#3a3c42;
--ok:#76c893;--bad:#ff8f85;--warn:#e5b567;--shade:255,170,60}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:60rem;
margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.25rem;overflow-wrap:anywhere;white-space:pre-wrap}
details,.single{border-left:2px solid var(--line);margin:.4rem 0 .4rem .3rem;padding-left:.8rem}
summary{cursor:pointer;overflow-wrap:anywhere}
summary:focus-visible{outline:2px solid var(--dim)}
p{margin:.25rem 0}.dim{color:var(--dim);font-size:.875rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere}.ok{color:var(--ok)}.bad{color:var(--bad)}
.warn{color:var(--warn)}
.call{font-size:.875rem}.call .text{font-family:ui-monospace,monospace}
""" + "".join(
    f".s{i}{{background:rgba(var(--shade),{0.16 * i:.2f})}}\n" for i in range(1, SHADES + 1)
)
CALLS = """
SELECT path, role, kind, model, messages, completion, logprobs, finish_reason, prompt_tokens,
  completion_tokens, seconds, cached, error, vote
FROM calls WHERE question = ? AND kind IN ('model', 'tool') ORDER BY id
"""


def tree_page(store: TraceStore, trajectory: str, prices: Mapping[str, Price] = NO_PRICES) -> str:
    """The page of one trajectory, by its id or an unambiguous beginning of it.

    Raises:
        UsageError: no such trajectory, or several.
    """
    id, question = find_question(store, trajectory)
    tree = load_tree(store, id, prices)
    calls: dict[str, list[Any]] = {}
    for row in store.select(CALLS, (id,)):
        calls.setdefault(row["path"], []).append(row)
    (asked,) = store.select("SELECT run, round, system, task FROM questions WHERE id = ?", (id,))
    last = newest(store, id)
    about = [f"trajectory {id}", f"run {asked['run']}", f"system {asked['system']}"]
    about += [f"edited since, as {last}"] if last != id else []
    about += [writing] if (writing := writing_named(asked["task"])) else []
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(_plain(question)[:80])}</title><style>{STYLE}</style></head><body>\n",
            f"<h1>{escape(_plain(question))}</h1>",
            f'<p class="dim">{escape(" · ".join(about))}</p>',
            f'<p class="dim">{escape(_total(tree))}; a token\'s shade is darker the less likely it '
            "was.</p>\n",
            _node(tree, calls, opened=True),
            "\n</body></html>\n",
        )
    )


def _total(tree: Node) -> str:
    nodes = list(tree.walk())
    money = sum(node.money for node in nodes)
    parts = [counted(len(nodes), "question"), counted(sum(node.calls for node in nodes), "call")]
    parts += [f"{sum(node.tokens for node in nodes)} tokens"]
    parts += [f"{sum(node.seconds for node in nodes):.1f} s of models"]
    return ", ".join(parts + ([f"{money:.4g} in money"] if money else []))


def _node(node: Node, calls: Mapping[str, list[Any]], opened: bool = False) -> str:
    below = "".join(_node(child, calls) for child in node.children)
    check_range = "".join(f"<p>{line}</p>" for line in _reasons(node))
    check_range += "".join(map(_call, calls.get(node.path, ())))
    line = (
        f'{_text(node.question)} → {_answer(node)} <span class="dim">{escape(_cost(node))}</span>'
    )
    if not below and not check_range:
        return f'<div class="single">{line}</div>\n'
    is_open = " open" if opened else ""
    return f"<details{is_open}><summary>{line}</summary>\n{check_range}{below}</details>\n"


def _answer(node: Node) -> str:
    kind = STATUS_CLASS.get(node.status, "bad")
    missing = "not answered yet" if node.status == "running" else "no answer"
    said = missing if node.answer is None else _text(node.answer)
    ended = "" if is_accepted(node.status) else f" ({escape(node.status)})"
    return f'<span class="{kind}">{said}{ended}</span>'


def _cost(node: Node) -> str:
    parts = [f"by {_plain(node.answered_by)}"] if node.answered_by else []
    if node.calls:
        parts += [counted(node.calls, "call"), f"{node.tokens} tokens", f"{node.seconds:.2f} s"]
    if node.votes > 1:
        parts.append(f"{node.votes} votes")
    if node.money:
        parts.append(f"{node.money:.3g} in money")
    return ", ".join([*parts, node.verdict] if node.verdict else parts)


def _reasons(node: Node) -> Iterator[str]:
    """What led to the answer, each as HTML."""
    for why in (node.note, node.error):
        if why:
            yield f'<span class="dim">{_text(why)}</span>'
    if len(node.tally) > 1 or node.votes > 1:
        counted = ", ".join(f"{_text(text)} × {weight:g}" for text, weight in node.tally)
        yield f'<span class="dim">votes:</span> {counted}'
    for said in node.checks:
        verdict = "passed" if said["ok"] else f"refused by {said.get('rule', '')}"
        yield f'<span class="dim">check {escape(verdict)}:</span> {_text(said["answer"])}'
    for comment in node.comments:
        yield f'<span class="dim">a person says:</span> {_text(comment)}'


def _call(row: Any) -> str:
    if row["kind"] == "tool":
        head = f"tool {row['model']}"
        asked = _text(row["messages"] or "")
    else:
        known = ", known before" if row["cached"] else f", {row['seconds']:.2f} s"
        tokens = f"{row['prompt_tokens']} + {row['completion_tokens']} tokens"
        head = f"{row['role']}, vote {row['vote']}, {row['model']}: {tokens}{known}"
        asked = "".join(
            f'<p><span class="dim">{escape(turn["role"])}</span> {_text(str(turn["content"]))}</p>'
            for turn in json.loads(row["messages"] or "[]")
        )
    replied = _text(row["error"]) if row["error"] else _shaded(row)
    return (
        f'<details class="call"><summary class="dim">{escape(_plain(head))}</summary>'
        f'{asked}<p><span class="dim">reply</span> {replied}</p></details>\n'
    )


def _shaded(row: Any) -> str:
    """A completion, its tokens shaded where their log-probabilities are known."""
    tokens = json.loads(row["logprobs"] or "[]")
    if not tokens:
        return _text(row["completion"] or "")
    parts = [_token(token, logprob) for token, logprob, _ in tokens[:CHARS]]
    return f'<span class="text">{"".join(parts)}</span>'


def _token(token: str, logprob: float) -> str:
    likely = math.exp(min(0.0, logprob))
    shade = min(SHADES, round(SHADES * (1 - likely)))
    text = escape(_plain(token))
    return f'<span class="s{shade}" title="{likely:.3f}">{text}</span>' if shade else text


def _text(text: str) -> str:
    return html_text(text, CHARS)


def _plain(text: str) -> str:
    return printable(text, LINES)
