"""openai-agents against a server: python agents_client.py URL, prints what came back as JSON."""

import asyncio
import json
import sys
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)


class City(BaseModel):
    city: str


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


async def main(url: str) -> dict[str, Any]:
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    found: dict[str, Any] = {}
    for name, kind in (("responses", OpenAIResponsesModel), ("chat", OpenAIChatCompletionsModel)):
        got = found[name] = {}
        settings = ModelSettings(temperature=0.5, top_p=0.9, max_tokens=50)

        def agent(model: str, kind: Any = kind, settings: Any = settings, **options: Any) -> Any:
            told = kind(model=model, openai_client=client)
            return Agent(
                "a", instructions="Be brief.", model=told, model_settings=settings, **options
            )

        got["text"] = (await Runner.run(agent("x"), f"one two {name}")).final_output
        ran = await Runner.run(agent("x", tools=[weather]), f"Paris {name}?")
        got["tools"] = ran.final_output
        typed = await Runner.run(agent("json", output_type=City), f"Peru {name}?")
        got["typed"] = typed.final_output.model_dump()
        streamed = Runner.run_streamed(agent("x", tools=[weather]), f"Rome {name}?")
        got["events"] = sorted({event.type async for event in streamed.stream_events()})
        got["streamed"] = streamed.final_output
    first = await Runner.run(
        Agent("a", model=OpenAIResponsesModel(model="x", openai_client=client)), "one"
    )
    second = await Runner.run(
        Agent("a", model=OpenAIResponsesModel(model="x", openai_client=client)),
        "two",
        previous_response_id=first.last_response_id,
    )
    found["next"] = second.final_output
    tree = Agent("t", model=OpenAIResponsesModel(model="amplified", openai_client=client))
    found["tree"] = (await Runner.run(tree, "one and two")).final_output
    return found


print(json.dumps(asyncio.run(main(sys.argv[1]))))
