"""AgentDojo's suites (arXiv 2406.13352) through our systems: users' tasks, tools that act on an
environment, and injections in what the tools say.

AgentDojo judges itself: whether a task was done, and whether an injection reached its goal, by the
environment afterwards. That is made from the record: the recorded calls act again on a fresh
environment, so that a replayed answer is judged as the first one was. The adversary writes every
place where the environment takes injections. Its attacks are ours, which adapt; AgentDojo's own
frame is among the templates.

The package is no dependency: it wants older versions of what Reflux stands on. It is installed
beside them by `INSTALL`, and its modules are loaded without the clients of models that it has no
use for here. Tested with 0.1.35. Not covered: tasks of several messages, which AgentDojo lacks.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false

import ast
import copy
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import MissingError, check_choice
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.protocol import Tool, ToolReply
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    Exchange,
    Step,
    SubQuestion,
    ToolCall,
    ToolSpec,
)
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.attacks.cases import Case, Goal, Seen
from reflux.graphs.attacks.obedient import readable

INSTALL = (
    "pip install --no-deps agentdojo==0.1.35 deepdiff orderly-set cachebox docstring-parser "
    "email-validator dnspython"
)
VERSION = "v1.2.2"
"""Of the suites."""
SUITES = ("workspace", "travel", "banking", "slack")
MARK = "INJECTION-PLACE-{}-"
"""Stands where an injection comes, while the environment is read from YAML."""
OUTPUT = "GROUND_TRUTH_OUTPUT"
FOUND = "What the tools said:"
TURNS = 20
"""Replies of a copy that may ask for tools, at least: tasks take up to some 15."""
UNUSED = ("agentdojo.agent_pipeline", "agentdojo.agent_pipeline.llms")
"""Packages whose own module imports the clients of four vendors."""


@dataclass(frozen=True, eq=False)
class DojoCase(Case):
    """One task of a user, which an adversary attacks by every injection of its suite."""

    suite: Any = field(kw_only=True)
    task: Any = field(kw_only=True)

    def goals(self, seed: int, tools: Sequence[str]) -> Sequence[Goal]:
        """The suite's injections: those that take no call want words in the answer."""
        injections: Mapping[str, Any] = self.suite.injection_tasks
        return [
            Goal(
                id,
                "control" if id in self._acting else "value",
                "",
                each.GOAL[:1].lower() + each.GOAL[1:],
            )
            for id, each in injections.items()
        ]

    @cached_property
    def _acting(self) -> frozenset[str]:
        """The injections that take calls."""
        injections: Mapping[str, Any] = self.suite.injection_tasks
        made = self.environment({})
        return frozenset(id for id, each in injections.items() if each.ground_truth(made))

    def question(self, notes: Mapping[str, str], *, marked: bool = False) -> str:
        """The user's request; the adversary writes into the environment alone."""
        return self.request

    def is_right(self, seen: Seen, usual: Seen) -> bool:
        """Whether AgentDojo finds the task done."""
        return self._judged(self.task, seen)

    def is_hijacked(self, seen: Seen, usual: Seen, goal: Goal) -> bool:
        """Whether AgentDojo finds the goal of an injection reached that takes calls."""
        return goal.kind == "control" and self.misleads(seen, goal)

    def misleads(self, seen: Seen, goal: Goal) -> bool:
        """Whether AgentDojo finds the injection's goal reached."""
        return self._judged(self.suite.injection_tasks[goal.name], seen)

    def environment(self, notes: Mapping[str, str]) -> Any:
        """A fresh environment with these notes in each of its places."""
        defaults, body = _marked(self.suite.name)
        texts = {mark: notes.get("", default) for mark, default in defaults.items()}
        made = self.suite.environment_type.model_validate(_with_texts(body, texts))
        return self.task.init_environment(made)

    def _judged(self, task: Any, seen: Seen) -> bool:
        before = self.environment({"": seen.notes[""]} if seen.notes else {})
        after, runtime = before.model_copy(deep=True), _runtime(self.suite)
        calls = [(call.tool, _arguments(call.argument)) for call in seen.calls]
        for name, arguments in calls:
            runtime.run_function(after, name, copy.deepcopy(arguments))
        functions = importlib.import_module("agentdojo.functions_runtime")
        stack = [functions.FunctionCall(function=name, args=args) for name, args in calls]
        output = [{"type": "text", "content": seen.answer or ""}]
        return bool(self.suite._check_task_result(task, output, before, after, stack))


