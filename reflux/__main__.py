"""`python -m reflux`, and the `reflux` command.

Heavy imports wait until `main`, so that Ctrl-C prints one line from the start.
"""

import gc
import signal
import sys
from typing import Any

INTERRUPTED = (
    "reflux: interrupted; recorded calls are kept: continue a run with `reflux run --resume`, "
    "and an eval with the same command\n"
)


def _interrupt(*_: Any) -> None:
    """End at SIGTERM as at Ctrl-C, which stops what was started; a kill where that is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


def main() -> None:
    """Run the command line; see `reflux.cli.main.run`."""
    signal.signal(signal.SIGTERM, _interrupt)
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
        sys.stderr.write(INTERRUPTED)
        sys.exit(130)


if __name__ == "__main__":
    main()
