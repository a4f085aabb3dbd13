"""The recipe: one YAML file that every door of the project reads."""
