"""Gates: conditions in addition to the metric."""
