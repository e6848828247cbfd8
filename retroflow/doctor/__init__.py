"""The checks of `retroflow doctor`."""
