"""What the models are worth: baselines, predictions, and the verdict on them."""
