"""Every error that Reflux raises on purpose, with its exit code.

RefluxError
├── UsageError      exit 2   wrong arguments, config, task or question
│   └── Deferred             a human has to reply first
├── MissingError    exit 3   a dependency, model file or endpoint is missing
├── EndpointError   exit 3   an endpoint failed after every retry
└── ReplayError     exit 1   the call log holds a different request under the same key

`from_os_error` converts errors of the operating system.
"""

import errno
import json
import math
import os
import shlex
from collections.abc import Sequence

FINAL_STATUS = frozenset((401, 402, 403, 404, 405))
"""HTTP statuses that no other request to the same model would change; 402 is an empty account."""
NO_SPACE = "recorded work is kept: free some space, then continue (a run: with --resume)"
NO_ACCESS = "make it writable, or name another --run"


class RefluxError(Exception):
    """Base of all; its text names the value, the limit and the remedy."""

    exit_code = 1


class UsageError(RefluxError):
    """The user's input cannot be used as it is."""

    exit_code = 2


class Deferred(UsageError):
    """Questions wait for a human."""


class MissingError(RefluxError):
    """Something that has to be installed or started is missing."""

    exit_code = 3


class EndpointError(RefluxError):
    """A model call failed for good, after every retry."""

    exit_code = 3
    cached = False
    """True if this call had joined another identical one, which failed."""
    refused = False
    """True if the endpoint answered, and would refuse the same request again."""
    status: int | None = None
    """The HTTP status of the endpoint's reply, if there was one."""
    is_last = False
    """True of a recorded failure after which no call of its question got a reply."""
    retry_after: float | None = None
    """Seconds that the endpoint asks to wait."""
    too_long = False
    """True if the request does not fit into the model's context."""

    @property
    def is_final(self) -> bool:
        """True if the endpoint refuses this model altogether: a key, an address, a name, a quota.

        Every further question would end the same way, so a run stops.
        """
        return self.refused and self.status in FINAL_STATUS


class ReplayError(RefluxError):
    """A recorded call and a new call have the same key and different requests."""


def pip_install(extra: str) -> str:
    """The command that adds an extra to this installation, from the place it was installed from."""
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(distribution("reflux-ida").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # Imported from a checkout.
        origin = {"url": "file:.", "dir_info": {"editable": True}}
    source = origin.get("url", "reflux-ida")
    if source.startswith("file:"):
        source = url2pathname(urlsplit(source).path)
    editable = ("-e",) if origin.get("dir_info", {}).get("editable") else ()
    return shlex.join(("pip", "install", *editable, f"{source}[{extra}]"))


def from_os_error(error: OSError) -> RefluxError:
    """The error for a full disk, a read-only folder or a file in the way."""
    path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    problem = path + (error.strerror or str(error))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RefluxError(f"{problem}; {NO_SPACE}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"{problem}; {NO_ACCESS}")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return UsageError(f"{problem}; a file and a folder cannot share a name, choose another")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError(f"{problem}; choose another name")
    return RefluxError(f"{problem}; recorded work is kept; check the disk and its files")


def check_range(
    name: str,
    value: float,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Check that a setting lies within its range; `above` and `below` are exclusive.

    Raises:
        UsageError: it does not, or it is NaN.
    """
    bounds = {"at least": least, "at most": most, "more than": above, "less than": below}
    wanted = " and ".join(f"{name} {end:g}" for name, end in bounds.items() if end is not None)
    low = (least is None or value >= least) and (above is None or value > above)
    high = (most is None or value <= most) and (below is None or value < below)
    if math.isnan(value) or not (low and high):
        raise UsageError(f"{name} is {value:g}; it must be {wanted or 'a number'}")


def check_has(kind: str, attributes: Sequence[str], remedy: str, *parts: object) -> None:
    """Check that each part which a program hands over has what its protocol asks for.

    Raises:
        UsageError: one lacks an attribute, or is a class.
    """
    for part in parts:
        if isinstance(part, type):
            raise UsageError(f"{part.__name__} is a class, not {kind}; pass an instance of it")
        for attribute in attributes:
            if not hasattr(part, attribute):
                raise UsageError(f"{part!r:.80} is not {kind}: it has no `{attribute}`; {remedy}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a setting is one of a few names.

    Raises:
        UsageError: it is not.
    """
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
