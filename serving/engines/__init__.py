"""Run models for many requests at once."""