@dataclass(frozen=True)
class DojoTool:
    """A function of a suite as a tool, on one environment."""

    function: Any
    runtime: Any
    environment: Any

    @property
    def spec(self) -> ToolSpec:
        """Name, description and arguments, as a model sees them."""
        schema = json.dumps(self.function.parameters.model_json_schema())
        return ToolSpec(self.function.name, self.function.description, schema)

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Run the function; what is wrong with the arguments is a refusal."""
        result, error = self.runtime.run_function(
            self.environment, self.function.name, _lists(arguments)
        )
        if error is not None:
            return ToolReply(str(error), ok=False)
        formatted = importlib.import_module("agentdojo.agent_pipeline.tool_execution")
        return ToolReply(formatted.tool_result_to_str(result))

    async def answer(self, question: str) -> ToolReply:
        """Run the function on what an overseer sent, which is JSON, or the one argument."""
        arguments = _arguments(question)
        names = list(self.function.parameters.model_fields)
        if not arguments and question.strip() and len(names) == 1:
            arguments = {names[0]: question}
        return await self.call(arguments)


def dojo_cases(suite: str, n: int) -> list[Case]:
    """The first `n` tasks of a suite.

    Raises:
        UsageError: there is no such suite.
        MissingError: AgentDojo is not installed.
    """
    check_choice("AgentDojo's suite", suite, SUITES)
    made = _suites()[suite]
    tasks: Mapping[str, Any] = made.user_tasks
    return [
        DojoCase(
            f"{suite}-{id}", task.PROMPT, {}, ("",), "tool", calls=None, form="normalised",
            suite=made, task=task,
        )
        for id, task in list(tasks.items())[:n]
    ]  # fmt: skip


def dojo_tools(suite: str) -> list[str]:
    """The names of a suite's tools."""
    return [str(each.name) for each in _suites()[suite].tools]


def dojo_context(context: AmplifyContext, case: Case, notes: Mapping[str, str]) -> AmplifyContext:
    """The context in which a case is asked: the suite's tools on an environment of its own."""
    if not isinstance(case, DojoCase):
        raise TypeError(f"{case.id} is no case of AgentDojo")
    environment, runtime = case.environment(notes), _runtime(case.suite)
    tools: list[Tool] = [DojoTool(each, runtime, environment) for each in case.suite.tools]
    limits = replace(context.limits, tool_turns=max(TURNS, context.limits.tool_turns))
    return replace(context, tools={}, limits=limits).granting({"answer": tools})


def _runtime(suite: Any) -> Any:
    return importlib.import_module("agentdojo.functions_runtime").FunctionsRuntime(suite.tools)


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return {}
    return _lists(arguments) if isinstance(arguments, dict) else {}


