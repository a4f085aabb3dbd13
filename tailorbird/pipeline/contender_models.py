"""Stage the contenders that were tuned elsewhere."""

import json

from tailorbird import storage
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.data.quality import listed
from tailorbird.data.task_data import recipe_task
from tailorbird.models.base_model import StagedModel, stage_base_model, stage_merged_adapter
from tailorbird.models.metadata import require_length, require_template
from tailorbird.pipeline.contenders import contender_errors

CHAT_ARCHITECTURES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of the architectures of transformers that can be contenders for chat."""

CLASSIFIER_ARCHITECTURES = ("ForSequenceClassification",)


def stage_models(recipe: Recipe) -> dict[str, StagedModel]:
    """Stage the models of `evaluation.contenders` that were tuned elsewhere, adapters merged;
    return them by name.

    Raises ContenderError for a model that cannot be fetched, does not suit the task of the recipe,
    or is too short for its rows.
    """
    models = {}
    for name, config in recipe.evaluation.contenders.items():
        if config.model is None:
            continue
        with contender_errors(name):
            if config.base_model is None:
                staged = stage_base_model(config.model, registry=recipe.registry)
            elif TASKS[recipe.task].has_classes:
                raise ValueError(
                    "an adapter of a classifier is not merged here; merge it into its base model "
                    "with peft, and name the whole model"
                )
            else:
                staged = stage_merged_adapter(
                    config.model, base_model=config.base_model, registry=recipe.registry
                )
            _require_suitable(staged.uri, recipe=recipe)
            models[name] = staged
    return models


def _require_suitable(uri: str, *, recipe: Recipe) -> None:
    """Raise ValueError unless a staged model is one for the task and the rows of a recipe."""
    config = json.loads(storage.read_bytes(f"{uri}/config.json"))
    architectures = config.get("architectures") or ()
    suffixes: tuple[str, ...] = CHAT_ARCHITECTURES
    if TASKS[recipe.task].has_classes:
        suffixes = CLASSIFIER_ARCHITECTURES
    if not any(name.endswith(suffixes) for name in architectures):
        raise ValueError(
            f"config.json of {uri} has the architectures {listed(architectures)}, but the task "
            f"{recipe.task} needs one that ends with {' or '.join(suffixes)}; name another model"
        )
    task = recipe_task(recipe)
    require_length(uri, max_length=recipe.data.max_length, task=task)
    require_template(uri, task=task)
