"""A model by its name: which client answers for it, and under which name the call log holds it.

base                untrained model
student             promoted student; there is none before the first promotion
STUDENT             any student of the run, by its id
ENDPOINT            model of an endpoint that a config or the settings name
any name            model at OPENAI_BASE_URL, if that is set, as vLLM serves `base` and students
endpoint:MODEL      model at OPENAI_BASE_URL
endpoint:MODEL@URL  model at another address
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel

from reflux.agents.clients.connections import is_loopback
from reflux.agents.clients.endpoints import (
    EXTRA_BODY,
    KEY,
    THINKING_VARIABLE,
    URL,
    CachedClient,
    Endpoint,
    Endpoints,
    endpoint_from_env,
    environment,
    fixed_environment,
)
from reflux.agents.clients.langchain import LangChainClient
from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.errors import MissingError, UsageError
from reflux.agents.redaction import redact
from reflux.agents.types import ChatClient
from reflux.finetune.configs.run import RoundsConfig
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.traces.recorded_client import RecordedClient

if TYPE_CHECKING:
    from reflux.agents.clients.openai import OpenAIClient

BASE, STUDENT, ENDPOINT = "base", "student", "endpoint:"
UNSAID = ("", "auto")
"""Values of a variable that say nothing."""
INTERACTIVE = EngineConfig(parallel=4, context=8192)
"""llama.cpp for single questions: a conversation and the overseer's examples fit the context."""
AT_URL = re.compile(r"(.*?)@(\w+://.*)", re.DOTALL)
"""MODEL@URL."""
SMALL = (
    "The model here is the small default one, SmolLM2-135M-Instruct (135 million parameters). It "
    "knows simple facts, such as capitals. Most sums and comparisons are beyond it, and so is "
    "dividing a question well: its trees show how amplification works, not how good answers get."
)
NO_ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType({})


def endpoint(concurrency: int | None = None) -> "OpenAIClient | None":
    """The endpoint at OPENAI_BASE_URL; None if that is not set."""
    limit: dict[str, Any] = {} if concurrency is None else {"concurrency": concurrency}
    return endpoint_from_env(environment(), **limit)


def about_base(folder: RunFolder) -> str:
    """What can be expected of the base, if it is the small default one; else nothing."""
    try:
        return SMALL if folder.has_default_base else ""
    except UsageError:  # Another version wrote the config.
        return ""


def model_named(folder: RunFolder, name: str, endpoints: Collection[str] = ()) -> str:
    """The name under which the call log holds a model of a run folder or of named endpoints.

    Raises:
        UsageError: no model has the name, or its student is damaged.
    """
    if name == BASE or name in endpoints:
        return name
    if name == STUDENT and (promoted := folder.registry.current()) is not None:
        return promoted.id
    return _agent(folder, name)


def _agent(folder: RunFolder, name: str) -> str:
    """The id of a student that answers questions.

    Raises:
        UsageError: as `Registry.get`, or it has another role.
    """
    student = folder.registry.get(name)
    if student.role == "overseer":
        raise UsageError(
            f"{student.id} is an overseer, which divides questions and answers none: name it with "
            "--overseer, and another --model"
        )
    if student.role != "agent":
        raise UsageError(
            f"{student.id} has the role {student.role} and answers no question: a run gives it its "
            f"part by `roles: [{student.role}]`; name another --model"
        )
    return student.id


def default_model(folder: RunFolder, address: str | None) -> str:
    """The promoted student, or the base; at an endpoint the user has to name the model.

    Raises:
        UsageError: there is an endpoint's address.
    """
    if address is not None:
        raise UsageError(f"{address} is set: name its model with --model")
    return folder.current_model()


