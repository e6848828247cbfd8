"""Does retrieval help, and where: losses over a whole split, baselines, overlap, the report."""
