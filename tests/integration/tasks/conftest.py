"""The server that these tests stand on."""

from tests.redis import redis

__all__ = ["redis"]
