"""retroflow: train, evaluate and run retrieval-enhanced language models (RETRO).

Importing this package loads nothing heavy: no torch, no search library (checked by tests/house).
"""

__version__ = "0.1.0"
