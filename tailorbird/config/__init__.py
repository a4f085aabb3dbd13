"""The recipe: one YAML file that the CLI, submitted jobs and the service read."""
