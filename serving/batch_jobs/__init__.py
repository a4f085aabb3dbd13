"""Batch jobs, which score Parquet files."""