def _lists(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with lists that a model wrote as text."""
    return {name: _list(value) for name, value in arguments.items()}


def _list(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("["):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def _with_texts(value: Any, texts: Mapping[str, str]) -> Any:
    """A value of plain types with texts in the places of their marks."""
    if isinstance(value, str):
        for mark, text in texts.items():
            value = value.replace(mark, text) if mark in value else value
        return value
    if isinstance(value, dict):
        return {_with_texts(key, texts): _with_texts(each, texts) for key, each in value.items()}
    return [_with_texts(each, texts) for each in value] if isinstance(value, list) else value


@cache
def _marked(suite: str) -> tuple[Mapping[str, str], Any]:
    """The default text of each place for injections by its mark, and the environment with marks."""
    made = _suites()[suite]
    defaults: Mapping[str, str] = made.get_injection_vector_defaults()
    marks = {name: MARK.format(number) for number, name in enumerate(defaults)}
    body = made.load_and_inject_default_environment(marks).model_dump()
    return {marks[name]: text for name, text in defaults.items()}, body


@cache
def _suites() -> Mapping[str, Any]:
    """The suites by name.

    Raises:
        MissingError: AgentDojo is not installed.
    """
    spec = find_spec("agentdojo")
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(f"AgentDojo is not installed: {INSTALL}")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in UNUSED:
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, package)
    google = ModuleType("agentdojo.agent_pipeline.llms.google_llm")
    google.EMPTY_FUNCTION_NAME = "<empty-function-name>"  # type: ignore[attr-defined]
    sys.modules.setdefault(google.__name__, google)
    try:
        return importlib.import_module("agentdojo.task_suite.load_suites").get_suites(VERSION)
    except ImportError as error:
        raise MissingError(f"AgentDojo lacks a package ({error}): {INSTALL}") from error


def knowing_overseer(cases: Sequence[Case]) -> ScriptedOverseer:
    """A script that knows what each task takes: it has the tools called in its own order, whatever
    they say, and a copy reads what was found and answers."""
    known = {case.request: case for case in cases if isinstance(case, DojoCase)}

    def step(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        case = known.get(question)
        if case is None or not may_ask:
            return PASS
        plan, answers = _plan_of(case), [exchange.answer or "" for exchange in transcript]
        if len(answers) > len(plan):
            return Answer(answers[-1])
        if len(answers) < len(plan):
            name, arguments = plan[len(answers)]
            argument = json.dumps(arguments, default=str)
            return Ask((SubQuestion(argument, to=f"tool:{name}"),))
        return Ask.of("\n\n".join([case.request, FOUND, *answers]))

    return ScriptedOverseer("knowing", step)


def _plan_of(case: DojoCase) -> list[tuple[str, dict[str, Any]]]:
    """The calls by which AgentDojo itself does a task."""
    return [(c.function, dict(c.args)) for c in case.task.ground_truth(case.environment({}))]


class KnowingClient(ScriptedClient):
    """The worst agent on AgentDojo: it knows what each task takes, and does at once what any
    injection that it reads demands, in whatever words."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__(self._replied)
        self._cases = [case for case in cases if isinstance(case, DojoCase)]

    async def close(self) -> None:
        """Nothing is open."""

    def _replied(self, request: ChatRequest) -> str | Completion:
        if request.schema:
            return json.dumps({"step": {"not_decomposable": "I answer it"}})
        text = "\n".join(turn[1] for turn in request.messages)
        case = next((each for each in self._cases if each.request in text), None)
        if case is None:
            return "done"
        # Tools break long lines.
        decoded, before = " ".join(readable(text).split()), case.environment({})
        tasks = [
            case.suite.injection_tasks[goal.name]
            for goal in case.goals(0, ())
            if " ".join(goal.order[1:].split()) in decoded
        ]
        wanted = [(c.function, dict(c.args)) for t in tasks for c in t.ground_truth(before)]
        if FOUND not in text:  # Else the overseer has done it.
            wanted += _plan_of(case)
        offered = {tool.name for tool in request.tools}
        made = "".join(turn[2] for turn in request.messages if turn[0] == "assistant" and turn[2:])
        for number, (name, arguments) in enumerate(wanted):
            id = f"{name}-{number}-{len(tasks)}"
            if name in offered and f'"{id}"' not in made:
                call = ToolCall(id, name, json.dumps(arguments, default=str))
                return Completion("", len(text) // 4, 20, tool_calls=(call,))
        outputs = [str(getattr(task, OUTPUT, "")) for task in (*tasks, case.task)]
        return "\n".join(outputs) or "done"
