"""`python -m reflux`, and the `reflux` command.

Heavy imports wait until `main`, so that Ctrl-C prints one line from the start.
"""

import gc
import sys

INTERRUPTED = (
    "reflux: interrupted; recorded calls are kept: continue a run with `reflux run --resume`, "
    "and an eval with the same command\n"
)


def main() -> None:
    """Run the command line; see `reflux.cli.main.run`."""
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
