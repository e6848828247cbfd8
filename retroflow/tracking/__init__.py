"""Where a run's metrics are mirrored."""
