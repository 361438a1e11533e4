"""Names of SageMaker's resources, and their ARNs. There is one account; its resources are the same in any region."""

from __future__ import annotations

import re
from typing import Literal

from octavo.errors import Invalid

ACCOUNT = "000000000000"
REGION = "us-east-1"
"""Of ARNs in answers to requests that are not signed, so name no region."""
MAX_NAME = 63

Kind = Literal["model", "endpoint-config", "endpoint"]

_NAME = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}")
_ARN = re.compile(r"arn:aws[a-z-]*:sagemaker:[a-z0-9-]*:\d*:(model|endpoint-config|endpoint)/([^/]+)")


def check_name(name: str, where: str) -> str:
    """`name`, if a resource of SageMaker's can have it; `where` is the field, for the message.

    Raises:
        Invalid: too long, or other characters than letters, digits and inner hyphens.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise Invalid(
            f"{name[: MAX_NAME + 1]!r} is not a name", where, f"Use up to {MAX_NAME} letters, digits and inner hyphens."
        )
    return name


def arn_of(kind: Kind, name: str, region: str) -> str:
    """The resource's ARN."""
    return f"arn:aws:sagemaker:{region}:{ACCOUNT}:{kind}/{name}"


def parse_arn(arn: str) -> tuple[Kind, str]:
    """What a resource is, and its name.

    Raises:
        Invalid: not the ARN of a model, an endpoint configuration or an endpoint.
    """
    found = _ARN.fullmatch(arn) if len(arn) <= 2048 else None
    if found is None:
        what = f"{arn[:100]!r} is not the ARN of a model, endpoint configuration or endpoint"
        raise Invalid(what, "ResourceArn", f"It looks like {arn_of('endpoint', 'support', REGION)}.")
    kind: Kind = found[1]  # type: ignore[assignment]  # one of the three by the pattern
    return kind, check_name(found[2], "ResourceArn")
