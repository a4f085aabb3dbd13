"""Stage, load, run and export classifiers and causal language models."""
