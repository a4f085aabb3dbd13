"""Baselines: contenders that need no fine-tuning."""
