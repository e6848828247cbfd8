"""Nearest-neighbour search: four backends of one shape, and the wrapper that checks them.

Nothing is imported here: each backend's library is loaded only when its own file is (retroflow.registry).
"""
