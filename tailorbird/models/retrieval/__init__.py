"""Retrieval of training rows: the index, its files, and prompts with retrieved examples."""
