"""What a disk says of bytes, in words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from libs.errors import AppError


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises AppError (storage_full, unavailable) for what an operator can mend; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AppError("the disk that holds the artifacts is full; free some space and try again", code="storage_full") from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise AppError("the artifact store cannot be written to; check its folder's owner", code="unavailable") from error
        raise
