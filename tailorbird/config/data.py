"""Section `data` of a recipe."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from tailorbird.config.base import STORES, ConfigSection, with_scheme


class DataConfig(ConfigSection):
    train: str | tuple[str, ...]
    """URI of the training rows, or several: a Parquet file or a folder of them, `s3://` or `file://`."""
    validation: str | None = None
    """URI of the validation rows. Left out, they are drawn from `train` by `split_by`; without `test`, test too."""
    test: str | None = None
    """URI of the test rows, which nothing but the final evaluation reads."""
    validation_share: float = Field(default=0.13, gt=0, lt=1)
    """Share of `train` that chooses where `test` is given and `validation` is not: fewer choose, more train."""
    text: str = "text"
    """Column with the text (string)."""
    label: str = "label"
    """Column with the label (string or integer)."""
    prompt: str = "prompt"
    """For `task: chat`, column with what is asked (string)."""
    completion: str = "completion"
    """For `task: chat`, column with the answer (string)."""
    messages: str | None = None
    """For `task: chat`, column with whole conversations instead, lists of `{role, content}` that end with the
    assistant's answer; every turn of the assistant is learned, the last is what a model is judged by."""
    system: str | None = None
    """For `task: chat`, the system message put before conversations that have none; without it, the model's own."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """For `task: chat`, tokens of an answer at most."""
    split_by: str | None = None
    """Column whose values must not stand in two splits (document, patient, category)."""
    groups: tuple[str, ...] = ()
    """Columns carried into the predictions, to read results by group."""
    max_length: int = Field(default=64, ge=4, le=8192)
    """Tokens kept of a text; for `task: chat`, of a training conversation with its answer."""
    stream_above_rows: int = Field(default=500_000, ge=1)
    """Training rows that are held in memory at most. Of more, this many (a random part) are held for the pretrained
    rungs and the checks; all are encoded once on all of the cluster's cores, by Ray Data, and streamed to the workers.
    `validation` and `test` must then be named."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Train on a random part of the training rows, of this size."""
    max_validation_rows: int | None = Field(default=None, ge=1)
    """Choose on a random part of the validation rows, of this size, the same at every run."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Judge on a random part of the test rows, of this size, the same at every run."""

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
