"""The reference page says what the schema says."""

from pathlib import Path

from tailorbird.config.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "recipe.md"


def test_the_reference_page_is_what_the_schema_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run `python -m tailorbird.config.reference > docs/recipe.md`"
    )


def test_every_field_of_the_recipe_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert not [row for row in rows if row.endswith(("| None |", "|  |"))]
