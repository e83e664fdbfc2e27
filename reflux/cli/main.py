"""The `reflux` command. Exit codes: 0 done, 1 failed, 2 usage, 3 missing, 130 interrupted."""

import io
import os
import sys
from json import JSONDecodeError
from typing import NoReturn

import typer

from reflux.agents.errors import RefluxError, from_os_error
from reflux.agents.prompts import is_unicode
from reflux.cli import admin, ask, chat, evaluate, plan, review, rounds, serve, traces
from reflux.cli.contract import drop_output
from reflux.report.terminal import printable

INTERRUPTED = 130
MAX_CHARS = 2_000
"""Length of an error message; a longer one loses its middle, since the remedy is at the end."""

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
    """Run the command line; an expected error becomes one message and its exit code.

    Raises:
        KeyboardInterrupt: the user interrupted; `reflux.__main__.main` reports it.
    """
    # Hugging Face's libraries read these at import; no command needs a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_streams()
    for argument in sys.argv[1:]:
        if not is_unicode(argument):
            _exit(f"the argument {argument!a} is not UTF-8; write it in UTF-8", 2)
    try:
        code = app(standalone_mode=False)  # Returns the code of a `typer.Exit`.
        sys.stdout.flush()
    except RefluxError as error:
        for note in getattr(error, "__notes__", ()):  # A traceback of the user's own code.
            sys.stderr.write("".join(f"{printable(line)}\n" for line in note.splitlines()))
        _exit(str(error), error.exit_code)
    except JSONDecodeError as error:  # Other JSON input has errors of its own.
        _exit(
            f"a record of the run is damaged ({error}): restore the run, or name another --run", 2
        )
    except SystemExit as error:  # A graph or scorer of the user called it.
        _exit(
            f"your code called sys.exit({error.code!r}) during the run; raise an error or return "
            "instead",
            1,
        )
    except BrokenPipeError:  # The reader of the output has closed its end; the work succeeded.
        drop_output()
        code = 0
    except OSError as error:
        failure = from_os_error(error)
        _exit(str(failure), failure.exit_code)
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        if (show := getattr(error, "show", None)) is None:  # Not a usage error of typer's.
            raise
        show(file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    if code == INTERRUPTED:  # Typer turns a KeyboardInterrupt into this code.
        raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Replace a standard stream that is closed by /dev/null."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Input that is not UTF-8 is rejected line by line, where it is used.
        sys.stdin.reconfigure(errors="surrogateescape")


def _exit(message: str, code: int) -> NoReturn:
    text = printable(" ".join(message.split()))  # It may quote an endpoint or a graph.
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]} … {text[-MAX_CHARS // 2 :]}"
    sys.stderr.write(f"reflux: {text}\n")
    sys.exit(code)
