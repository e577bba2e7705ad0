"""Every error code that leaves a process, with what it means to each transport.

A code that is not here cannot be raised: `AppError` refuses it.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """What a code means: gRPC status name, HTTP status, title for people, and whether the same request may succeed later."""

    grpc: str
    http: int
    title: str
    retryable: bool = False


CATALOGUE: dict[str, Entry] = {
    "invalid_request": Entry("INVALID_ARGUMENT", 400, "The request is not valid"),
    "invalid_data": Entry("INVALID_ARGUMENT", 422, "The data cannot be used"),
    "invalid_spec": Entry("INVALID_ARGUMENT", 422, "The specification does not fit"),
    "invalid_record": Entry("INVALID_ARGUMENT", 422, "A record does not fit the model"),
    "idempotency_key_reused": Entry("INVALID_ARGUMENT", 422, "The idempotency key belongs to another request"),
    "unauthenticated": Entry("UNAUTHENTICATED", 401, "The key is missing, unknown or revoked"),
    "forbidden": Entry("PERMISSION_DENIED", 403, "The role does not allow this"),
    "quota_exceeded": Entry("RESOURCE_EXHAUSTED", 403, "The plan's quota is used up"),
    "subscription_required": Entry("PERMISSION_DENIED", 403, "The listing is not subscribed to"),
    "not_found": Entry("NOT_FOUND", 404, "There is no such thing here"),
    "method_not_allowed": Entry("UNIMPLEMENTED", 405, "The path does not know this method"),
    "name_taken": Entry("ALREADY_EXISTS", 409, "The name is taken"),
    "conflict": Entry("FAILED_PRECONDITION", 409, "The state does not allow this"),
    "in_progress": Entry("ABORTED", 409, "The same request is still being worked on", retryable=True),
    "stale": Entry("ABORTED", 409, "Somebody else was faster", retryable=True),
    "allocation_ended": Entry("FAILED_PRECONDITION", 409, "The allocation is over"),
    "too_large": Entry("OUT_OF_RANGE", 413, "The content is too large"),
    "unsupported_media_type": Entry("INVALID_ARGUMENT", 415, "The format is not supported"),
    "rate_limited": Entry("RESOURCE_EXHAUSTED", 429, "Too many requests", retryable=True),
    "cancelled": Entry("CANCELLED", 499, "The caller went away"),
    "internal": Entry("INTERNAL", 500, "The platform made a mistake"),
    "unimplemented": Entry("UNIMPLEMENTED", 501, "This is not offered"),
    "upstream_failed": Entry("UNAVAILABLE", 502, "A part of the platform gave no usable answer", retryable=True),
    "unavailable": Entry("UNAVAILABLE", 503, "A part of the platform cannot be reached", retryable=True),
    "deadline_exceeded": Entry("DEADLINE_EXCEEDED", 504, "It took too long", retryable=True),
    "storage_full": Entry("UNAVAILABLE", 507, "The disk is full", retryable=True),
    # Of failed resources; never the status of a request.
    "loss_diverged": Entry("FAILED_PRECONDITION", 422, "The loss became infinite or not a number"),
    "out_of_memory": Entry("RESOURCE_EXHAUSTED", 422, "The memory did not suffice"),
    "process_failed": Entry("INTERNAL", 500, "The process ended unexpectedly"),
    "process_hung": Entry("DEADLINE_EXCEEDED", 500, "The process made no progress"),
    "time_limit": Entry("DEADLINE_EXCEEDED", 422, "The time limit was reached"),
}
