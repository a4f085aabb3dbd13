"""The HTTP layer: routes, schemas, API keys and metrics."""
