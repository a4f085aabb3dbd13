"""Regression suites: prompts with an expectation, read from Parquet files or from the files of this
package."""
