"""The stages of a run, from data to a verdict with its evidence."""
