"""paperlib: reproduces *Efficient INT8 Single-Image Super-Resolution via Deployment-Aware Quantization and
Teacher-Guided Training* (arXiv 2604.20291).

The notebooks tell the story; this package holds what they call. Modules follow the data: config, data, blocks, student,
scan, teacher, losses, train, quant, export, metrics, evaluate, tables, report, run, cli.
"""

__version__ = "0.1.0"
