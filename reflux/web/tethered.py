"""`python -m reflux.web.tethered ARGUMENTS`: `reflux ARGUMENTS`, stopped when its parent is gone.

Standard input is a pipe that the server holds open and never writes to. When the server is killed,
the system closes the pipe; the command then stops as by Ctrl-C and keeps what it recorded.
"""

import os
import signal
import sys
import threading
import time

from reflux.__main__ import main

STOP_SECONDS = 10.0
"""Time between the interrupt and the kill."""


def stop_at_eof(pipe: int) -> None:
    while os.read(pipe, 4_096):
        pass
    os.killpg(0, signal.SIGINT)
    time.sleep(STOP_SECONDS)
    os.killpg(0, signal.SIGKILL)


def run() -> None:
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    threading.Thread(target=stop_at_eof, args=(pipe,), daemon=True).start()
    main()


if __name__ == "__main__":
    sys.argv[0] = "reflux"
    run()
