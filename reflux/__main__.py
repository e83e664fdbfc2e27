"""`python -m reflux`, and the `reflux` command.

Heavy imports wait until `main`, so that Ctrl-C prints one line from the start.
"""

import gc
import signal
import sys

INTERRUPTED = (
    "reflux: interrupted; recorded calls are kept: continue a run with `reflux run --resume`, "
    "and an eval with the same command\n"
)
STOPPED = "reflux: stopped\n"


def _terminate(*_: object) -> None:
    """End on SIGTERM as on Ctrl-C: what has begun is recorded or removed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # As in the background of a shell.
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Print an exception that nobody can catch, but not a second Ctrl-C while the first is
    obeyed."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command line; see `reflux.cli.main.run`."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _report_unraisable
    # Imported modules live until exit, so the collector need not scan them.
    gc.disable()
    try:
        from reflux import cli

        if (words := cli.help_words(sys.argv[1:])) is not None:
            cli.SHOWS_HELP, sys.argv[1:] = True, words
        from reflux.cli.main import run

        gc.freeze()
        gc.enable()
        run()
    except KeyboardInterrupt:
        for pressed_again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(pressed_again, signal.SIG_IGN)
        serves = getattr(sys.modules.get("reflux.cli"), "SERVES", False)
        sys.stderr.write(STOPPED if serves else INTERRUPTED)
        sys.exit(130)


if __name__ == "__main__":
    main()
