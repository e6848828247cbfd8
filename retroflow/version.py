"""The version of retroflow."""

__version__ = "0.1.0"
