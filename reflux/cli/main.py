"""The `reflux` command. Exit codes: 0 done, 1 failed, 2 usage, 3 missing, 130 interrupted."""

from __future__ import annotations

import io
import os
import sys
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer
import typer.main
from typer.core import TyperCommand, TyperOption

import reflux
from reflux import cli
from reflux.agents.errors import RefluxError, from_os_error
from reflux.agents.hub import stay_offline
from reflux.cli import (
    admin,
    ask,
    chat,
    plan,
    record,
    review,
    serve,
    trace_files,
    trace_scores,
    traces,
)
from reflux.cli.contract import endpoint_options
from reflux.cli.evaluation import attack
from reflux.cli.evaluation import command as evaluation
from reflux.cli.runs import demos, distill, rounds

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from reflux.agents.clients.endpoints import fixed_environment
    from reflux.agents.prompts import is_unicode
    from reflux.report.terminal import printable

INTERRUPTED = 130
MAX_CHARS = 2_000
"""Length of an error message; a longer one loses its middle, since the remedy is at the end."""
METAVARS: dict[Any, str] = {
    int: "N", list[int]: "N", float: "X", str: "NAME", list[str]: "NAME", Path: "FILE"
}  # fmt: skip
"""What the help shows for a value of a type."""
GROUPS = {
    "demos": "Make demonstrations for a model overseer.",
    "traces": "List, show and export trajectories.",
    "students": "List, promote and roll back students.",
}
COMMANDS = {
    "demo": rounds.demo,
    "ask": ask.ask,
    "reply": ask.reply,
    "chat": chat.chat,
    "review": review.review,
    "init": rounds.init,
    "run": rounds.run,
    "distill": distill.distill,
    "eval": evaluation.evaluate_systems,
    "attack": attack.attack,
    "plan": plan.plan_votes,
    "serve": serve.serve,
    "record": record.record,
    "doctor": admin.doctor,
    "traces list": traces.list_traces,
    "traces show": traces.show_trace,
    "traces page": traces.page_of_trace,
    "traces export": trace_files.export_traces,
    "traces import": trace_files.import_traces,
    "traces score": trace_scores.score_traces,
    "demos make": demos.make_demos,
    "students list": admin.list_students,
    "students promote": admin.promote_student,
    "students rollback": admin.rollback_student,
}
ASK_MODELS = (
    "ask", "reply", "chat", "review", "init", "run", "eval", "attack", "plan", "serve", "doctor",
    "score",
)  # fmt: skip
"""Commands that may ask an endpoint."""
EXAMPLES = """
reflux demo
reflux demo --fresh --run runs/demo
reflux ask "What are the capitals of France and Japan?"
reflux ask "What is 17 * 23?" --overseer plain --tool calculator
reflux ask "304+517" --task addition --run runs/adds --json
reflux reply 1a2b "answer: Lisbon"
reflux reply 1a2b pass --run runs/human
reflux chat
reflux chat --demos demos.jsonl
reflux chat --overseer none --model llama3.2 --thinking off
reflux chat --resume last
reflux review
reflux review list --why disputed
reflux review 1a2b/0.0.1 --edit "391" --comment "looked it up"
reflux init --config run.yaml --run runs/adds
reflux run --config run.yaml --run runs/adds
reflux run --resume --run runs/adds
reflux distill --run runs/adds --student student-a
reflux distill --role overseer --demos demos.jsonl --run runs/mine
reflux distill --data rows.jsonl --config sft.yaml --run runs/mine
reflux eval --systems direct,amplified,best-of-n --level 3
reflux eval --data questions.jsonl --score number --out runs/eval
reflux eval --data questions.jsonl --systems direct,app.py:graph --model llama3.2
reflux attack --model obedient --systems direct,amplified,amplified+strict
reflux attack --surface question --no-tools --systems direct,student-r1 --out runs/attack
reflux plan --accuracy 0.98 --steps 1000
reflux plan --run runs/adds --target 0.999 --price 0.5
reflux serve --run runs/adds
reflux serve --port 8080 --config serve.yaml
reflux record --run runs/app --upstream https://api.openai.com/v1
reflux record --run runs/app -- python my_agent.py
reflux doctor
reflux doctor --probe --model llama3.2
reflux demos make --run runs/adds --out demos.jsonl
reflux demos make --task chain_sum -n 20 --out demos.jsonl
reflux traces list --status rejected --limit 5
reflux traces show 1a2b
reflux traces page 1a2b --out tree.html
reflux traces export rows.jsonl --form messages
reflux traces export dataset --where "score >= 0.8" --rows trajectories --run runs/app
reflux traces import langfuse.jsonl --dry-run
reflux traces import logs/*.eval rows.jsonl --run runs/app
reflux traces score --with checks.py:is_correct --run runs/app
reflux traces score --with judge:gpt-5 --rubric rubric.md --run runs/app
reflux students list --run runs/adds
reflux students promote student-r2 --run runs/adds
reflux students rollback --run runs/adds
"""


