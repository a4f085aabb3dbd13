"""Deployments: load versions, answer requests."""
