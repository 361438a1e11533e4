"""An error as AWS's JSON services tell it: a code in `x-amzn-errortype`, and `{"Message": ...}`.

AWS's clients raise the exception that is named by the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from octavo.errors import OctavoError

_CODES = {
    401: ("MissingAuthenticationTokenException", 403),
    403: ("AccessDeniedException", 403),
    408: ("RequestTimeoutException", 408),
    413: ("ValidationError", 413),
    429: ("ThrottlingException", 429),
    503: ("ServiceUnavailable", 503),
}


class AwsError(OctavoError):
    """An error that has a code of its own in AWS's words; `more` are further members of the body."""

    def __init__(
        self,
        code: str,
        status: int,
        what: str,
        where: str = "",
        fix: str = "",
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(what, where, fix)
        self.code = code
        self.status = status
        self.title = code
        self.more = dict(more or {})


def aws_code(error: OctavoError) -> tuple[str, int]:
    """The code and the HTTP status of an error: what a client did wrong is a `ValidationError`."""
    if isinstance(error, AwsError):
        return error.code, error.status
    if error.status in _CODES:
        return _CODES[error.status]
    return ("InternalFailure", 500) if error.status >= 500 else ("ValidationError", 400)


def aws_body(error: OctavoError) -> bytes:
    """The body that tells of an error."""
    more = error.more if isinstance(error, AwsError) else {}
    return json.dumps({"Message": str(error), "__type": aws_code(error)[0]} | more).encode()
