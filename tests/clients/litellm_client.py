"""LiteLLM against a server: python litellm_client.py URL, prints what came back as JSON."""

import json
import sys
from typing import Any

import litellm

URL = sys.argv[1]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}


def ask(model: str, text: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return litellm.completion(
        model=f"openai/{model}", messages=messages, api_base=URL, api_key="none",
        max_retries=0, num_retries=0, **options,
    )  # fmt: skip


found: dict[str, Any] = {}
whole = ask("x", "one two", temperature=0.5, top_p=0.9, user="ann", seed=3, stop=["#"], n=1)
found["text"] = whole.choices[0].message.content
found["reasoning"] = whole.choices[0].message.reasoning_content
found["tokens"] = whole.usage.total_tokens
chunks = list(ask("x", "x y z", stream=True, stream_options={"include_usage": True}))
found["streamed"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
called = ask("x", "Paris?", tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False)
message = called.choices[0].message
found["called"] = message.tool_calls[0].function.name
result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
talk = [{"role": "user", "content": "Paris?"}, message.model_dump(), result]
found["result"] = (
    litellm.completion(model="openai/x", messages=talk, api_base=URL, api_key="none")
    .choices[0]
    .message.content
)
found["object"] = json.loads(ask("json", "Peru?", response_format=FORM).choices[0].message.content)
response = litellm.responses(model="openai/x", input="three", api_base=URL, api_key="none")
found["response"] = response.output[-1].content[0].text
found["tree"] = ask("amplified", "one and two").choices[0].message.content
try:
    ask("amplified", "x", tools=[WEATHER])
except litellm.BadRequestError as error:
    found["refused"] = str(error)
print(json.dumps(found))
