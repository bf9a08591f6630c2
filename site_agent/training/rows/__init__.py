"""Data files as rows, a format a file: JSONL, CSV, Parquet. Knows neither what a row means nor a tensor.

A file is looked at once from its beginning to its end, and afterwards single rows are read by their place. Neither
holds more of it in memory than a row or, in Parquet, a row group.
"""
