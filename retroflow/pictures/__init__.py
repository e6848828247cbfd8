"""Show what was measured: one HTML file, plots, and an inspector of neighbours."""
