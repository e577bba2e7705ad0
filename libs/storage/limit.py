"""A bound on a stream of bytes."""

from collections.abc import AsyncGenerator, AsyncIterable

from libs.errors import Invalid


async def limited(chunks: AsyncIterable[bytes], limit: int | None) -> AsyncGenerator[bytes, None]:
    """The same chunks; raises Invalid (too_large) as soon as there are more than `limit` bytes."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if limit is not None and size > limit:
            raise Invalid(f"the content has more than {limit} bytes; send less", code="too_large", meta={"limit": limit})
        yield chunk