def open_run(
    folder: RunFolder,
    model: str | None,
    config: RoundsConfig | None = None,
    endpoints: Mapping[str, Endpoint] = NO_ENDPOINTS,
    concurrency: int | None = None,
    **cache: Any,
) -> tuple[OpenRun, str]:
    """The folder with the agent's client, and the agent's name.

    The client is the endpoint of the environment, else the engine of `config`, else llama.cpp,
    which starts at once, if the base is a GGUF.

    Args:
        endpoints: answer for the models that they name; the caller closes them.
        concurrency: maximum concurrent requests to the endpoint.
        cache: `warm` and `max_replies` of `OpenRun`.

    Raises:
        UsageError: there is an endpoint, and no name of its model; or none, and no student of the
            name.
    """
    client = endpoint(concurrency)
    among = partial(Endpoints, endpoints) if endpoints else None
    if model is not None and model.startswith(ENDPOINT) and model not in endpoints:
        model, client = endpoint_at(model)
    name = model or default_model(folder, client and client.base_url)
    if client is None and name not in endpoints:
        if name not in (BASE, STUDENT):
            check_student(folder, name)
        name = model_named(folder, name)
    if client is not None:
        return OpenRun(folder, client=client, wrap=among, **cache), name
    # llama.cpp runs GGUF files alone; None is the engine of the others.
    alone = INTERACTIVE if folder.base.gguf is not None else None
    engine = config.engine_settings if config else alone
    llama_cpp = config.llama_cpp if config else None
    return OpenRun(folder, engine, wrap=among, llama_cpp=llama_cpp, **cache), name


def open_rounds(folder: RunFolder, config: RoundsConfig) -> OpenRun:
    """The folder with the engine and the endpoints of its rounds."""
    return OpenRun(
        folder, config.engine_settings, llama_cpp=config.llama_cpp, endpoints=config.endpoints
    )


def is_own(folder: RunFolder, name: str | None) -> bool:
    """True for the names that mean a model of the run folder where no endpoint serves them."""
    return name in (BASE, STUDENT) or name in folder.registry.ids()


def check_student(folder: RunFolder, name: str) -> None:
    """Check that a run has a student.

    Raises:
        UsageError: it has none of the name; the message says how to name an endpoint's model.
    """
    try:
        _agent(folder, name)
    except UsageError as error:
        if name in folder.registry.ids():
            raise
        raise UsageError(f"{error}; {endpoint_hint(name)}") from error


def endpoint_hint(name: str) -> str:
    """How to name a model of an endpoint where OPENAI_BASE_URL is not set."""
    env = environment()
    key = f" (only {KEY} is set)" if env.get(KEY) and not env.get(URL) else ""
    return (
        f"for a model of an endpoint set {URL}{key}, or write {ENDPOINT}{name}@URL, such as "
        f"{ENDPOINT}{name}@http://localhost:11434/v1"
    )


def endpoint_at(key: str, **options: Any) -> "tuple[str, OpenAIClient]":
    """The model and the client of `endpoint:MODEL` or `endpoint:MODEL@URL`.

    Args:
        options: further options of `OpenAIClient`.

    Raises:
        UsageError: the key names no model or no address.
        MissingError: it names no address, and OPENAI_BASE_URL is not set.
    """
    model, url = key.removeprefix(ENDPOINT), environment().get(URL, "")
    if (match := AT_URL.fullmatch(model)) is not None:
        model, url = match[1], match[2]
    if not model:
        raise UsageError(f"{key!r} names no model; write endpoint:MODEL or endpoint:MODEL@URL")
    named = (f"the URL of {ENDPOINT}{model}" if match else URL, KEY)
    client = endpoint_from_env({**environment(), URL: url}, named, **options)
    if client is None:
        raise MissingError(
            f"{key} is asked at OPENAI_BASE_URL, which is not set: set it, or write {key}@URL"
        )
    return model, client


