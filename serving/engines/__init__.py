"""Engines, which run models for concurrent requests."""
