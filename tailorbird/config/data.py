"""Section `data` of a recipe."""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from tailorbird.config.base import STORES, ConfigSection, with_scheme
from tailorbird.config.formats.response_format import StructuredFormat
from tailorbird.config.prompt import TEXT, require_text

MAX_ROWS_IN_MEMORY = 500_000
"""Maximum number of training rows in memory. More are tokenized once by Ray tasks and streamed from
S3."""


class DataConfig(ConfigSection):
    train: str | tuple[str, ...]
    """URI, or list of URIs, of the training rows: a Parquet file or a folder of Parquet files. More
    than 500,000 rows are streamed, which requires `validation` and `test`."""
    validation: str | None = None
    """URI of the validation rows, on which configurations are compared. Requires `test`. By
    default, they are split off `train`."""
    test: str | None = None
    """URI of the test rows. The final test evaluates the candidate and the incumbent on them. By
    default, `train` is split into 72% training, 11% validation and 17% test rows."""
    validation_share: float = Field(default=0.13, gt=0, lt=1)
    """Share of the rows of `train` that become validation rows if `test` is set and `validation` is
    not."""
    text: str = "text"
    """(classification only) Column with the input text (string)."""
    label: str = "label"
    """(classification only) Column with the label (string or integer)."""
    prompt: str = "prompt"
    """(chat only) Column with the prompt (string)."""
    completion: str = "completion"
    """(chat only) Column with the answer to the prompt (string)."""
    messages: str | None = None
    """(chat only) Column with lists of `{role, content}` that end with an answer, used instead of
    `prompt` and `completion`. An assistant turn with `weight: 0` is not trained on."""
    system: str | None = None
    """Chat: system message for conversations without one; by default, the model's chat template
    decides. Classification: system message to an endpoint; by default, it asks for a label."""
    template: str = TEXT
    """(classification only) User message to an endpoint, with `{text}`, also in examples.
    `{labels}` here or in `system` becomes the list of labels; without it, a request for one of
    them is added to `system`."""
    label_descriptions: dict[str, str] = Field(default_factory=dict)
    """(classification only) Descriptions by label. They are in the list of labels for an endpoint
    and in the report, and `zero_shot` embeds them if this is better on validation."""
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    """(chat only) Maximum number of tokens that the model generates for an answer. Raise it if the
    answers in the data are longer."""
    response_format: StructuredFormat | None = None
    """(chat only) Format of generated answers: `{type: json_object}`, `{type: json_schema,
    json_schema: {schema: ...}}` or `{type: choice, choice: [...]}`. It does not apply to suites and
    `nearest`. By default, any text."""
    split_by: str | None = None
    """Column with an identifier, such as a document or patient id. Rows with the same value go to
    the same split and count as dependent. By default, only copies do."""
    groups: tuple[str, ...] = ()
    """Columns that group the rows, such as language or sex. Results are reported by group, and the
    gate `groups` checks each group."""
    max_length: int = Field(default=64, ge=4)
    """Maximum number of tokens of a text or of a training conversation with its answer, up to the
    base model's context. Longer inputs are truncated."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Number of training rows for fine-tuning, drawn at random, to try a recipe quickly. Baselines
    still learn from all rows. By default, all."""
    max_validation_rows: int | None = Field(default=None, ge=1)
    """Number of validation rows to use, drawn at random and the same in every run. By default,
    all."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Number of test rows to use, drawn at random and the same in every run. By default, all. Fewer
    rows make the test faster and less powerful."""

    @field_validator("label_descriptions", mode="before")
    @classmethod
    def _labels_are_texts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {str(label) if type(label) is int else label: text for label, text in given.items()}

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
            raise ValueError("`validation` requires `test`; set both, or neither to split `train`")
        return self

    @field_validator("template")
    @classmethod
    def _template_has_the_text(cls, template: str) -> str:
        require_text(template)
        return template

    @property
    def train_uris(self) -> tuple[str, ...]:
        if isinstance(self.train, str):
            return (self.train,)
        return self.train
