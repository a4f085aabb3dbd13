"""The request log that monitoring reads. Imports nothing large, so that commands can check it
before they connect."""

from tailorbird.config.recipe import Recipe


class MonitoringError(ValueError):
    """Raised if a champion cannot be monitored."""


def require_request_log(recipe: Recipe) -> str:
    """Return the URI of the request log; raise MonitoringError if the recipe has none."""
    if recipe.serving.request_log is None:
        raise MonitoringError(
            "serving.request_log is not set; set it to an s3:// prefix and run `tailorbird serve "
            "RECIPE` again"
        )
    return recipe.serving.request_log
