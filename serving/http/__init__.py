"""HTTP: routes, schemas, API keys, metrics."""
