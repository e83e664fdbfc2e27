"""Distillation: rows, training, students, rounds, and the batched engine.

The core of Reflux installs without torch. What trains, or runs bf16 weights, needs `[train]`.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from reflux.agents.errors import MissingError, pip_install

TRAIN_PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf", "datasketch",
    "phonenumbers",
)  # fmt: skip


def cache_folder() -> Path:
    """The folder of reproducible files: `REFLUX_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("REFLUX_CACHE") or platformdirs.user_cache_dir("reflux"))


def check_cache_folder(folder: Path | None = None) -> Path:
    """Create the cache folder and check that it can be written.

    Raises:
        MissingError: it cannot.
    """
    folder = folder or cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise MissingError(
            f"training keeps the unpacked base in {folder}, which cannot be written "
            f"({error.strerror}): name a writable folder in REFLUX_CACHE"
        ) from error


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
            f"training and the batched engine need {', '.join(missing)}: {pip_install('train')}"
        )
