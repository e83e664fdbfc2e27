"""Secrets are taken out of a text before it is sent, and so before it is stored."""

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
      (?:(?!-----BEGIN).)*?                      # Up to the next, or many would take for ever
      -----END\ [A-Z ]{0,64}PRIVATE\ KEY(?:\ BLOCK)?-----
    """,
    re.VERBOSE | re.DOTALL,
)
PLACEHOLDER = "[redacted]"


def redact(text: str) -> str:
    """Replace API keys and private keys by a placeholder.

    Knows the common forms only: a password in prose passes.
    """
    return SECRET.sub(PLACEHOLDER, text)


def unaskable(question: str, longest: int) -> str | None:
    """Why a question must not be asked; None where it may be.

    Args:
        longest: characters that it may have.
    """
    if not question.strip():
        return "the question is empty"
    if len(question) > longest:
        return f"the question has {len(question)} characters, the limit is {longest}"
    if not is_unicode(question):
        return "the question is no Unicode text: it holds half a surrogate pair"
    return None


def is_unicode(text: str) -> bool:
    """False where it holds half a surrogate pair, as bytes do that were no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
