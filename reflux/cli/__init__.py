"""The `reflux` command: one file a command.

Importing what commands work with takes a second. A process that only shows help, or completes a
word in a shell, sets `SHOWS_HELP` before it imports them, and they leave that out.
"""

import os
from itertools import takewhile

SHOWS_HELP = False
SERVES = False
"""Whether the command is a server, which Ctrl-C ends as it should."""
SHORT = ([], ["demos"], ["traces"], ["students"], ["--version"])
"""Words that show help, or less."""


def help_words(words: list[str]) -> list[str] | None:
    """The arguments of a process that only shows help or completes a word; None if it works."""
    if "_REFLUX_COMPLETE" in os.environ or words in SHORT:
        return words
    options = list(takewhile(lambda word: word != "--", words))
    if "-h" not in options and "--help" not in options:
        return None
    # Without the options, so that no value of one is taken for work to do.
    return [*takewhile(lambda word: not word.startswith("-"), options), "--help"]
