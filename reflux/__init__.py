"""Reflux: Iterated Distillation and Amplification on language-model agents.

`__init__.pyi` lists the public names. Each is imported on first use: `import reflux` stays light.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
