"""What can go wrong in a run, as an error event: a code of the catalogue and words that say what to change. Loads no torch."""

from typing import Any

from libs.errors import AppError

_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "DefaultCPUAllocator")


def describe(error: BaseException) -> dict[str, Any] | None:
    """Fields of the error event; None for what is no answer to the user (a crash, to be tried again)."""
    if isinstance(error, AppError):
        errors = [{"field": v.field, "message": v.message, "suggestions": list(v.suggestions)} for v in error.errors]
        return {"code": error.code, "detail": error.detail, "errors": errors}
    if is_out_of_memory(error):
        detail = (
            "the memory did not suffice; lower batch_size (lbfgs: use adamw, which works in batches), make the model smaller, "
            "use fewer features, or ask for more memory"
        )
        return {"code": "out_of_memory", "detail": detail, "errors": []}
    return None


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign.lower() in str(error).lower() for sign in _NO_MEMORY)
