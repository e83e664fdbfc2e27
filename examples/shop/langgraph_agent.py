"""An agent on LangGraph: a graph of two nodes, the model and its tools.

python langgraph_agent.py tasks.jsonl
"""

import json
import sys
from pathlib import Path

from langchain_core.messages import SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from openai import OpenAIError
from shop import INSTRUCTIONS, TOOLS

tools = [tool(function, parse_docstring=True) for function in TOOLS.values()]
model = ChatOpenAI(model="gpt-4.1", temperature=0, max_tokens=96).bind_tools(tools)


def call_model(state: MessagesState) -> dict:
    return {"messages": [model.invoke([SystemMessage(INSTRUCTIONS), *state["messages"]])]}


graph = StateGraph(MessagesState)
graph.add_node("model", call_model)
graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
graph.add_edge(START, "model")
graph.add_conditional_edges("model", tools_condition)
graph.add_edge("tools", "model")
agent = graph.compile()

for line in Path(sys.argv[1]).read_text().splitlines():
    question = {"messages": [("user", json.loads(line)["task"])]}
    try:
        found = agent.invoke(question, {"recursion_limit": 16})["messages"][-1].text
    except (GraphRecursionError, OpenAIError) as error:
        found = f"error: {error}"
    print(json.dumps({"answer": found}), flush=True)
