"""Monitoring of served versions: reads the request log and labels, and recommends
re-evaluations."""
