"""An agent on PydanticAI.

pip install "pydantic-ai-slim[openai]"
python pydantic_agent.py tasks.jsonl
"""

import json
import sys
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.usage import UsageLimits
from shop import INSTRUCTIONS, TOOLS

agent = Agent(
    "openai-chat:gpt-4.1",
    instructions=INSTRUCTIONS,
    tools=list(TOOLS.values()),
    model_settings={"temperature": 0, "max_tokens": 96},
)
limits = UsageLimits(request_limit=8)

for line in Path(sys.argv[1]).read_text().splitlines():
    try:
        found = agent.run_sync(json.loads(line)["task"], usage_limits=limits).output
    except AgentRunError as error:
        found = f"error: {error}"
    print(json.dumps({"answer": found}), flush=True)
