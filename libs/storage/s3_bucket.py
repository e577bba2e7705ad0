"""One bucket on a server of S3, by the minio package. Every method blocks, and raises AppError in words. Knows no event loop."""

import io
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import ParseError

import certifi
import structlog
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, ComposeSource, Filter
from minio.datatypes import Object, Part
from minio.error import MinioException, S3Error
from minio.helpers import check_bucket_name
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, Expiration, LifecycleConfig, Rule

from libs.errors import AppError, Invalid, NotFound, Transient
from libs.storage.s3_errors import errors_in_words
from libs.storage.s3_signing import presigned
from libs.storage.store import DirectUpload, StorageSettings, Stored, checked, digest_of, nothing_uploaded

log = structlog.get_logger()

INCOMING = "incoming/"
# Up to here an object is one request, and what is longer is sent in such parts.
PART_BYTES = 8 << 20
# A server answers a copy when it is done: no copy may take longer than its silence. 10,000 of them are 5 TiB, the most that S3 takes.
COPY_BYTES = 512 << 20
# Some servers count an object's age from the beginning of its upload; the shortest window of a sweep is a minute.
FRESH_SECONDS = 15.0
CONNECT_SECONDS = 5.0
LEFT_AFTER = timedelta(days=1)
# The most that S3 takes in one request.
DIRECT_BYTES = 5 << 30
CHECKSUM = "x-amz-checksum-sha256"
# What is left of an upload that was kept says which object it became.
ADOPTED = "adopted"
_UPLOAD = re.compile(r"[0-9a-f]{32}")
_RULE = Rule(
    ENABLED,
    rule_filter=Filter(prefix=INCOMING),
    rule_id="lepton-incoming",
    expiration=Expiration(days=LEFT_AFTER.days),
    abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=LEFT_AFTER.days),
)


