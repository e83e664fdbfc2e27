"""X for programs that keep asking: opened at the first question, once for each event loop."""

import asyncio
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from reflux.agents.clients.endpoints import endpoint_from_env
from reflux.agents.errors import UsageError
from reflux.agents.types import ChatClient
from reflux.finetune.run_folder import OpenRun, RunFolder


class Agent:
    """Where X runs and where its calls are recorded.

    Connections, locks and flights belong to an event loop, so each loop that asks gets its own;
    those of a loop that has ended are dropped when the next is opened.
    """

    def __init__(
        self,
        client: ChatClient | BaseChatModel | None = None,
        run: Path | None = None,
        env: Mapping[str, str] | None = None,
        **endpoint: Any,
    ) -> None:
        """
        Args:
            client: where X runs, a chat model of LangChain among others; it is used on every loop
                that asks. None: the endpoint of `env`, or the embedded engine without one.
            run: run folder that holds students and trajectories; a temporary one where None.
            env: OPENAI_BASE_URL and OPENAI_API_KEY; the process's where None.
            endpoint: further options of `OpenAIClient`.
        """
        if isinstance(client, BaseChatModel):
            from reflux.agents.clients.langchain import LangChainClient

            client = LangChainClient(client)
        self._client = client
        self._env = env
        self._endpoint = endpoint
        if run is None:
            self._scratch = tempfile.TemporaryDirectory()
            run = Path(self._scratch.name)
        self.folder = RunFolder(run)
        self._opened: dict[asyncio.AbstractEventLoop, OpenRun] = {}

    def open(self) -> OpenRun:
        """The run as the running loop sees it.

        Raises:
            UsageError: the run or the endpoint cannot be what they are said to be.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._opened:
            for ended in [other for other in self._opened if other.is_closed()]:
                self._opened.pop(ended).store.close()
            client = self._client or endpoint_from_env(self._environment, **self._endpoint)
            self._opened[loop] = OpenRun(self.folder, client=client)
        return self._opened[loop]

    def name(self, model: str = "") -> str:
        """The name of X: the one given, else the run's promoted student, or `base`.

        Raises:
            UsageError: an endpoint, and no name of its model.
        """
        if model:
            return model
        if self._client is not None:
            return "base"
        if (endpoint := endpoint_from_env(self._environment)) is not None:
            raise UsageError(f"{endpoint.base_url} is set: name its model")
        return self.folder.current_model()

    @property
    def _environment(self) -> dict[str, str]:
        return dict(os.environ if self._env is None else self._env)

    async def close(self) -> None:
        """Close what the running loop has opened."""
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened is not None:
            await opened.__aexit__(None, None, None)
