"""One process, one model version: raw records or tensors in, answers out. Knows no database, broker or other service."""
