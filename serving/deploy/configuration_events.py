"""Events of the security log for changes of what Serve is configured to serve."""

from contextlib import AbstractContextManager, nullcontext

from serving.deploy.application import replica_config
from serving.deploy.serve_schema import Json, ServeApplication
from tailorbird.registry.security_log import SecurityEvent, recorded
from tailorbird.storage.paths import TaskPaths


def recorded_change(
    application: ServeApplication | None, *, previous: ServeApplication | None
) -> AbstractContextManager[None]:
    """Return a context manager that records the change of an application, which the block makes, in
    the security log.

    `application` is None if it is removed, and `previous` if it is new. Nothing is recorded if both
    are equal, or for an application of another project.
    """
    known = application or previous
    task_uri = known.args.get("task_uri") if known else None
    if known is None or task_uri is None:
        return nullcontext()
    before = _configuration(previous)
    after = _configuration(application)
    if before == after:
        return nullcontext()
    event = SecurityEvent(
        kind="configuration",
        what=f"{known.name}: {_change(before, after)}",
        before=before,
        after=after,
    )
    return recorded(event, registry=TaskPaths(task_uri).registry)


def _configuration(application: ServeApplication | None) -> Json | None:
    """Return the part of an application's configuration that the log records. It contains no
    secrets.

    `serving` is the recipe's section without default values. Shares and versions are in the other
    fields.
    """
    if application is None:
        return None
    versions = replica_config(application).model_dump(
        mode="json", include={"champion", "challenger", "selectable"}
    )
    return {"code": application.code, "serving": application.args.get("serving", {}), **versions}


def _change(before: Json | None, after: Json | None) -> str:
    """Return the champion and the names of what changed; the event has the values."""
    if after is None:
        return "removed from service"
    champion = after["champion"]["uri"].rpartition("/")[2]
    if before is None:
        return f"served, with the champion {champion}"
    changed = [name for name in after if name != "serving" and before[name] != after[name]]
    old = before["serving"]
    new = after["serving"]
    changed += [f"serving.{name}" for name in {**old, **new} if old.get(name) != new.get(name)]
    return f"changed {', '.join(changed)}; the champion is {champion}"
