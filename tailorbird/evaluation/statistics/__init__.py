"""Paired statistics: pure functions of scores."""
