"""Attention over packed rows and requests, and the private parts of transformers."""
