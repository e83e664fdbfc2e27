"""`python -m reflux.web.tethered WORDS`: `reflux WORDS`, ended when who began it is gone.

Its standard input is a pipe that its server holds and never writes to. A server that is killed
cannot stop what it began, but the system closes its end; the command then stops as by Ctrl-C, and
what it recorded is kept.
"""

import os
import signal
import sys
import threading
import time

from reflux.__main__ import main

GRACE = 10.0
"""Seconds to end in after the interrupt, before the process is killed."""


def hold(pipe: int) -> None:
    """Wait until the other end is closed, then end this process and those that it started."""
    while os.read(pipe, 4_096):
        pass
    os.killpg(0, signal.SIGINT)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


def run() -> None:
    """Run the command with nothing to read."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=hold, args=(pipe,), daemon=True).start()
    main()


if __name__ == "__main__":
    sys.argv[0] = "reflux"
    run()
