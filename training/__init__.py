"""Fine-tuning: a DeepSpeed training loop in Ray Train workers, from base model to exported
weights."""
