"""The Hub of Hugging Face, asked only where the user names something of it."""

import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

OFFLINE, MAY_DOWNLOAD = "HF_HUB_OFFLINE", "REFLUX_MAY_DOWNLOAD"


def stay_offline() -> None:
    """Keep the libraries of this process from the Hub, outside of `online`; call it before they
    are imported."""
    if OFFLINE not in os.environ:
        os.environ[OFFLINE], os.environ[MAY_DOWNLOAD] = "1", "1"


@contextmanager
def online() -> Generator[None]:
    """Let the libraries ask the Hub within the block, unless the user has set HF_HUB_OFFLINE."""
    names = ("huggingface_hub.constants", "datasets.config")
    present = [name for name in names if find_spec(name.partition(".")[0])]
    may_ask = os.environ.get(MAY_DOWNLOAD) == "1"
    modules = [importlib.import_module(name) for name in present] if may_ask else []
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
