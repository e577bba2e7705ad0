"""The data service: bytes in, immutable versions of typed Parquet out. Knows nothing of models, jobs or money."""