class Bucket:
    """The bucket of a purpose, made when it is missing. Objects are named "ab/cdef…" by their digest."""

    def __init__(self, settings: StorageSettings, purpose: str, connections: int) -> None:
        keys = (settings.access_key, settings.secret_key.get_secret_value())
        if not all(keys):
            raise ValueError("an artifact store of S3 needs access_key and secret_key")
        self.endpoint, is_tls = _address(settings.url, {"s3": True, "s3+http": False})
        self.name = settings.bucket_prefix + purpose
        check_bucket_name(self.name, strict=True)
        pool = _Pool(
            connections,
            maxsize=connections,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=settings.read_seconds),
            retries=urllib3.Retry(
                3,
                read=1,
                # Steps of an upload, which are POSTs, may be asked twice too: see complete().
                allowed_methods=None,
                backoff_factor=0.3,
                status_forcelist=(500, 502, 503, 504),
                raise_on_status=False,
                respect_retry_after_header=False,
            ),
            cert_reqs="CERT_REQUIRED",
            ca_certs=settings.ca_file or certifi.where(),
            blocksize=1 << 18,
        )
        self._minio = Minio(self.endpoint, *keys, secure=is_tls, region=settings.region, http_client=pool)
        self._public: Minio | None = None
        self._public_url = ""
        self._signing = {"access_key": keys[0], "secret_key": keys[1], "region": settings.region}
        if settings.public_url:
            endpoint, is_tls = _address(settings.public_url, {"https": True, "http": False})
            # Signs only: nothing is ever sent through it.
            self._public = Minio(endpoint, *keys, secure=is_tls, region=settings.region)
            # Clients leave a scheme's own port out of the header that is signed.
            self._public_url = f"https://{endpoint.removesuffix(':443')}" if is_tls else f"http://{endpoint.removesuffix(':80')}"
        self._ready, self._preparing = threading.Event(), threading.Lock()

    @contextmanager
    def client(self, digest: str = "") -> Iterator[Minio]:
        """The client, once the bucket is there; what goes wrong in the block is said in words."""
        with errors_in_words(self.endpoint, self.name, digest):
            self._prepare()
            try:
                yield self._minio
            except S3Error as error:
                if error.code == "NoSuchBucket":
                    self._ready.clear()
                raise

    def put(self, data: bytes) -> Stored:
        """At most PART_BYTES, in one request."""
        digest = digest_of(data)
        with self.client() as client:
            client.put_object(self.name, name_of(digest), io.BytesIO(data), len(data), part_size=PART_BYTES)
        return Stored(digest, len(data))

    # The package's own upload of many parts reads files, keeps its threads when they break off, and has no way to look at the digest
    # before it completes: therefore its single steps.

    def begin(self, name: str) -> str:
        """The id of an upload in parts. Nothing shows before complete()."""
        with self.client() as client:
            return client._create_multipart_upload(self.name, name, {})

    def send(self, name: str, upload: str, number: int, data: bytes) -> Part:
        """A part, counted from 1; the server checks it against its SHA-256 or, on TLS, its MD5."""
        with self.client() as client:
            return Part(number, client._upload_part(self.name, name, data, None, upload, number))

    def complete(self, name: str, upload: str, parts: list[Part], size: int) -> None:
        """Makes one object of the parts."""
        with self.client() as client:
            # Asked twice, as an answer may get lost, the server has forgotten the upload; what counts is the object.
            with _suppress_code("NoSuchUpload"):
                client._complete_multipart_upload(self.name, name, upload, parts)
            self._require_whole(client, name, size)

    def abort(self, name: str, upload: str) -> None:
        """Drops the parts; an upload that is over is fine."""
        with self.client() as client, _suppress_code("NoSuchUpload"):
            client._abort_multipart_upload(self.name, name, upload)

    def copy(self, source: str, target: str, size: int, piece: int = COPY_BYTES) -> None:
        """On the server, by the piece; makes an object new when it is copied onto itself."""
        pieces = [ComposeSource(self.name, source, offset=start, length=min(piece, size - start)) for start in range(0, size, piece)]
        with self.client() as client:
            with _suppress_code("NoSuchUpload"):
                client.compose_object(self.name, target, pieces)
            self._require_whole(client, target, size)

    def refresh(self, name: str, size: int, older: float = FRESH_SECONDS) -> None:
        """Makes an object new that was put just now, where the server takes it for an old one."""
        with self.client() as client:
            found = client.stat_object(self.name, name)
        if _idle(found) > older:
            self.copy(name, name, size)

    def remove(self, name: str) -> None:
        """One that is not there is fine."""
        with self.client() as client:
            client.remove_object(self.name, name)

    def stat(self, digest: str) -> tuple[int, float]:
        """Size in bytes, and seconds since the last put by the server's clock."""
        name = name_of(digest)
        with self.client(digest) as client:
            found = client.stat_object(self.name, name)
        return found.size or 0, _idle(found)

    def discard(self, digest: str, idle_seconds: float) -> None:
        """The age is looked at right before."""
        try:
            _, idle = self.stat(digest)
        except NotFound:
            return
        if idle >= idle_seconds:
            self.remove(name_of(digest))

    def objects(self) -> Iterator[tuple[str, float]]:
        """Digests with their ages, fetched by the thousand. Anything else in the bucket is passed over."""
        with self.client() as client:
            for found in client.list_objects(self.name, recursive=True):
                head, _, tail = (found.object_name or "").partition("/")
                if len(head) == 2 and len(tail) == 62:
                    yield f"sha256:{head}{tail}", _idle(found)

    def download_url(self, digest: str, seconds: int, file_name: str, media_type: str) -> str | None:
        """Signed for GET of this object alone; None without a public address. Computed here, asks nobody."""
        name = name_of(digest)
        if self._public is None:
            return None
        headers: dict[str, str | list[str] | tuple[str]] = {
            "response-content-disposition": f"attachment; filename*=UTF-8''{quote(file_name, safe='')}",
            "response-content-type": media_type,
        }
        return self._public.get_presigned_url("GET", self.name, name, timedelta(seconds=seconds), headers)

    def upload_url(self, upload: str, digest: str, size: int, seconds: int) -> DirectUpload | None:
        """Signed for PUT of so many bytes of this digest, which the server itself checks."""
        checksum = _checksum(digest)
        if not self._public_url:
            return None
        if size < 1:
            raise Invalid("there is nothing to upload", code="invalid_data")
        if size > DIRECT_BYTES:
            words = f"a file of {size} bytes is too large for one request to the artifact store, which takes {DIRECT_BYTES >> 30} GiB"
            raise Invalid(words, code="too_large", meta={"limit_bytes": DIRECT_BYTES})
        headers = {CHECKSUM: checksum}
        url = f"{self._public_url}/{self.name}/{INCOMING}{upload}"
        # The bucket has to be there: no client can make it.
        with self.client():
            signed = presigned(
                "PUT", url, {**headers, "content-length": str(size)}, **self._signing, seconds=seconds, now=datetime.now(UTC)
            )
        return DirectUpload(upload, signed, headers)

    def adopt(self, upload: str, digest: str, size: int) -> Stored:
        """Copies an upload to the name of its digest, and leaves it empty: only this does, as no address is signed for no bytes."""
        checksum, incoming = _checksum(digest), INCOMING + upload
        if not _UPLOAD.fullmatch(upload):
            raise nothing_uploaded(upload, digest)
        found: Object | None = None
        with self.client() as client, _suppress_code("NoSuchKey"):
            found = client.stat_object(self.name, incoming, extra_headers={"x-amz-checksum-mode": "ENABLED"})
        told = (found.metadata or {}) if found else {}
        if found is None or (found.size == 0 and told.get(f"x-amz-meta-{ADOPTED}") != digest):
            raise nothing_uploaded(upload, digest)
        if found.size == 0:
            self.stat(digest)
            self.refresh(name_of(digest), size)
            return Stored(digest, size)
        if CHECKSUM not in told:
            words = f"the artifact store at {self.endpoint} does not check what is uploaded to it; send the file through the platform"
            raise AppError(words, code="unimplemented")
        if (found.size, told[CHECKSUM]) != (size, checksum):
            self.remove(incoming)
            raise Invalid(f"what was uploaded is not the {size} bytes of {digest}; upload it again", code="invalid_data")
        self.copy(incoming, name_of(digest), size)
        with self.client() as client:
            client.put_object(self.name, incoming, io.BytesIO(b""), 0, metadata={ADOPTED: digest})
        return Stored(digest, size)

    def clear_leftovers(self, older: timedelta = LEFT_AFTER) -> None:
        """Removes what uploads left that were killed."""
        with self.client():
            self._clear_leftovers(older)

    def _require_whole(self, client: Minio, name: str, size: int) -> None:
        """A server may fail after it has begun to answer 200."""
        with _suppress_code("NoSuchKey"):
            if client.stat_object(self.name, name).size == size:
                return
        raise Transient(f"the artifact store at {self.endpoint} did not keep what it took; try again")

    def _prepare(self) -> None:
        if self._ready.is_set():
            return
        with self._preparing:
            if self._ready.is_set():
                return
            if not self._minio.bucket_exists(self.name):
                self._make()
            try:
                self._set_rule()
                self._clear_leftovers(LEFT_AFTER)
            except (MinioException, ValueError, ParseError) as error:
                # Nothing that is wanted depends on it.
                log.warning("artifact_leftovers_kept", bucket=self.name, reason=str(getattr(error, "code", None) or type(error).__name__))
            self._ready.set()

    def _make(self) -> None:
        try:
            self._minio.make_bucket(self.name)
        except S3Error as error:
            if error.code == "BucketAlreadyOwnedByYou":
                return
            if error.code != "AccessDenied":
                raise
            message = f"the artifact store at {self.endpoint} has no bucket {self.name} and refuses this key to make it; make it there"
            raise Transient(message) from error

    def _set_rule(self) -> None:
        """Leftovers of killed processes go by the server's own hand, where it has one. An operator's rules are left alone."""
        try:
            if not self._minio.get_bucket_lifecycle(self.name):
                self._minio.set_bucket_lifecycle(self.name, LifecycleConfig([_RULE]))
        except S3Error as error:
            log.info("artifact_lifecycle_refused", bucket=self.name, reason=error.code)

    def _clear_leftovers(self, older: timedelta) -> None:
        before = datetime.now(UTC) - older
        for found in self._minio.list_objects(self.name, prefix=INCOMING, recursive=True):
            if found.object_name and found.last_modified and found.last_modified < before:
                self._minio.remove_object(self.name, found.object_name)
        for upload in self._minio._list_multipart_uploads(self.name).uploads:
            if upload.object_name and upload.upload_id and upload.initiated_time and upload.initiated_time < before:
                with _suppress_code("NoSuchUpload"):
                    self._minio._abort_multipart_upload(self.name, upload.object_name, upload.upload_id)