def endpoint_model(key: str, run: OpenRun) -> tuple[str, RecordedClient, "OpenAIClient | None"]:
    """The model of `endpoint:MODEL` or `endpoint:MODEL@URL`, its recorded client, and the client
    that the caller has to close.

    Raises:
        UsageError: the key names no model or no address.
        MissingError: it names no address, and OPENAI_BASE_URL is not set.
    """
    model, client = endpoint_at(key)
    if "@" not in key.removeprefix(ENDPOINT + model):
        return model, run.recorded_client, None
    return model, RecordedClient(CachedClient(client), run.store), client


def asked_at(model: str | None) -> dict[str, str]:
    """The variables of the endpoint that answers for a model, for the record: no key, and no URL
    with a password."""
    env, name = environment(), model or ""
    match = AT_URL.fullmatch(name) if name.startswith(ENDPOINT) else None
    url = match[2] if match else env.get(URL, "")
    if not url:
        return {}
    found = {URL: url, **{key: env.get(key, "") for key in (THINKING_VARIABLE, EXTRA_BODY)}}
    has_user = re.search(r"//[^/@]*@", url) is not None
    return {
        key: value
        for key, value in found.items()
        if value not in UNSAID and value == redact(value) and not (key == URL and has_user)
    }


@contextmanager
def as_asked(options: AskOptions | None) -> Generator[None]:
    """In this block models are asked where and how a recorded question was, as far as the
    environment says nothing else.

    Raises:
        UsageError: that is another machine, and a key of the environment may not be meant for it.
    """
    env, recorded = environment(), options.endpoint if options else {}
    unset = {key: value for key, value in recorded.items() if env.get(key, "") in UNSAID}
    if URL in unset and not is_loopback(unset[URL]):
        raise UsageError(f"it was asked at {unset[URL]}: set {URL} to that, and {KEY} to its key")
    with fixed_environment(unset):
        yield


class Agent:
    """Where the agent of a program runs and where its calls are recorded.

    It opens at the first question, once for each event loop: connections, locks and flights belong
    to a loop. Those of a loop that has ended are dropped when the next one opens.
    """

    def __init__(
        self,
        client: ChatClient | BaseChatModel | None = None,
        run: Path | None = None,
        env: Mapping[str, str] | None = None,
        **endpoint_options: Any,
    ) -> None:
        """
        Args:
            client: where the agent runs, on every loop; a chat model of LangChain is one, too.
                None: the endpoint of `env`, or the embedded engine without one.
            run: run folder with students and trajectories; None for a temporary one.
            env: OPENAI_BASE_URL and OPENAI_API_KEY; None for the environment of the process.
            endpoint_options: further options of `OpenAIClient`.
        """
        self._client = LangChainClient(client) if isinstance(client, BaseChatModel) else client
        self._env = env
        self._endpoint_options = endpoint_options
        if run is None:
            self._temporary = tempfile.TemporaryDirectory()
            run = Path(self._temporary.name)
        self.folder = RunFolder(run)
        self._opened: dict[asyncio.AbstractEventLoop, OpenRun] = {}

    def open(self) -> OpenRun:
        """The run folder and its client, for the running loop.

        Raises:
            UsageError: the run folder or the endpoint's address is not valid.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            for ended in [other for other in self._opened if other.is_closed()]:
                self._opened.pop(ended).store.close()
            client = self._client or self._endpoint(**self._endpoint_options)
            self._opened[loop] = OpenRun(self.folder, client=client)
        return self._opened[loop]

    def name(self, model: str = "") -> str:
        """The name of the agent: `model`, else the promoted student, or `base`.

        Raises:
            UsageError: there is an endpoint, and no name of its model.
        """
        if model or self._client is not None:
            return model or BASE
        client = self._endpoint()
        return default_model(self.folder, client and client.base_url)

    def _endpoint(self, **options: Any) -> "OpenAIClient | None":
        env = os.environ if self._env is None else self._env
        return endpoint_from_env(dict(env), **options)

    async def close(self) -> None:
        run = self._opened.pop(asyncio.get_running_loop(), None)
        if run is not None:
            await run.__aexit__(None, None, None)
