"""LangGraph graphs as its documentation builds them, on a chat model that calls a tool."""

from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
DONE = {"model_name": "fake-1", "finish_reason": "stop"}


class Model(BaseChatModel):
    """Calls its first tool once after each question, and then tells what the tool said."""

    model_name: str = "fake-1"
    fails: bool = False

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model_name}

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        listed = [convert_to_openai_tool(each) for each in tools]
        return cast(Any, self).bind(tools=listed, **options)

    def _reply(self, messages: list[BaseMessage], tools: Any) -> AIMessage:
        if self.fails:
            raise ValueError("the key sk-abcdefghijklmnopqrstuvwx is refused")
        if tools and not isinstance(messages[-1], HumanMessage):
            return AIMessage(f"it is {messages[-1].text}", response_metadata=DONE)
        if tools:
            calls: Any = [{"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}]
            return AIMessage("", tool_calls=calls, usage_metadata=cast(Any, USAGE))
        usage = cast(Any, USAGE)
        return AIMessage(f"re: {messages[-1].text}", usage_metadata=usage, response_metadata=DONE)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        message = self._reply(messages, kwargs.get("tools"))
        return ChatResult(generations=[ChatGeneration(message=message)])


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def agent(model: Model | None = None) -> Any:
    """An agent with a tool."""
    bound = (model or Model()).bind_tools([add])
    graph: Any = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile()


def nested_graph(branches: int = 3) -> Any:
    """A plan, and then an agent for each part, in parallel."""
    graph: Any = StateGraph(MessagesState)
    model = Model()
    graph.add_node("plan", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("worker", agent())
    graph.add_edge(START, "plan")
    sends = [Send("worker", asking(f"part {index}")) for index in range(branches)]
    graph.add_conditional_edges("plan", lambda state: sends, ["worker"])
    return graph.compile()


def asking(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}
