"""The `reflux` command. Exit codes: 0 done, 1 failed, 2 usage, 3 missing, 130 interrupted."""

import os
import sys

import typer

from agents.errors import RefluxError
from reflux import ask, look, rounds

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
app.command()(rounds.init)
app.command("run")(rounds.run)
app.command()(rounds.distill)
app.command("eval")(ask.evaluate_systems)
app.add_typer(look.traces, name="traces")
app.add_typer(look.students, name="students")
app.command()(look.doctor)


def run() -> None:
    """Run the command line; every error that was meant becomes one message and its exit code."""
    # Read by Hugging Face's libraries at import: nothing that a command needs is on a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False)  # Returns the code of a `typer.Exit`.
    except RefluxError as error:
        sys.stderr.write(f"reflux: {error}\n")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("reflux: interrupted; what was recorded is kept, --resume goes on\n")
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - typer's own errors share no public base
        _other(error)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _other(error: Exception) -> None:
    show = getattr(error, "show", None)  # A usage error of the command line itself.
    if show is not None:
        show(file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    if isinstance(error, OSError):
        sys.stderr.write(f"reflux: {error}; what was recorded is kept\n")
        sys.exit(1)
    raise error


if __name__ == "__main__":
    run()
