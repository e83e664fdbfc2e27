"""`python -m reflux`, and the `reflux` command.

Nothing heavy is imported outside `main`: Ctrl-C is answered in one line from the first moment.
"""

import gc
import sys

INTERRUPTED = (
    "reflux: interrupted; what was recorded is kept: `reflux run --resume` goes on with a run, "
    "and of an eval the same command goes on\n"
)


def main() -> None:
    """Run the command line; see `reflux.cli.main.run`."""
    # What is imported lives to the end: it is not walked for cycles, neither now nor later.
    gc.disable()
    try:
        from reflux.cli.main import run

        gc.freeze()
        gc.enable()
        run()
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        sys.exit(130)


if __name__ == "__main__":
    main()