class _Pool(urllib3.PoolManager):
    """Sends bodies by the block: a time limit holds for one write to a socket, and eight megabytes may take their time."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **words: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        if isinstance(words.get("body"), bytes) and len(words["body"]) > 1 << 18:
            words["body"] = io.BytesIO(words["body"])
        return super().urlopen(method, url, redirect, **words)


def name_of(digest: str) -> str:
    """The object's name; raises Invalid on what is no digest."""
    digits = checked(digest)
    return f"{digits[:2]}/{digits[2:]}"


def _checksum(digest: str) -> str:
    """As S3 writes it."""
    return b64encode(bytes.fromhex(checked(digest))).decode()


@contextmanager
def _suppress_code(code: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code != code:
            raise


def _idle(found: Object) -> float:
    """By the clock of the server where it says the time. What has no age is new: nobody may discard it."""
    if found.last_modified is None:
        return 0.0
    now = datetime.now(UTC)
    with suppress(TypeError, ValueError):
        now = parsedate_to_datetime((found.metadata or {}).get("date"))  # type: ignore[arg-type]
    return max((now - found.last_modified).total_seconds(), 0.0)


def _address(url: str, schemes: dict[str, bool]) -> tuple[str, bool]:
    """ "host:port" and whether TLS is spoken. The URL is not repeated: it may hold a key, which is one of the faults."""
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname or parts.username is not None or parts.path.strip("/") or parts.query:
        forms = " or ".join(f"{scheme}://host:port" for scheme in schemes)
        raise ValueError(f"the address of the artifact store must be {forms}, without path or key")
    return parts.netloc, schemes[parts.scheme]
