"""The main job, twice, on real data: what `make demo` shows."""

from services.standalone.demo.run import main

__all__ = ["main"]
