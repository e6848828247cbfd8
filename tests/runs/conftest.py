"""What a run does to its folder is tested with real runs."""

from tests.training.conftest import interfere, run

__all__ = ["interfere", "run"]
