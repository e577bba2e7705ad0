"""Predicts the rows of Parquet files, in a process of its own: it knows a folder, and neither database nor network."""
