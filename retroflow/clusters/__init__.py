"""Clusters: the shards of `prepare` as jobs of SLURM or Ray. Failed jobs are submitted again (docs/preparing.md)."""
