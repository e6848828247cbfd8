"""Estimates of what a run will need, before anything is made."""
