"""Training by Lightning: the loop, checkpoints, trackers. Nothing below this room knows Lightning."""
