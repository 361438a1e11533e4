"""What the doors ask before they open; who answers is handed in, since jobs knows nothing of accounts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Require = Callable[[Any, Literal["view", "infer", "edit", "admin"], str], None]
"""`require(principal, action, resource)` returns, or raises `Unauthenticated` or `Forbidden`.

Resources are `jobs/<kind>` and `jobs/schedules/<name>`: looking asks for view, cancelling and retrying for edit,
submitting and scheduling for admin.
"""
