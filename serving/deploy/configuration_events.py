"""Events of the security log for changes of what Serve is configured to serve."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Self

from pydantic import BaseModel, ConfigDict

from serving.deploy.application import replica_config
from serving.deploy.serve_schema import Json, ServeApplication
from serving.replica.config import Challenger, VersionRef
from tailorbird.registry.security_log import SecurityEvent, recorded
from tailorbird.storage.paths import TaskPaths


class DeployedConfiguration(BaseModel):
    """The part of an application's configuration that the security log records. It contains no secrets."""

    model_config = ConfigDict(frozen=True)

    code: str | None
    serving: Json
    """The recipe's section `serving`, without default values. Shares and versions are in the fields below."""
    champion: VersionRef
    challenger: Challenger | None
    others: dict[str, VersionRef]

    @classmethod
    def of(cls, application: ServeApplication) -> Self:
        """Return the configuration of an application."""
        replicas = replica_config(application)
        return cls(
            code=application.code,
            serving=application.args.get("serving", {}),
            champion=replicas.champion,
            challenger=replicas.challenger,
            others=replicas.others,
        )


def recorded_change(
    application: ServeApplication | None, *, former: ServeApplication | None
) -> AbstractContextManager[None]:
    """Return a context manager that records the change of an application, which the block makes, in the security log.

    `application` is None if it is removed, and `former` if it is new. Nothing is recorded if both are equal, or for an
    application of another project.
    """
    known = application or former
    task_uri = known.args.get("task_uri") if known else None
    if known is None or task_uri is None:
        return nullcontext()
    before, after = (DeployedConfiguration.of(each) if each else None for each in (former, application))
    if before == after:
        return nullcontext()
    event = SecurityEvent(
        kind="configuration",
        what=f"{known.name}: {'; '.join(_changes(before, after))}",
        before=before.model_dump(mode="json") if before else None,
        after=after.model_dump(mode="json") if after else None,
    )
    return recorded(event, registry=TaskPaths(task_uri).registry)


def _changes(before: DeployedConfiguration | None, after: DeployedConfiguration | None) -> Iterator[str]:
    """Yield the changes, one phrase each."""
    if after is None:
        yield "removed from service"
        return
    if before is None:
        yield f"served, with the champion {_name(after.champion)}"
    elif before.champion != after.champion:
        yield f"champion {_name(before.champion)} replaced by {_name(after.champion)}"
    former = before.challenger if before else None
    if former and (after.challenger is None or former.digest != after.challenger.digest):
        yield f"experiment with {_name(former)} ends"
    if after.challenger and after.challenger != former:
        starts = former is None or former.digest != after.challenger.digest
        shares = f"canary {after.challenger.canary:g}, shadow {after.challenger.shadow:g}"
        yield f"experiment with {_name(after.challenger)} {'starts' if starts else 'changes'}: {shares}"
    if before is None:
        return
    if before.code != after.code:
        yield "other code"
    settings = {
        name for name in {*before.serving, *after.serving} if before.serving.get(name) != after.serving.get(name)
    }
    if settings:
        yield f"changed settings: {', '.join(f'serving.{name}' for name in sorted(settings))}"
    if before.others != after.others:
        yield f"other versions: {', '.join(sorted(after.others)) or 'none'}"


def _name(version: VersionRef) -> str:
    return version.uri.rpartition("/")[2]
