"""Reads one object of a bucket from here to there, goes on where a connection broke, and checks what it read whole. Blocks."""

import hashlib
import re

import urllib3
from minio.error import S3Error
from urllib3.exceptions import HTTPError, ProtocolError

from libs.errors import AppError, Transient
from libs.storage.s3_bucket import Bucket, name_of
from libs.storage.s3_errors import errors_in_words

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# In a row, without a byte between them.
_BREAKS = 3


class Reader:
    """`read` until it answers b"". For one thread at a time."""

    def __init__(self, bucket: Bucket, digest: str, offset: int = 0, length: int | None = None) -> None:
        self._bucket, self._digest, self._name = bucket, digest, name_of(digest)
        self._at, self._end = offset, None if length is None else offset + length
        self._size: int | None = None
        self._sha256 = hashlib.sha256() if offset == 0 else None
        self._response: urllib3.BaseHTTPResponse | None = None

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`. Raises AppError (invalid_data) instead of the last of them where the object is damaged."""
        breaks = 0
        while True:
            if self._response is None and not self._open():
                return b""
            try:
                data = self._next(size)
            except HTTPError as error:
                self.close()
                breaks += 1
                if breaks == _BREAKS:
                    with errors_in_words(self._bucket.endpoint, self._bucket.name):
                        raise error
            else:
                self._check(data)
                return data

    @property
    def is_open(self) -> bool:
        return self._response is not None

    def close(self) -> None:
        """Also before the end."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _open(self) -> bool:
        """False where there is nothing more to read."""
        if self._end is not None and self._at >= self._end:
            if self._size is None:
                self._size, _ = self._bucket.stat(self._digest)
            return False
        with self._bucket.client(self._digest) as client:
            try:
                response = client.get_object(self._bucket.name, self._name, self._at, self._end - self._at if self._end else 0)
            except S3Error as error:
                if error.code != "InvalidRange":
                    raise
                return False
        self._response = response
        self._size = self._total(response)
        self._end = self._size if self._end is None else min(self._end, self._size)
        return self._at < self._end

    def _total(self, response: urllib3.BaseHTTPResponse) -> int:
        """Size of the object; raises Transient where the answer is not the range that was asked for."""
        if self._at == 0 and self._end is None:
            return int(response.headers["content-length"])
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if not found or int(found[1]) != self._at:
            self.close()
            raise Transient(f"the artifact store at {self._bucket.endpoint} answered with another range than the one asked for; try again")
        return int(found[2])

    def _next(self, size: int) -> bytes:
        assert self._response is not None
        data = self._response.read(size)
        if not data:
            raise ProtocolError("the answer ended early")
        self._at += len(data)
        if self._at == self._end:
            self.close()
        return data

    def _check(self, data: bytes) -> None:
        if self._sha256 is None:
            return
        self._sha256.update(data)
        if self._at == self._size and f"sha256:{self._sha256.hexdigest()}" != self._digest:
            raise AppError(f"the object {self._digest} is damaged in the artifact store; put it there again", code="invalid_data")
