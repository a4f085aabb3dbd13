"""Model evaluation: baselines, predictions, statistics, gates, verdict and report."""
