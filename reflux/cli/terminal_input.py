"""One key, or one line, from whoever sits at the terminal; from a pipe, lines."""

import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from reflux.cli.contract import ERR

ENDED = ("", "\x04", "\x1a")


@contextmanager
def unechoed() -> Iterator[None]:
    """Keys that are pressed meanwhile are not shown, and are there for whoever reads next."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends what blocks the event loop, a line being typed or code of the user's: asyncio's
    own handler would wait for its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_key(keys: str) -> str:
    """The key that is pressed, lower case; the first letter of a line where stdin is no terminal.

    `q` at the end of what there is to read.
    """
    ERR.print(keys, style="dim", highlight=False, markup=False)
    if sys.stdin is None or not sys.stdin.isatty():
        line = sys.stdin.readline() if sys.stdin is not None else ""
        return line.strip()[:1].lower() if line else "q"
    try:
        key = typer.getchar()
    except EOFError:  # Ctrl-D.
        return "q"
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
