"""What a run has spent, by model: calls, tokens and money; and how often each overseer was
asked."""

from collections.abc import Mapping
from typing import Any

from reflux.agents.budget import Price
from reflux.agents.overseers.step_forms import OVERSEER
from reflux.graphs.traces.database import Rows

CALLS = """
SELECT c.model, count(*) AS calls, sum(c.cached) AS cached,
  sum(iif(c.cached, 0, c.prompt_tokens)) AS prompt_tokens,
  sum(iif(c.cached, 0, c.completion_tokens)) AS completion_tokens
FROM calls c JOIN questions q ON q.id = c.question
WHERE q.run = ? AND c.kind = 'model' AND c.error IS NULL GROUP BY c.model
"""
CHAINS = """
SELECT (SELECT detail ->> 'model' FROM judgements j WHERE j.question = l.question
    AND j.path = l.path AND j.kind = 'chain_begun' ORDER BY j.id DESC LIMIT 1) AS model,
  sum(l.calls) AS calls, sum(l.tokens) AS tokens
FROM links l JOIN questions q ON q.id = l.question WHERE q.run = ? GROUP BY 1
"""
LEARNED = f"'%{OVERSEER}'"
OVERSEERS = f"""
SELECT coalesce(q.round, 0) AS round, c.model LIKE {LEARNED} AS learned,
  count(*) AS calls
FROM calls c JOIN questions q ON q.id = c.question
WHERE q.run = ? AND c.error IS NULL AND (
  c.kind = 'model' AND c.role LIKE 'overseer.ask%' AND c.role NOT LIKE '%.check%'
    AND (c.model LIKE {LEARNED} OR c.role != 'overseer.ask' OR NOT EXISTS (
      SELECT 1 FROM calls s WHERE s.question = c.question AND s.path = c.path
        AND s.kind = 'script' AND s.model LIKE {LEARNED}))
  OR c.kind = 'script' AND c.role = 'overseer' AND c.model NOT LIKE {LEARNED}
    AND c.model NOT LIKE 'model:%')
GROUP BY 1, 2 ORDER BY 1, 2
"""  # noqa: S608 - the part is a constant of ours
"""Steps of scripts and humans, and calls of models. What the agent combines for a learned overseer
is a call to neither."""


def overseer_calls(store: Rows, run: str) -> list[dict[str, int]]:
    """Calls to the `original` overseer and to the `learned` ones, by `round`; empty where none was
    learned."""
    rounds: dict[int, dict[str, int]] = {}
    for row in store.select(OVERSEERS, (run,)):
        counts = {"round": row["round"], "original": 0, "learned": 0}
        counts = rounds.setdefault(row["round"], counts)
        counts["learned" if row["learned"] else "original"] += row["calls"]
    return list(rounds.values()) if any(each["learned"] for each in rounds.values()) else []


def spending(store: Rows, run: str, prices: Mapping[str, Price]) -> list[dict[str, Any]]:
    """`model`, `calls`, `cached`, `tokens` and `cost` of each model of a run, the dearest first.

    Calls count those from the cache, tokens do not. The cost is None where the model has no price,
    or where links of chains keep the sum of their tokens alone and the price needs the parts.
    """
    models: dict[str, dict[str, Any]] = {}
    for row in store.select(CALLS, (run,)):
        prompt, completion = row["prompt_tokens"], row["completion_tokens"]
        price = prices.get(row["model"])
        models[row["model"]] = {
            "model": row["model"],
            "calls": row["calls"],
            "cached": row["cached"],
            "tokens": prompt + completion,
            "cost": price.of(prompt, completion) if price else None,
        }
    for row in store.select(CHAINS, (run,)):
        name, tokens = row["model"] or "unknown", row["tokens"] or 0
        free = {"model": name, "calls": 0, "cached": 0, "tokens": 0, "cost": 0.0}
        known = models.setdefault(name, free)
        price = prices.get(name)
        if price is not None and price.prompt == price.completion and known["cost"] is not None:
            known["cost"] += price.of(tokens, 0)
        else:
            known["cost"] = None
        known["calls"] += row["calls"] or 0
        known["tokens"] += tokens
    return sorted(models.values(), key=lambda each: (-(each["cost"] or 0), -each["tokens"]))


def tokens_of(store: Rows, question: str) -> tuple[int, int]:
    """Prompt and completion tokens of the tree with an id, cache hits included."""
    (row,) = store.select(
        "SELECT coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM calls"
        " WHERE question=? AND error IS NULL",
        (question,),
    )
    return row[0], row[1]
