"""A model that exists already and is compared as it is: an entry of `evaluation.contenders`."""

from typing import Self

from pydantic import model_validator

from tailorbird.config.base import ConfigSection
from tailorbird.config.endpoint import EndpointConfig
from tailorbird.config.model_uri import ModelUri
from tailorbird.config.prompt import PromptConfig


class ContenderConfig(ConfigSection):
    """Give one of `version`, `model` and `endpoint`."""

    version: str | None = None
    """URI of a version of another task of this kind, with the same classes:
    `<registry>/<task>/versions/<name>`."""
    model: ModelUri | None = None
    """URI of weights that were tuned elsewhere, as the top-level `base_model`: a chat model, which
    gets the prompt of the recipe, or a sequence classifier of transformers with the same labels."""
    base_model: ModelUri | None = None
    """(chat only) Set it if `model` is a LoRA adapter of PEFT: the model that it was tuned on. The
    adapter is merged into it once."""
    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint. Its prompt is the best on validation of: no example,
    `prompt_shots` examples, and retrieved examples."""
    prompt: PromptConfig = PromptConfig()
    """Prompt of `endpoint`, if it differs from that of section `data`."""

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        named = [self.version, self.model, self.endpoint]
        if len(named) - named.count(None) != 1:
            raise ValueError("give one of version, model and endpoint")
        if self.base_model is not None and self.model is None:
            raise ValueError("base_model is that of an adapter; set model too, or remove it")
        if self.prompt != PromptConfig() and self.endpoint is None:
            raise ValueError("prompt is that of an endpoint; set endpoint too, or remove it")
        return self
