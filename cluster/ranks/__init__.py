"""Processes that hold a model together."""
