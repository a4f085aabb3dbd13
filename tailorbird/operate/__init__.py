"""Watch a champion in service and evaluate it again."""
