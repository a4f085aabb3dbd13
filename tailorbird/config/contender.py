"""A model that exists already and is compared as it is: an entry of `evaluation.contenders`."""

from typing import Self

from pydantic import model_validator

from tailorbird.config.base import ConfigSection
from tailorbird.config.model_uri import ModelUri


class ContenderConfig(ConfigSection):
    version: str | None = None
    """URI of a version of another task of this kind, with the same classes:
    `<registry>/<task>/versions/<name>`. Give either `version` or `model`."""
    model: ModelUri | None = None
    """URI of weights that were tuned elsewhere, as the top-level `base_model`: a chat model, which
    gets the prompt of the recipe, or a sequence classifier of transformers with the same labels."""
    base_model: ModelUri | None = None
    """(chat only) Set it if `model` is a LoRA adapter of PEFT: the model that it was tuned on. The
    adapter is merged into it once."""

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        if (self.version is None) == (self.model is None):
            raise ValueError("give either version or model")
        if self.base_model is not None and self.model is None:
            raise ValueError("base_model is that of an adapter; set model too, or remove it")
        return self
