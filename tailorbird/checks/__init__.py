"""Checks of this machine, of a run before it starts, and of stored evidence."""
