"""A run on disk: folder, description, checkpoints, metrics, resuming; lists, comparisons and clean-up."""
