"""Decisions of the data service that need nothing but the standard library."""
