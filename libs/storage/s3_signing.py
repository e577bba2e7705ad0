"""Addresses that are keys: "AWS Signature Version 4, query parameters". The minio package signs the host alone; here headers are, too."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"


def presigned(
    method: str, url: str, headers: Mapping[str, str], *, access_key: str, secret_key: str, region: str, seconds: int, now: datetime
) -> str:
    """`url` (quoted, without a query) with a signature: good for `seconds` from `now`, in UTC, and with these headers as they are."""
    parts = urlsplit(url)
    day, time = f"{now:%Y%m%d}", f"{now:%Y%m%dT%H%M%SZ}"
    scope = f"{day}/{region}/s3/aws4_request"
    signed = dict(sorted({"host": parts.netloc, **{name.lower(): value.strip() for name, value in headers.items()}}.items()))
    query = _encoded(
        {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{access_key}/{scope}",
            "X-Amz-Date": time,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": ";".join(signed),
        }
    )
    lines = [f"{name}:{value}" for name, value in signed.items()]
    request = "\n".join([method, parts.path, query, *lines, "", ";".join(signed), "UNSIGNED-PAYLOAD"])
    words = "\n".join([_ALGORITHM, time, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{secret_key}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = _hmac(key, word)
    return f"{url}?{query}&X-Amz-Signature={_hmac(key, words).hex()}"


def _encoded(query: Mapping[str, str]) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))


def _hmac(key: bytes, word: str) -> bytes:
    return hmac.new(key, word.encode(), hashlib.sha256).digest()
