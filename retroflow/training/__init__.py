"""Training with Lightning: the loop and its callbacks. No room below imports Lightning."""
