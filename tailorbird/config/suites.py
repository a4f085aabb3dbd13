"""Suites of the gate `evaluation.gates.suites`: prompts that candidate and incumbent answer in
addition to the test."""

from pydantic import Field, field_validator

from tailorbird.config.base import STORES, ConfigSection

BUILTIN = "builtin://"
BUILTIN_SUITES = ("general", "refusals", "over-refusals", "bias", "extraction")
EXTRACTION = f"{BUILTIN}extraction"
LIKELIHOOD_METRICS = ("forced_choice", "same_choice")  # metrics of the log-likelihoods of options
WITHOUT_EXPECTATION = ("refusal", "no_refusal", "same_choice")
SUITE_METRICS = (
    "exact_match",
    "token_f1",
    "rouge_l",
    "contains",
    "not_contains",
    "numeric",
    "json_fields",
    "regex",
    "choice",
    "refusal",
    "no_refusal",
    *LIKELIHOOD_METRICS,
)
"""Metrics of the column `metric` of a suite."""


class SuiteConfig(ConfigSection):
    uri: str
    """The suite: Parquet on `s3://` or `file://` with the columns `prompt`, `metric` and
    `expectation`, or `builtin://` with `general`, `refusals`, `over-refusals`, `bias` or
    `extraction`."""
    max_loss: float = Field(default=0.07, gt=0, lt=1)
    """Largest loss of the mean score on the suite against the incumbent, as a share (0.07 is seven
    points)."""

    @field_validator("uri")
    @classmethod
    def _known_suite(cls, uri: str) -> str:
        if uri.startswith(BUILTIN):
            known = uri.removeprefix(BUILTIN) in BUILTIN_SUITES
        else:
            known = uri.startswith(STORES)
        if not known:
            allowed = ", ".join(f"{BUILTIN}{name}" for name in BUILTIN_SUITES)
            raise ValueError(
                f"{uri!r} is not a suite; allowed: {allowed}, or a URI on {' or '.join(STORES)}"
            )
        return uri.rstrip("/")
