"""The external endpoint of a version, which answers in its place."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from tailorbird.config.endpoint import KEY_REFERENCE, LIMITS, EndpointConfig


class Endpoint(BaseModel):
    """An OpenAI-compatible endpoint, as evaluated and served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str  # base URL; requests are sent to `<url>/chat/completions`
    model: str
    revision: str | None = None
    """`revision` in the recipe; answers of another revision are not used."""
    api_key: str | None = Field(default=None, pattern=f"^{KEY_REFERENCE.pattern}$")
    """Reference to the environment variable with the API key, `env://NAME`. The key itself is never
    stored."""
    prices: tuple[float, float] | None = None  # of 1,000 input and 1,000 output tokens
    max_spend: float | None = None
    """`max_spend` in the recipe when it was registered. It limits later runs whose recipe
    does not name it."""
    reported_model: str | None = None
    """Model that the endpoint named in the answers of the evaluation; None before the first
    answer."""
    omitted: tuple[str, ...] = ()
    """Parameters that the endpoint refused on validation. Later requests, also of a service, are
    sent without them."""

    @classmethod
    def from_config(cls, config: EndpointConfig) -> Self:
        """Return the endpoint of a recipe, before its first answer. `max_tokens` is part of a
        version's `Prompting`."""
        return cls(**config.model_dump(exclude={"max_tokens", *(LIMITS - {"max_spend"})}))

    def price(self, *, input_tokens: int | None, output_tokens: int | None) -> float | None:
        """Return the price of an answer, or None if a price or a number of tokens is unknown."""
        if self.prices is None or input_tokens is None or output_tokens is None:
            return None
        return (input_tokens * self.prices[0] + output_tokens * self.prices[1]) / 1000
