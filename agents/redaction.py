"""Secrets are removed from a text before it is sent, and so before it is stored."""

import re

SECRET = re.compile(
    r"""
      \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}          # OpenAI, Anthropic
    | \b(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,}   # Stripe
    | \b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}
    | \bhf_[A-Za-z0-9]{20,}
    | \bAKIA[0-9A-Z]{16}\b                       # AWS
    | \bxox[abprs]-[A-Za-z0-9-]{10,}             # Slack
    | -----BEGIN\ [A-Z ]{0,64}PRIVATE\ KEY(?:\ BLOCK)?-----
      (?:(?!-----BEGIN).)*?                      # Up to the next: linear time
      -----END\ [A-Z ]{0,64}PRIVATE\ KEY(?:\ BLOCK)?-----
    """,
    re.VERBOSE | re.DOTALL,
)
PLACEHOLDER = "[redacted]"


def redact(text: str) -> str:
    """Replace API keys and private keys by a placeholder.

    Recognizes common forms only: a password in prose stays.
    """
    return SECRET.sub(PLACEHOLDER, text)


def question_problem(question: str, max_chars: int) -> str | None:
    """Why a question must not be asked; None for a valid question."""
    if not question.strip():
        return "the question is empty"
    if len(question) > max_chars:
        return f"the question has {len(question)} characters, the limit is {max_chars}"
    if not is_unicode(question):
        return "the question is no Unicode text: it holds half a surrogate pair"
    return None


def is_unicode(text: str) -> bool:
    """False if the text holds half a surrogate pair, as text decoded from non-UTF-8 bytes does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
