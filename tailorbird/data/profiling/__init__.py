"""Profiles of unknown data: samples, column roles and token lengths."""
