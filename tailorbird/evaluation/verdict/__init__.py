"""The verdict: a pure decision on predictions."""
