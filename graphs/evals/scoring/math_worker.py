"""Mathematics in an answer, compared by math-verify (extra `math`) in a separate process."""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec

from reflux.agents.errors import MissingError
from reflux.graphs.evals.scoring.mathematics import superscripts_as_powers


def check_math_installed() -> None:
    """Check that mathematics can be compared.

    Raises:
        MissingError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise MissingError(
            "--score math needs math-verify: pip install 'reflux-ida[math]', or take --score number"
        )


@dataclass
class MathWorker:
    """Compares mathematics in a separate process: SymPy may compute without end, and only a
    process can be stopped. math-verify's own time limits are signals, which need a main thread."""

    seconds: float = 10.0
    """An answer that takes longer to compare is not equal."""
    _process: "subprocess.Popen[str] | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def same(self, answer: str, truth: str) -> bool:
        """Whether an answer equals the true one.

        Raises:
            MissingError: math-verify is not installed.
        """
        check_math_installed()
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None  # noqa: S101 - pipes
            timer = threading.Timer(self.seconds, process.kill)
            timer.start()
            try:
                pair = [superscripts_as_powers(text) for text in (answer, truth)]
                process.stdin.write(json.dumps(pair) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            finally:
                timer.cancel()
            if not line:
                process.kill()
                self._process = None
            return line.strip() == "true"

    def _running(self) -> "subprocess.Popen[str]":
        """The worker, started and its libraries loaded, which the time limit leaves out."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", f"from {__name__} import compare_math as f; f()"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            )  # fmt: skip
            assert self._process.stdout is not None  # noqa: S101 - a pipe
            self._process.stdout.readline()
        return self._process


def compare_math() -> None:
    """Read pairs of answer and true answer as lines of JSON, and write whether they are equal."""
    import resource
    import signal

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends it, by closing its input.
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    parse("$1$", configs)  # Loads the grammar, which takes longer than most answers.
    print("ready", flush=True)
    for line in sys.stdin:
        answer, truth = json.loads(line)
        try:
            # A true answer is mathematics as a whole; `$…$` tells so to the parser.
            gold = parse(truth if "$" in truth or "\\boxed" in truth else f"${truth}$", configs)
            equal = any(verify(gold, parse(each, configs)) for each in (answer, f"${answer}$"))
        except Exception:  # noqa: BLE001 - whatever a model wrote is at most not equal
            equal = False
        print(json.dumps(bool(equal)), flush=True)


MATH = MathWorker()
