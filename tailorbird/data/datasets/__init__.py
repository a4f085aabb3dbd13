"""Public data sets that are built from installed packages."""
