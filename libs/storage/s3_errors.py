"""What a server of S3, or the way to it, says no with, in words: its codes stay, its messages and addresses do not."""

from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree.ElementTree import ParseError

from minio.error import MinioException, S3Error
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, ProtocolError, SSLError, TimeoutError

from libs.errors import AppError, NotFound, Transient

_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "QuotaExceeded"}
_KEY = {"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "XAdminUserNotFound"}
_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "Redirect", "InvalidRegion"}


@contextmanager
def errors_in_words(endpoint: str, bucket: str, digest: str = "") -> Iterator[None]:
    """Raises AppError for whatever the package or urllib3 raises; `digest` is the object that is asked for."""
    try:
        yield
    except S3Error as error:
        raise _refusal(error, f"the artifact store at {endpoint}", bucket, digest) from error
    except HTTPError as error:
        raise Transient(f"the artifact store at {endpoint} {_silence(error)}; try again") from error
    except (MinioException, ValueError, ParseError) as error:
        raise Transient(f"what answers at {endpoint} does not speak S3, or is not well; check the artifact store's address") from error


def _refusal(error: S3Error, store: str, bucket: str, digest: str) -> AppError:
    code, status = error.code or "", error.response.status
    if code == "NoSuchKey" and digest:
        return NotFound(f"there is no object {digest}")
    if code in _FULL or status == 507:
        return AppError(f"{store} is full ({code}); free some space and try again", code="storage_full")
    if code == "RequestTimeTooSkewed":
        return Transient(f"{store} has another time than this machine; set the clocks")
    if code in _REGION:
        return Transient(f"{store} is in another region ({code}); check the setting `region`")
    if code == "NoSuchBucket":
        return Transient(f"{store} has no bucket {bucket} any more; try again, and it is made")
    if code in _KEY or status in (401, 403):
        return Transient(
            f"{store} refuses the key ({code}); check access_key and secret_key, and that it may list, read, write and delete in {bucket}"
        )
    return Transient(f"{store} answered {code or status}; try again")


def _silence(error: HTTPError) -> str:
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    match reason:
        case SSLError():
            return "shows no certificate that is trusted here; check its address and the setting `ca_file`"
        case ConnectTimeoutError() | NewConnectionError():
            return "cannot be reached"
        case TimeoutError():
            return "does not answer in time"
        case ProtocolError():
            return "broke the connection"
    return f"cannot be spoken with ({type(reason).__name__})"
