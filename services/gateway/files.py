"""Artifacts as HTTP bodies: lengths, entity tags, and single ranges (RFC 9110, section 14)."""

import re
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from lepton.common.v1 import resource_pb2
from libs.errors import AppError
from libs.storage import ArtifactStore
from services.gateway.problems import Problems

# Less is sent from here sooner than a client has found the store.
DIRECT_BYTES = 1 << 20
# Within this time a client begins; how long it then takes is its own affair.
DIRECT_SECONDS = 300
REDIRECT_HEADER = "x-lepton-redirect"
DIRECT = f"A large file may be answered with its address in the artifact store, good for minutes; `{REDIRECT_HEADER}: no` asks for none."
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


async def send_artifact(
    request: Request, store: ArtifactStore, artifact: resource_pb2.Artifact, file_name: str, media_type: str, problems: Problems
) -> Response:
    """All of the bytes or the range that was asked for, or where clients may fetch them; raises NotFound when the store lacks them."""
    size = await store.stat(artifact.digest)
    tag = f'"{artifact.digest}"'
    headers = {
        "etag": tag,
        "accept-ranges": "bytes",
        # Bytes under a digest never change, but who may see them does.
        "cache-control": "private, no-cache",
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file_name, safe='')}",
    }
    if _names(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    first, last = 0, size - 1
    wanted = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if wanted and _is_range(wanted) and request.headers.get("if-range", tag) == tag:
        found = _resolve(wanted[1], wanted[2], size)
        if found is None:
            error = AppError(f"the file has {size} bytes; the range begins behind its end", code="invalid_request")
            return problems.response(request.scope, error, status=416, headers={"content-range": f"bytes */{size}"})
        first, last = found
        headers["content-range"] = f"bytes {first}-{last}/{size}"
    if size > DIRECT_BYTES and _may_redirect(request):
        url = await store.download_url(artifact.digest, seconds=DIRECT_SECONDS, file_name=file_name, media_type=media_type)
        if url is not None:
            # The address is as good as a key.
            return Response(status_code=307, headers={"location": url, "etag": tag, "cache-control": "no-store"})
    length = last - first + 1
    headers["content-length"] = str(length)
    status = 206 if "content-range" in headers else 200
    if request.method == "HEAD" or length == 0:
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(store.open(artifact.digest, offset=first, length=length), status, headers, media_type)


def _may_redirect(request: Request) -> bool:
    """The store does not know our entity tags, and its address is good for GET alone."""
    headers = request.headers
    return request.method == "GET" and "if-range" not in headers and headers.get(REDIRECT_HEADER, "").strip().lower() != "no"


def _is_range(match: re.Match[str]) -> bool:
    """What is none is to be ignored."""
    first, last = match.groups()
    return bool(first or last) and not (first and last and int(last) < int(first))


def _resolve(first: str, last: str, size: int) -> tuple[int, int] | None:
    """First and last byte; None where there is no such byte. No first byte means: the last so many."""
    if not first:
        count = min(int(last), size)
        return (size - count, size - 1) if count else None
    begin, end = int(first), min(int(last), size - 1) if last else size - 1
    return (begin, end) if begin < size else None


def _names(header: str, tag: str) -> bool:
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in header.split(","))
