"""Speed and memory, as ratios inside one run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "suite": ["run_benchmarks"],
    },
)
