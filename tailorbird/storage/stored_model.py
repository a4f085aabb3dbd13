"""Base class of the values that are stored as JSON files."""

from pydantic import BaseModel, ConfigDict, field_validator

FORMAT = 1  # the newest format that this version of Tailorbird reads and the one that it writes


class StoredModel(BaseModel):
    """A frozen value, closed to unknown fields, that says which format it is stored in."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    format: int = FORMAT

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: int) -> int:
        if not 1 <= value <= FORMAT:
            raise ValueError(
                f"this {cls.__name__} has format {value}, and this version of Tailorbird reads up to {FORMAT}; "
                "use the version that wrote it, or a newer one"
            )
        return value
