"""A run on disk: folder, description, checkpoints and metrics, resuming, and what is done with finished ones."""
