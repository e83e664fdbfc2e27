"""A vLLM that we start and stop: `vllm serve` on this machine, with the base and room for students.

It ends with this process, however that ends: a small shell waits for its end, and for the end of a
pipe that only this process holds.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import httpx2

from reflux.agents.clients.connections import http_client
from reflux.agents.errors import MissingError, UsageError
from reflux.finetune.bases import Base
from reflux.finetune.engine.vllm_client import RANKS

START_SECONDS, STOP_SECONDS = 1800.0, 30.0
"""Time to load and compile a large base, and from the request to stop until the kill."""
POLL_SECONDS = 0.25
TETHER = (
    'exec 3<&0 </dev/null; "$@" 3<&- & child=$!; '
    "{ read -r _ <&3; kill -TERM $child; } 2>/dev/null & wait $child"
)
ERROR = re.compile(r"\b\w*(?:Error|Exception): .+")
LINES, CHARS = 3, 400
"""How much of its log a message quotes."""


class VllmServer:
    """One `vllm serve`, or none at the moment."""

    def __init__(self, command: bool | str, rank: int, log: Path) -> None:
        """
        Args:
            command: True for `vllm serve`; else a command line in its place.
            rank: the highest rank of a student.
            log: where its output goes.
        """
        self._command = ["vllm", "serve"] if command is True else shlex.split(str(command))
        self._rank, self._log = rank, log
        self._process: asyncio.subprocess.Process | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def ended(self) -> bool:
        """Whether it was started and ended by itself."""
        return self._process is not None and self._process.returncode is not None

    def epitaph(self) -> str:
        """How it ended, with the last words of its log."""
        assert self._process is not None  # noqa: S101 - `ended` was asked
        text = self._log.read_text(encoding="utf-8", errors="replace")
        errors = list(dict.fromkeys(ERROR.findall(text)))  # The cause, and what followed.
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        words = " / ".join(errors or lines[-LINES:])[-CHARS:] or "no words"
        return f"vLLM ended with status {self._process.returncode}: {words}; see {self._log}"

    async def start(self, base: Base) -> tuple[str, str]:
        """Serve a base, and wait until it answers; (URL, key).

        Raises:
            MissingError: there is no such command, or it ended or did not answer in time.
            UsageError: no `--max-lora-rank` is as high as the students' rank.
        """
        program = shutil.which(self._command[0])
        if program is None:
            raise MissingError(
                f"{self._command[0]} is not installed: pip install vllm in an environment of its "
                "own, and name its command in engine.start, or the url of a running one"
            )
        rank = next((rank for rank in RANKS if rank >= self._rank), None)
        if rank is None:
            raise UsageError(
                f"lora.r is {self._rank}, and vLLM takes at most {RANKS[-1]}: lower it"
            )
        folder, template = await asyncio.to_thread(_files_of, base)
        self._scratch = tempfile.TemporaryDirectory(prefix="reflux-vllm-")
        template_file = Path(self._scratch.name) / "chat_template.jinja"
        template_file.write_text(template, encoding="utf-8")
        port, key = free_port(), secrets.token_hex(16)
        options = {
            "--served-model-name": "base",
            "--host": "127.0.0.1",
            "--port": str(port),
            "--dtype": base.config.dtype,
            "--chat-template": str(template_file),
            "--generation-config": "vllm",
            "--max-lora-rank": str(rank),
            "--max-loras": "2",
        }
        flags = [text for option in options.items() for text in option]
        # vLLM takes the model right behind `serve`.
        at = self._command.index("serve") + 1 if "serve" in self._command else 1
        given = [program, *self._command[1:at], str(folder), *self._command[at:]]
        command = [*given, "--enable-lora", *flags]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", TETHER, "reflux-vllm", *command,
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C stops us first.
                env=os.environ | {
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
                    "VLLM_API_KEY": key,
                    "VLLM_NO_USAGE_STATS": "1",
                    "HF_HUB_OFFLINE": "1",
                },
            )  # fmt: skip
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._healthy(f"http://127.0.0.1:{port}/health")
        except TimeoutError:
            await self.stop()
            raise MissingError(
                f"vLLM did not answer within {START_SECONDS:g} s: see {self._log}"
            ) from None
        except BaseException:
            await self.stop()
            raise
        return f"http://127.0.0.1:{port}/v1", key

    async def _healthy(self, url: str) -> None:
        async with http_client(url) as client:
            while True:
                if self.ended:
                    raise MissingError(self.epitaph())
                with contextlib.suppress(httpx2.HTTPError):
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        """End it, and wait until its memory is free."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None  # noqa: S101 - a pipe was asked for
            process.stdin.close()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):  # Its own children, too.
                    os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _files_of(base: Base) -> tuple[Path, str]:
    """(transformers folder, the chat template that rows are rendered by)."""
    from transformers import AutoTokenizer

    from reflux.finetune.chat_template import fit_template

    tokenizer = AutoTokenizer.from_pretrained(
        base.folder, local_files_only=True, trust_remote_code=False
    )
    fit_template(tokenizer, base.config)
    return base.folder, tokenizer.chat_template
