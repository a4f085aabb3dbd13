"""Configuration of an external endpoint that is compared with the models of a run."""

import re
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, NonNegativeFloat, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tailorbird.config.base import SECRET, ConfigSection

KEY_REFERENCE = re.compile(r"env://[A-Za-z_][A-Za-z0-9_]*")
OTHER_SECRETS = ("AWS_", "RAY_", "TAILORBIRD_", "MLFLOW_")
"""Beginnings of the names of variables that are not API keys of endpoints, and must not be sent to
one."""
OTHER_SECRET = (
    f"variable for another service (names with {', '.join(OTHER_SECRETS)} at the beginning are)"
)
LIMITS = frozenset({"max_concurrency", "max_spend", "timeout_s"})
"""Fields of the config that do not affect an answer. A run can be resumed with other values of
them."""


class EndpointConfig(ConfigSection):
    model_config = ConfigDict(allow_inf_nan=False)

    url: str
    """Base URL of an OpenAI-compatible server, for example `https://host/v1`. Redirects are not
    followed, and `HTTPS_PROXY` is used with `https://` only."""
    model: str = Field(min_length=1)
    """Name of the model in the requests. Prefer a dated name: if the model that the server reports
    changes during a run, the run stops."""
    revision: str | None = Field(default=None, min_length=1, max_length=64)
    """Any text. Change it if the provider has replaced the model behind the same name: a new run
    then sends all requests again."""
    api_key: str | None = None
    """Environment variable with the API key, as `env://NAME`, set for the driver and, for a
    promoted endpoint, for replicas, `watch` and `reevaluate`. The key is never stored."""
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """Maximum number of output tokens of an answer, hidden ones of a reasoning model included. By
    default, `data.max_new_tokens` or what the longest label needs."""
    prices: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    """Prices of 1,000 input and 1,000 output tokens, in the currency of `evaluation.cost`. Without
    them, the cost of the endpoint cannot be assessed."""
    max_concurrency: int = Field(default=8, ge=1, le=1024)
    """Maximum number of requests at the same time."""
    max_spend: float | None = Field(default=None, gt=0)
    """Maximum price of all stored answers of this endpoint for the recipe's `name`; it requires
    `prices`. A request starts only if its largest possible price fits."""
    timeout_s: float = Field(default=60, gt=0, le=3600)
    """Number of seconds after which a request without a complete answer fails. Failed requests are
    sent again up to five times, with growing delays or those of `Retry-After`."""

    @field_validator("url", mode="before")
    @classmethod
    def _base_url(cls, url: Any) -> Any:
        if not isinstance(url, str):
            return url
        if "@" in url:
            raise _secret(
                "a user name or password in the URL is not allowed; set api_key to `env://NAME` "
                "instead"
            )
        try:
            parts = urlsplit(url)
            has_host = bool(parts.hostname) and parts.port != 0  # `port` may raise ValueError
        except ValueError:
            has_host = False
        if not has_host or not re.fullmatch(r"https?://[!-~]+", url) or set("?#") & set(url):
            raise ValueError(
                "give the base URL of the server without a query, for example `https://host/v1`"
            )
        return url.rstrip("/")

    @field_validator("api_key", mode="before")
    @classmethod
    def _only_a_reference(cls, key: Any) -> Any:
        if key is not None and not (isinstance(key, str) and KEY_REFERENCE.fullmatch(key)):
            raise _secret(
                "the key itself is not allowed in a recipe, because recipes are stored; put it "
                "into an environment variable, and give the variable's name as `env://NAME`"
            )
        if key is not None and is_other_secret(key.removeprefix("env://")):
            raise ValueError(
                f"{key} is a {OTHER_SECRET}; give the variable with the API key of the endpoint"
            )
        return key

    @model_validator(mode="after")
    def _prices_fit(self) -> Self:
        if self.max_spend is not None and self.prices is None:
            raise ValueError("max_spend requires prices; set prices, or remove max_spend")
        return self


def is_other_secret(variable: str) -> bool:
    """Return whether a variable is reserved for other services, so that its content is not sent to
    an endpoint."""
    return variable.startswith(OTHER_SECRETS)


def _secret(message: str) -> PydanticCustomError:
    """Return an error of the type `SECRET`, whose input is not shown."""
    return PydanticCustomError(SECRET, "{message}", {"message": message})
