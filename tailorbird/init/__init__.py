"""Draft a recipe from Parquet files."""
