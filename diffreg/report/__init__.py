"""Reports: one HTML page with its pictures, plots and tables inlined."""
