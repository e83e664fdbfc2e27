"""One key, or one line, from whoever sits at the terminal; from a pipe, lines."""

import sys

import typer

from reflux.app import ERR

ENDED = ("", "\x04", "\x1a")


def read_key(keys: str) -> str:
    """The key that is pressed, lower case; the first letter of a line where stdin is no terminal.

    `q` at the end of what there is to read.
    """
    ERR.print(keys, style="dim", highlight=False, markup=False)
    if sys.stdin is None or not sys.stdin.isatty():
        line = sys.stdin.readline() if sys.stdin is not None else ""
        return line.strip()[:1].lower() if line else "q"
    key = typer.getchar()
    if key == "\x03":
        raise KeyboardInterrupt
    return "q" if key in ENDED else key.lower()


def read_line(what: str) -> str:
    """A line, or an empty one at the end of what there is to read."""
    ERR.print(f"{what}: ", end="", highlight=False, markup=False)
    if sys.stdin is None or not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n") if sys.stdin is not None else ""
    try:
        return input()
    except EOFError:
        return ""
