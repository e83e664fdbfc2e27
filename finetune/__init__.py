"""Distillation: rows, training, students, rounds, and the batched engine.

The core of Reflux installs without torch. What trains, or runs bf16 weights, needs `[train]`.
"""

from importlib.util import find_spec

from reflux.agents.errors import MissingError

TRAIN_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf")
INSTALL_TRAIN = 'pip install "reflux-ida[train]"'


def missing_training_packages() -> list[str]:
    """Packages of `[train]` that are not installed; none is imported."""
    return [name for name in TRAIN_PACKAGES if find_spec(name) is None]


def check_training_packages() -> None:
    """Check that the packages of `[train]` are installed.

    Raises:
        MissingError: some are not.
    """
    if missing := missing_training_packages():
        raise MissingError(
            f"training and the batched engine need {', '.join(missing)}: {INSTALL_TRAIN}"
        )
