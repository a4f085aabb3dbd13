"""Score whole Parquet files."""
