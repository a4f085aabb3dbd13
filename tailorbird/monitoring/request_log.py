"""The request log that monitoring reads. Imports nothing large, so that commands can check it before they connect."""

from tailorbird.config.recipe import Recipe
from tailorbird.config.tasks import TASKS


class MonitoringError(ValueError):
    """Raised if a task cannot be monitored."""


def require_request_log(recipe: Recipe) -> str:
    """Return the URI of the request log; raise MonitoringError if the task is not monitored or has no log."""
    if not TASKS[recipe.task].is_monitored:
        raise MonitoringError(f"task: {recipe.task} does not support monitoring")
    if recipe.serving.request_log is None:
        raise MonitoringError(
            "serving.request_log is not set; set it to an s3:// prefix and run `tailorbird serve RECIPE` again"
        )
    return recipe.serving.request_log
