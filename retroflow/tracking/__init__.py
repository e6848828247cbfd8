"""Mirrors of a run's metrics."""
