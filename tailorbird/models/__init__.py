"""Models: classifiers and causal language models, how they are staged, loaded, run and exported."""
