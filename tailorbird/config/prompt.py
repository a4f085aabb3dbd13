"""The prompt that a recipe gives to endpoints, and its placeholders."""

import re
from typing import Self

from pydantic import model_validator

from tailorbird.config.base import ConfigSection

TEXT = "{text}"
LABELS = "{labels}"
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")


class PromptConfig(ConfigSection):
    system: str | None = None
    """System message; in a chat task, for conversations without one. By default,
    `data.system`."""
    template: str | None = None
    """User message, with `{text}`, also in examples. By default, `data.template`."""

    @model_validator(mode="after")
    def _template_has_the_text(self) -> Self:
        if self.template is not None:
            require_text(self.template)
        return self


def require_text(template: str) -> None:
    """Raise ValueError for a template without a row's text."""
    if TEXT not in template:
        raise ValueError(f"`template` must contain {TEXT}, which becomes the text of a row")


def require_placeholders(*, system: str | None, template: str | None, section: str) -> None:
    """Raise ValueError for a placeholder that a prompt for classification cannot have.

    `section` is the path of its fields in the recipe.
    """
    allowed = {"system": (system, (LABELS,)), "template": (template, (TEXT, LABELS))}
    for name, (message, known) in allowed.items():
        for placeholder in _PLACEHOLDER.findall(message or ""):
            if placeholder not in known:
                raise ValueError(
                    f"{section}.{name} has the placeholder {placeholder}; allowed: "
                    f"{', '.join(known)}. Other words must not be in braces"
                )
