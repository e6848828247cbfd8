"""Does retrieval help, and with what: losses over a whole split, opponents, overlap, the report."""
