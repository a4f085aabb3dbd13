"""Convert JSON Lines and CSV to Parquet."""
