"""Everything that works without fine-tuning."""
