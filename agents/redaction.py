"""Secrets in a text: they are removed before it is sent, and so before it is stored.

Known are the forms of keys that providers issue, and values that are named a secret where they
stand. A password in prose has neither, and stays.
"""

import re

SECRET = re.compile(
    r"""
      \b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}          # OpenAI, Anthropic, Langfuse
    | \b(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,}   # Stripe
    | \b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_-]{20,}                 # GitLab
    | \bhf_[A-Za-z0-9]{20,}
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b              # AWS
    | \bAIza[0-9A-Za-z_-]{35}                    # Google
    | \bxox[abprs]-[A-Za-z0-9-]{10,}             # Slack
    | \b(?:npm_|pypi-)[A-Za-z0-9_-]{36,}
    | \beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,}   # JSON Web Token
    | -----BEGIN\ [A-Z ]{0,64}PRIVATE\ KEY(?:\ BLOCK)?-----
      (?:(?!-----BEGIN).)*?                      # Up to the next: linear time
      -----END\ [A-Z ]{0,64}PRIVATE\ KEY(?:\ BLOCK)?-----
    """,
    re.VERBOSE | re.DOTALL,
)
NAMED = re.compile(
    r"""
    (?P<name>
        \bauthorization\\{0,3}["']?\s{0,4}:\s{0,4}\\{0,3}["']?(?:bearer|basic|token)\s{1,4}
      | \bbearer\s{1,4}
      | (?:api|access|auth|secret|private)[_-]?(?:access[_-]?)?(?:key|token)\\{0,3}["']?
        \s{0,4}[=:]\s{0,4}\\{0,3}["']?
      | \b(?:client[_-]?secret|x-api-key|passwd|password)\\{0,3}["']?\s{0,4}[=:]\s{0,4}\\{0,3}["']?
    )
    (?=[A-Za-z_./+~=-]{0,200}[0-9])              # A digit: no word, no variable's name
    [A-Za-z0-9_./+~=-]{16,}
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""A value of 16 characters or more that is named a key, a token or a password."""
IN_URL = re.compile(r"(?P<name>\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:]{1,200}:)[^\s/@:]{1,200}(?=@)")
"""The password of an address, `scheme://user:password@host`."""
MARKS = (
    "sk-", "pk-", "rk-", "sk_", "pk_", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_",
    "glpat-", "hf_", "AKIA", "ASIA", "AIza", "xox", "npm_", "pypi-", "eyJ", "-----BEGIN",
)  # fmt: skip
"""A text without any of them holds no `SECRET`: looking for them takes a tenth of the time."""
WORDS = ("key", "token", "secret", "passw", "bearer", "authorization")
"""In small letters, a text without any of them holds nothing `NAMED`."""
PLACEHOLDER = "[redacted]"


def valid_unicode(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def redact(text: str) -> str:
    """Replace API keys, private keys, and values that are named a secret, by a placeholder.

    Recognizes common forms only: a password in prose stays.
    """
    if any(mark in text for mark in MARKS):
        text = SECRET.sub(PLACEHOLDER, text)
    lower = text.lower()
    if any(word in lower for word in WORDS):
        text = NAMED.sub(rf"\g<name>{PLACEHOLDER}", text)
    return IN_URL.sub(rf"\g<name>{PLACEHOLDER}", text) if "://" in text else text


def is_secret(name: object, value: object) -> bool:
    """Whether a field of JSON is named a secret, and holds what looks like one."""
    return isinstance(value, str) and NAMED.fullmatch(f"{name}: {value}") is not None
