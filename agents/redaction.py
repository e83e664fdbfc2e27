"""Secrets in a text: they are removed before it is sent, and so before it is stored."""

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


def valid_unicode(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def redact(text: str) -> str:
    """Replace API keys and private keys by a placeholder.

    Recognizes common forms only: a password in prose stays.
    """
    return SECRET.sub(PLACEHOLDER, text)
