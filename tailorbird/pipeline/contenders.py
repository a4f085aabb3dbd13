"""The contenders that a recipe names: what exists already, checked before anything else runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import listed
from tailorbird.evaluation.baselines.baseline import CHAMPION, MAJORITY
from tailorbird.evaluation.verdict.decide import ANCHOR, CANDIDATE, HYBRID, INCUMBENT
from tailorbird.registry.kinds import KINDS
from tailorbird.registry.versions import ModelVersion, read_version

RESERVED = frozenset({*KINDS, ANCHOR, CANDIDATE, CHAMPION, HYBRID, INCUMBENT, MAJORITY})
"""Names of other models of a comparison, which no contender can have."""


class ContenderError(ValueError):
    """A model that the recipe names in `evaluation.contenders` cannot be compared."""


def read_contenders(recipe: Recipe) -> dict[str, ModelVersion]:
    """Return the versions that the recipe names in `evaluation.contenders`, by name.

    Raises ContenderError if one does not exist, was changed, is for another kind of task, or is not
    a version that a run evaluated as one model.
    """
    contenders = {}
    for name, config in recipe.evaluation.contenders.items():
        with contender_errors(name):
            _require_free_name(name)
            if config.version is not None:
                version = read_version(config.version.rstrip("/"))
                _require_one_model(version)
                require_task(version, recipe=recipe)
                contenders[name] = version
    return contenders


def compared_versions(recipe: Recipe) -> dict[str, ModelVersion | None]:
    """Return `read_contenders`, with None for each model that was tuned elsewhere, whose training
    rows are unknown."""
    contenders = recipe.evaluation.contenders.items()
    elsewhere = [name for name, config in contenders if config.model is not None]
    return dict.fromkeys(elsewhere) | read_contenders(recipe)


def require_same_classes(
    contenders: Mapping[str, ModelVersion], *, classes: tuple[str, ...]
) -> None:
    """Raise ContenderError if a version has other classes than the training rows."""
    for name, version in contenders.items():
        with contender_errors(name):
            require_classes(version, classes=classes)


def require_task(version: ModelVersion, *, recipe: Recipe) -> None:
    """Raise ValueError if a version is for another kind of task than the recipe."""
    if version.task != recipe.task:
        raise ValueError(
            f"{version.uri} is for the task {version.task}, but the recipe has the task "
            f"{recipe.task}; use the task of the version"
        )


def require_classes(version: ModelVersion, *, classes: tuple[str, ...]) -> None:
    """Raise ValueError if a version has other classes than the training rows."""
    if version.classes == classes:
        return
    only = {
        "only the version has": set(version.classes) - set(classes),
        "only the training rows have": set(classes) - set(version.classes),
    }
    details = "; ".join(f"{subject} {listed(names)}" for subject, names in only.items() if names)
    raise ValueError(
        f"{version.uri} and the training rows have different classes ({details}), so their scores "
        "cannot be compared; use the classes of the version in the rows"
    )


def _require_free_name(name: str) -> None:
    if name in RESERVED:
        raise ValueError("another model of the comparison has this name; choose another name")


def _require_one_model(version: ModelVersion) -> None:
    if version.hybrid is not None:
        parts = " or ".join(part.uri for part in version.hybrid.parts)
        raise ValueError(f"{version.uri} is a hybrid; name one of its parts, {parts}")


@contextmanager
def contender_errors(name: str) -> Iterator[None]:
    """Raise an invalid contender as ContenderError with its name."""
    try:
        yield
    except ValueError as error:
        raise ContenderError(f"evaluation.contenders.{name}: {error}") from None
