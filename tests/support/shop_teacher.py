"""A scripted model that solves the tasks of `examples/shop`: a stand-in for a strong one.

It reads what a model reads, the task and the results of its tools, and replies with the next call
or the answer. It serves OpenAI's chat protocol by `serving(respond)`. Its token counts are words.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.endpoint_says import whole
from tests.support.endpoint_server import Asked, Reply

ORDER = re.compile(r"\b[A-Z]\d+\b")
CITIES = ("Lyon", "Porto", "Ghent", "Turin", "Graz", "Cadiz", "Malmo", "Brno")
PRICES = {
    "kettle": 19, "toaster": 34, "mixer": 48, "lamp": 27, "clock": 15, "chair": 56, "rug": 73,
    "kite": 12, "drum": 91, "vase": 38,
}  # fmt: skip
Turn = Mapping[str, Any]


def respond(asked: Asked) -> Reply:
    """The next turn of a conversation."""
    message = next_turn(asked.body["messages"])
    calls = message.get("tool_calls")
    words = len(json.dumps(calls or message["content"]).split())
    read = sum(len(json.dumps(turn).split()) for turn in asked.body["messages"])
    usage = {"prompt_tokens": read, "completion_tokens": words, "total_tokens": read + words}
    finish = "tool_calls" if calls else "stop"
    more = {"id": f"chatcmpl-{asked.number}", "created": 1, "model": asked.body["model"]}
    return Reply(whole(message, finish, **more, usage=usage))


def next_turn(messages: Sequence[Turn]) -> dict[str, Any]:
    """The call that is missing, or the answer."""
    task = next(str(turn["content"]) for turn in messages if turn["role"] == "user")
    known = results(messages)
    found: list[dict[str, Any]] = []
    for order in ORDER.findall(task):
        if (text := known.get(("get_order", order))) is None:
            return call("get_order", order=order)
        found.append(json.loads(text))
    if task.startswith("Where"):
        return says(f"Order {ORDER.findall(task)[0]} is in {found[0]['city']}.")
    prices: list[str] = []
    for order in found:
        if (text := known.get(("get_price", order["product"]))) is None:
            return call("get_price", product=order["product"])
        prices.append(f"{order['pieces']} * {text}")
    expression = " + ".join(prices)
    if (total := known.get(("calculate", expression))) is None:
        return call("calculate", expression=expression)
    return says(f"That is {total} euros.")


def results(messages: Sequence[Turn]) -> dict[tuple[str, str], str]:
    """What the tools said, by name and argument."""
    calls = {
        each["id"]: (each["function"]["name"], *json.loads(each["function"]["arguments"]).values())
        for turn in messages
        for each in turn.get("tool_calls") or ()
    }
    return {
        calls[turn["tool_call_id"]]: turn["content"] for turn in messages if turn["role"] == "tool"
    }


def call(name: str, **arguments: str) -> dict[str, Any]:
    """A turn that calls a tool; equal calls have equal ids."""
    text = json.dumps(arguments)
    function = {"name": name, "arguments": text}
    number = int.from_bytes(text.encode()) % 10**9
    return {"content": None, "tool_calls": [{"id": f"call_{number}", "type": "function",
                                             "function": function}]}  # fmt: skip


def says(text: str) -> dict[str, Any]:
    return {"content": text}


def make_shop(orders: int, seed: int) -> dict[str, Any]:
    """A shop of so many orders."""
    draw = random.Random(seed)
    names = draw.sample([f"{letter}{number}" for letter in "ABCDEFGHJK" for number in
                         range(10, 10 + max(90, orders // 9))], orders)  # fmt: skip
    made = {
        name: {
            "product": draw.choice(list(PRICES)),
            "pieces": draw.randint(2, 9),
            "city": draw.choice(CITIES),
        }
        for name in names
    }
    return {"prices": PRICES, "orders": made}


def make_tasks(shop: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, str]]:
    """A task for each order, of three kinds in turns; those about two orders ask for its next."""
    tasks: list[dict[str, str]] = []
    costs = {n: o["pieces"] * shop["prices"][o["product"]] for n, o in shop["orders"].items()}
    for index, name in enumerate(names):
        other = names[(index + 1) % len(names)]
        tasks.append((
            {"task": f"Where is order {name}?", "answer": shop["orders"][name]["city"]},
            {"task": f"What does order {name} cost?", "answer": str(costs[name])},
            {"task": f"What do orders {name} and {other} cost together?",
             "answer": str(costs[name] + costs[other])},
        )[index % 3])  # fmt: skip
    return tasks


def solves(answer: str, wanted: str) -> bool:
    """The answer holds what was wanted, and no other number."""
    numbers = re.findall(r"(?<![A-Z\d])\d+", answer)
    return numbers == [wanted] if wanted.isdigit() else wanted in answer
