"""Paired statistics as pure functions of scores."""
