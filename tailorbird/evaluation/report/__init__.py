"""Evidence, report and model card."""
