"""INT8 arithmetic, quantisation-aware training and where INT8 loses (paper section 4)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "int8": ["QParams"],
        "diagnostics": ["drop_decomposition", "layer_ranges", "layer_sqnr"],
        "qat": ["float_graph", "prepare_qat", "quantised_graph"],
    },
)
