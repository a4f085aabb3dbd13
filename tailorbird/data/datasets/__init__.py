"""Public data sets that a package carries."""
