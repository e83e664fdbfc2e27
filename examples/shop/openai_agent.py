"""An agent on the OpenAI SDK: a loop of model calls and tool calls.

python openai_agent.py tasks.jsonl
"""

import json
import sys
from pathlib import Path

from openai import OpenAI, OpenAIError
from shop import INSTRUCTIONS, TOOLS

client = OpenAI()
MAX_TURNS = 8


def parameter(name: str) -> dict:
    """The schema of a tool's only argument."""
    return {
        "type": "object",
        "properties": {name: {"type": "string"}},
        "required": [name],
    }


SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": function.__doc__.split("\n")[0],
            "parameters": parameter(next(iter(function.__annotations__))),
        },
    }
    for name, function in TOOLS.items()
]


def answer(task: str) -> str:
    messages = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": task},
    ]
    for _ in range(MAX_TURNS):
        completion = client.chat.completions.create(
            model="gpt-4.1", messages=messages, tools=SCHEMAS, temperature=0, max_tokens=96
        )
        message = completion.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message)
        for call in message.tool_calls:
            try:
                result = TOOLS[call.function.name](**json.loads(call.function.arguments))
            except (KeyError, TypeError, ValueError) as error:
                result = f"This call is wrong: {error}"
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "I did not find out."


for line in Path(sys.argv[1]).read_text().splitlines():
    try:
        found = answer(json.loads(line)["task"])
    except OpenAIError as error:
        found = f"error: {error}"
    print(json.dumps({"answer": found}), flush=True)
