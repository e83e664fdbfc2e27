"""Every error that Reflux raises on purpose, and the exit code that each one becomes.

RefluxError
├── UsageError      exit 2   wrong arguments, config, task or question
├── MissingError    exit 3   a dependency, model file or endpoint is not there
├── EndpointError   exit 3   an endpoint was asked, and asked again, and did not answer
├── ReplayError     exit 1   the call log holds another request under the same key
└── CycleError      exit 1   a question asks itself again, directly or through its children

`from_os_error` makes one of them out of what the operating system refuses.
"""

import errno
import math
import os

NO_SPACE = "what was recorded is kept: free some space, then go on (a run: with --resume)"
NO_ACCESS = "make it writable, or name another --run"
RETRIED_STATUS = frozenset((408, 409, 425, 429))
"""Of an endpoint's refusals, those that may pass, as all from 500 up do."""


class RefluxError(Exception):
    """Base of all: its text names the value, the limit and the remedy."""

    exit_code = 1


class UsageError(RefluxError):
    """The user's input cannot be used as it is."""

    exit_code = 2


class MissingError(RefluxError):
    """Something that has to be installed or started is missing."""

    exit_code = 3


class EndpointError(RefluxError):
    """A model call failed for good, after every retry."""

    exit_code = 3
    cached = False
    """True where the call was another's, which this one had joined."""
    refused = False
    """True where the endpoint answered, and would refuse the same request again."""
    status: int | None = None
    """The HTTP status that it answered with, where it did."""


class ReplayError(RefluxError):
    """A recorded call and the call to be made have the same key and different requests."""


class CycleError(RefluxError):
    """A question repeats one of its ancestors, so its recursion would never end."""


def from_os_error(error: OSError) -> RefluxError:
    """What a full disk, a read-only folder or a file in the way means to the user."""
    what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    what += error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RefluxError(f"{what}; {NO_SPACE}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"{what}; {NO_ACCESS}")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return UsageError(f"{what}; a file and a folder cannot share a name, choose another")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError(f"{what}; choose another name")
    return RefluxError(f"{what}; what was recorded is kept, see that the disk and its files work")


def check_range(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Hold a setting to its range; `above` and `below` are no part of it.

    Raises:
        UsageError: it lies outside, or is no number.
    """
    bounds = {"at least": least, "more than": above, "less than": below}
    wanted = " and ".join(f"{what} {end:g}" for what, end in bounds.items() if end is not None)
    low = (least is None or value >= least) and (above is None or value > above)
    if math.isnan(value) or not low or (below is not None and value >= below):
        raise UsageError(f"{name} is {value:g}; it must be {wanted or 'a number'}")
