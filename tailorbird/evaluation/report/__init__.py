"""Evidence, HTML report, model card and console output of a run."""
