"""Draft a recipe from data."""
