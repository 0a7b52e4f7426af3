"""paperlib: reproduces *Efficient INT8 Single-Image Super-Resolution via Deployment-Aware
Quantization and Teacher-Guided Training* (arXiv 2604.20291).

The notebooks tell the story; this package holds what they call, in folders that carry the paper's
words. A folder imports only from floors below its own (`tests/test_floors.py`), and loads neither
torch nor TensorFlow before a name that needs them is used.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"run": ["open_run"]})
__all__ = ["__version__", "open_run"]
