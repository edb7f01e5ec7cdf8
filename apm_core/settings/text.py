"""Canonical JSON of settings, and its fingerprint. Light to import."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical(settings: Any) -> str:  # noqa: ANN401 - any JSON value
    """JSON with sorted keys and one spelling per number (8 and 8.0), so that equal settings are
    equal text.
    """
    return json.dumps(_normal(settings), sort_keys=True, allow_nan=False)


def fingerprint(settings: Any) -> str:  # noqa: ANN401 - any JSON value
    """Sixteen hexadecimal digits that name `settings`."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()[:16]


def _normal(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(key): _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
