"""One run, from data to a verdict with its evidence."""
