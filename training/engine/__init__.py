"""The DeepSpeed engine of a worker: its options, the placement of its weights, and its memory."""
