"""Section `data` of a recipe."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from tailorbird.config.base import STORES, ConfigSection, with_scheme


class DataConfig(ConfigSection):
    train: str | tuple[str, ...]
    """URI, or URIs, of the training rows: a Parquet file or a folder of them, `s3://` or `file://`."""
    validation: str | None = None
    """URI of the validation rows; by default drawn from `train` by `split_by`, as are test rows without `test`."""
    test: str | None = None
    """URI of the test rows, which only the final evaluation reads."""
    validation_share: float = Field(default=0.13, gt=0, lt=1)
    """Share of `train` used for validation if `test` is set and `validation` is not."""
    text: str = "text"
    """Column with the text (string)."""
    label: str = "label"
    """Column with the label (string or integer)."""
    prompt: str = "prompt"
    """For `task: chat`, column with the prompt (string)."""
    completion: str = "completion"
    """For `task: chat`, column with the answer (string)."""
    messages: str | None = None
    """For `task: chat`, column with conversations instead, lists of `{role, content}` that end with an answer of the
    assistant; all its turns are trained on, the last one is evaluated."""
    system: str | None = None
    """For `task: chat`, system message of conversations that have none; by default the model's own."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """For `task: chat`, maximum tokens of an answer."""
    split_by: str | None = None
    """Column whose values must each be in one split only (document, patient, category)."""
    groups: tuple[str, ...] = ()
    """Columns stored with the predictions, to report results by group."""
    max_length: int = Field(default=64, ge=4, le=8192)
    """Maximum tokens of a text; for `task: chat`, of a training conversation with its answer."""
    stream_above_rows: int = Field(default=500_000, ge=1)
    """Maximum training rows in memory. Of more, this many at random are loaded for baselines and checks; all are
    tokenized once by Ray Data and streamed to the workers. `validation` and `test` must then be set."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on this many training rows, chosen at random."""
    max_validation_rows: int | None = Field(default=None, ge=1)
    """Use this many validation rows, chosen at random, the same in every run."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Use this many test rows, chosen at random, the same in every run."""

    @field_validator("train", "validation", "test")
    @classmethod
    def _names_a_store(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value == ():
            raise ValueError("give at least one URI")
        for uri in (value,) if isinstance(value, str) else value or ():
            with_scheme(uri, STORES)
        return value

    @model_validator(mode="after")
    def _validation_needs_test(self) -> Self:
        if self.validation is not None and self.test is None:
            raise ValueError("give `test` beside `validation`, or neither (then `train` is split)")
        return self

    @property
    def train_uris(self) -> tuple[str, ...]:
        return (self.train,) if isinstance(self.train, str) else self.train
