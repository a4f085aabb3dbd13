"""Base class of values that are stored as JSON files."""

from pydantic import BaseModel, ConfigDict, field_validator

FORMAT = 1  # the format that this version of Tailorbird writes, and the newest that it reads


class StoredModel(BaseModel):
    """A frozen value that rejects unknown fields and records its storage format."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    format: int = FORMAT

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: int) -> int:
        if not 1 <= value <= FORMAT:
            raise ValueError(
                f"this {cls.__name__} has format {value}, but this version of Tailorbird reads "
                f"formats up to {FORMAT}; use the version that wrote it, or a newer one"
            )
        return value
