"""Serve deployments that load versions and answer requests."""
