"""From what a hospital exports to timelines of codes: readers, grouping by patient, vocabulary, metrics, baselines.

Knows no weights and no torch. pyarrow is asked for only where a Parquet file is read.
"""
