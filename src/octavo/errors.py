"""The errors people see: what was wrong, where, and what would be right.

Every error that may reach a user is an `OctavoError`. HTTP shows it as problem+json (RFC 9457), the command line
as one red line with exit code 2, the console as a notification. A subclass fixes the HTTP status.
"""

from __future__ import annotations


class OctavoError(Exception):
    """An error with a reader.

    Args:
        what: what was wrong, one sentence.
        where: the thing it was wrong in (a file and line, a model's name, a field); may be empty.
        fix: what would be right, or the next step; may be empty.
    """

    status = 400
    title = "Bad request"

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        fix = f". {self.fix}" if self.fix else ""
        return f"{self.what}{place}{fix}"

    def problem(self) -> dict[str, object]:
        """The body of an `application/problem+json` answer (RFC 9457)."""
        body: dict[str, object] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.what,
        }
        if self.where:
            body["where"] = self.where
        if self.fix:
            body["fix"] = self.fix
        return body


class Invalid(OctavoError):
    """The input does not have the form asked for."""

    status, title = 400, "Invalid input"


class Unauthenticated(OctavoError):
    """Nobody is known behind the request."""

    status, title = 401, "Not signed in"


class Forbidden(OctavoError):
    """The principal may not do this."""

    status, title = 403, "Not allowed"


class NotFound(OctavoError):
    """The named thing does not exist."""

    status, title = 404, "Not found"


class Conflict(OctavoError):
    """The named thing is in a state that does not allow this."""

    status, title = 409, "Conflict"


class TooLarge(OctavoError):
    """The input is over a size limit."""

    status, title = 413, "Too large"


class Cancelled(OctavoError):
    """The caller went away, or the work was cancelled."""

    status, title = 499, "Cancelled"


class ModelFailed(OctavoError):
    """A model raised, died or answered nonsense; the request may be right."""

    status, title = 500, "The model failed"


class MissingExtra(OctavoError):
    """An optional part is not installed; `fix` holds the command that adds it."""

    status, title = 501, "Not installed"


class Unavailable(OctavoError):
    """The thing cannot answer now; `retry_after` (seconds) says when to ask again."""

    status, title = 503, "Unavailable"

    def __init__(self, what: str, where: str = "", fix: str = "", retry_after: float = 1.0) -> None:
        super().__init__(what, where, fix)
        self.retry_after = retry_after


class Busy(Unavailable):
    """A queue or rate limit is reached; ask again after `retry_after` seconds."""

    status, title = 429, "Too many requests"


class DeadlineExceeded(OctavoError):
    """The request's deadline passed before the answer was ready."""

    status, title = 504, "Deadline exceeded"


class OutOfMemory(OctavoError):
    """The thing does not fit the memory budget (HTTP 507, as SageMaker's contract has it)."""

    status, title = 507, "Insufficient memory"
