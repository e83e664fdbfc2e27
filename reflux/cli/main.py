"""The `reflux` command. Exit codes: 0 done, 1 failed, 2 usage, 3 missing, 130 interrupted."""

import io
import os
import sys
from json import JSONDecodeError
from typing import NoReturn

import typer

from reflux.agents.errors import RefluxError, from_os_error
from reflux.agents.redaction import is_unicode
from reflux.cli import admin, ask, chat, evaluate, plan, review, rounds, serve, traces
from reflux.cli.contract import drop_output
from reflux.report.terminal import printable

INTERRUPTED = 130
LONGEST = 2_000
"""Most characters of a message; a remedy stands at its end, so the middle goes first."""

app = typer.Typer(
    name="reflux",
    help="Iterated Distillation and Amplification on language-model agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(rounds.demo)
app.command()(ask.ask)
app.command()(ask.reply)
app.command()(chat.chat)
app.command()(review.review)
app.command()(rounds.init)
app.command("run")(rounds.run)
app.command()(rounds.distill)
app.command("eval")(evaluate.evaluate_systems)
app.command("plan")(plan.plan_votes)
app.command("serve")(serve.serve)
app.add_typer(traces.traces, name="traces")
app.add_typer(admin.students, name="students")
app.command()(admin.doctor)


def run() -> None:
    """Run the command line; every error that was meant becomes one message and its exit code.

    Raises:
        KeyboardInterrupt: it was interrupted; `reflux.__main__.main` says so.
    """
    # Read by Hugging Face's libraries at import: nothing that a command needs is on a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_streams()
    for word in sys.argv[1:]:
        if not is_unicode(word):
            _end(f"the argument {word!a} is not UTF-8; write it in UTF-8", 2)
    try:
        code = app(standalone_mode=False)  # Returns the code of a `typer.Exit`.
        sys.stdout.flush()
    except RefluxError as error:
        _end(str(error), error.exit_code)
    except JSONDecodeError as error:  # Whatever else is read as JSON says what it is.
        _end(f"a record of the run is damaged ({error}): restore the run, or name another --run", 2)
    except SystemExit as error:  # Not ours: a graph or a scorer of the user's ended the program.
        _end(
            f"something that was run called sys.exit({error.code!r}) in the middle of the work; "
            "have it raise an error, or return",
            1,
        )
    except BrokenPipeError:  # Whoever read the output has left; that is no failure of the work.
        drop_output()
        code = 0
    except OSError as error:
        told = from_os_error(error)
        _end(str(told), told.exit_code)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:  # noqa: BLE001 - typer's own errors share no public base
        _usage(error)
    if code == INTERRUPTED:  # Typer makes this code of a KeyboardInterrupt.
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """A stream that was closed before the start is none at all: nothing in, and out to nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is not UTF-8 is refused where it is used, line by line, and ends nothing.
        sys.stdin.reconfigure(errors="surrogateescape")


def _end(message: str, code: int) -> NoReturn:
    text = printable(" ".join(message.split()))  # It may quote what an endpoint or a graph said.
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    sys.stderr.write(f"reflux: {text}\n")
    sys.exit(code)


def _usage(error: Exception) -> NoReturn:
    show = getattr(error, "show", None)  # A usage error of the command line itself.
    if show is None:
        raise error
    show(file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 2))