_endpoint_options = typer.Typer(add_completion=False)
_endpoint_options.command()(endpoint_options)


class Command(TyperCommand):
    """A command whose help shows examples, and plain names for values."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.name in ASK_MODELS:
            more = cast(list[TyperOption], typer.main.get_command(_endpoint_options).params)
            for option in more:
                option.expose_value = False
            self.params += more
        for option in (each for each in self.params if isinstance(each, TyperOption)):
            kind = option.type_descriptor.annotation
            option.metavar = option.metavar or METAVARS.get(kind)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with the endpoint of the environment as it is now."""
        with fixed_environment():
            return super().invoke(ctx)


def _typer(name: str, summary: str) -> typer.Typer:
    settings = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        name=name,
        help=summary,
        epilog=examples(name),
        no_args_is_help=True,
        context_settings=settings,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def examples(command: str) -> str:
    """The examples of a command as its help shows them; of `reflux` itself, two to begin with."""
    starts = tuple(f"reflux {each} " for each in ([command] if command else ["demo", "ask"]))
    lines = [line for line in EXAMPLES.splitlines() if f"{line} ".startswith(starts)]
    return "\n  ".join(("\b\nExamples:", *lines))


def show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"reflux {reflux.__version__}\n")
        raise typer.Exit


def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Iterated Distillation and Amplification on language-model agents."""


app = _typer("", "Iterated Distillation and Amplification on language-model agents.")
app.callback()(main)
_groups = {name: _typer(name, summary) for name, summary in GROUPS.items()}
for _name, _group in _groups.items():
    app.add_typer(_group, name=_name)
for _name, _work in COMMANDS.items():
    _of, _, _word = _name.rpartition(" ")
    # A program's own options are its arguments.
    _settings = {"allow_interspersed_args": False} if _name == "record" else None
    _groups.get(_of, app).command(
        _word, cls=Command, epilog=examples(_name), context_settings=_settings
    )(_work)


def run() -> None:
    """Run the command line; an expected error becomes one message and its exit code.

    Raises:
        KeyboardInterrupt: the user interrupted; `reflux.__main__.main` reports it.
    """
    stay_offline()  # Hugging Face's libraries read these at import.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_streams()
    for argument in () if cli.SHOWS_HELP else sys.argv[1:]:
        if not is_unicode(argument):
            utf8 = sys.getfilesystemencoding() == "utf-8"
            remedy = "write it in UTF-8" if utf8 else "set LC_ALL=C.UTF-8"
            _exit(f"the argument {argument!a} is not {(utf8 and 'UTF-8') or 'ASCII'}; {remedy}", 2)
    try:
        code = app(standalone_mode=False)  # Returns the code of a `typer.Exit`.
        sys.stdout.flush()
    except RefluxError as error:
        for note in getattr(error, "__notes__", ()):  # A traceback of the user's own code.
            if note.startswith("During task with name"):  # LangGraph's.
                continue
            sys.stderr.write("".join(f"{printable(line)}\n" for line in note.splitlines()))
        _exit(str(error), error.exit_code)
    except JSONDecodeError as error:  # Other JSON input has its own errors.
        _exit(
            f"a record of the run is damaged ({error}): restore the run, or name another --run", 2
        )
    except SystemExit as error:  # A graph or scorer of the user called it, or completion ended.
        if cli.SHOWS_HELP:
            raise
        _exit(
            f"your code called sys.exit({error.code!r}) during the run; raise an error or return "
            "instead",
            1,
        )
    except BrokenPipeError:  # The reader of the output has closed its end; the work succeeded.
        from reflux.report.terminal import drop_output

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.startswith("utf"):
            stream.reconfigure(errors="replace")  # The terminal may know ASCII alone.
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Input that is not UTF-8 is rejected line by line, where it is used.
        sys.stdin.reconfigure(errors="surrogateescape")


def _exit(message: str, code: int) -> NoReturn:
    text = printable(" ".join(message.split()))  # It may quote an endpoint or a graph.
    if len(text) > MAX_CHARS:
        text = f"{text[: MAX_CHARS // 2]} … {text[-MAX_CHARS // 2 :]}"
    sys.stderr.write(f"reflux: {text}\n")
    sys.exit(code)
