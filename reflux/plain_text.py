"""Text of models and users, made fit to be shown: no control characters, and not without end."""

import html

LINES = "\n"
"""What `printable` keeps of a text of several lines."""


def printable(text: str, kept: str = "") -> str:
    """The text with a blank for every character that cannot be seen, but for those to be `kept`."""
    return "".join(char if char.isprintable() or char in kept else " " for char in text)


def html_text(text: str, longest: int) -> str:
    """Somebody else's text as HTML that shows it as it is: no markup of its own, its lines, and at
    most so many characters."""
    more = len(text) - longest
    cut = f"{text[:longest]} … {more} characters more" if more > 0 else text
    return f'<span class="text">{html.escape(printable(cut, LINES))}</span>'
