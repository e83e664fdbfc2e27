"""Every error that Reflux raises on purpose, and the exit code that each one becomes.

RefluxError
├── UsageError      exit 2   wrong arguments, config, task or question
├── MissingError    exit 3   a dependency, model file or endpoint is not there
├── EndpointError   exit 3   an endpoint was asked, and asked again, and did not answer
├── ReplayError     exit 1   the call log holds another request under the same key
└── CycleError      exit 1   a question asks itself again, directly or through its children
"""


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


class ReplayError(RefluxError):
    """A recorded call and the call to be made have the same key and different requests."""


class CycleError(RefluxError):
    """A question repeats one of its ancestors, so its recursion would never end."""
