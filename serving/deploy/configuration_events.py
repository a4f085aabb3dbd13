"""Events of the security log for changes of what Serve is configured to serve."""

from contextlib import AbstractContextManager, nullcontext

from serving.deploy.application import replica_config
from serving.deploy.serve_schema import Json, ServeApplication
from tailorbird.registry.security_log import SecurityEvent, recorded
from tailorbird.storage.paths import TaskPaths

UNSET = "unset"


def recorded_change(
    application: ServeApplication | None, *, former: ServeApplication | None
) -> AbstractContextManager[None]:
    """Return a context manager that records the change of an application, which the block makes, in
    the security log.

    `application` is None if it is removed, and `former` if it is new. Nothing is recorded if both
    are equal, or for an application of another project.
    """
    known = application or former
    task_uri = known.args.get("task_uri") if known else None
    if known is None or task_uri is None:
        return nullcontext()
    before = _configuration(former)
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
        mode="json", include={"champion", "challenger", "others"}
    )
    return {"code": application.code, "serving": application.args.get("serving", {}), **versions}


def _change(before: Json | None, after: Json | None) -> str:
    """Return the change in words."""
    if after is None:
        return "removed from service"
    if before is None:
        return f"served, with the champion {_name(after['champion'])}"
    old = _settings(before)
    new = _settings(after)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "; ".join(f"{name} {old.get(name, UNSET)} -> {new.get(name, UNSET)}" for name in names)


def _settings(configuration: Json) -> dict[str, str]:
    """Return the values of a configuration in words, by name."""
    settings = {"champion": _name(configuration["champion"]), "code": str(configuration["code"])}
    challenger = configuration["challenger"]
    if challenger is not None:
        shares = f"canary {challenger['canary']:g}, shadow {challenger['shadow']:g}"
        settings["challenger"] = f"{_name(challenger)} ({shares})"
    if configuration["others"]:
        settings["other versions"] = ", ".join(sorted(configuration["others"]))
    return settings | {
        f"serving.{name}": str(value) for name, value in configuration["serving"].items()
    }


def _name(version: Json) -> str:
    return str(version["uri"]).rpartition("/")[2]
