"""Values as MLflow takes them: names, flat parameters, finite metrics. It knows the limits of MLflow, not MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

STUDY_UID = "study"
MAX_NAME_CHARACTERS = 250
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000


def mlflow_name(name: str) -> str:
    """The name itself where MLflow takes it, else a near one that ends in a digest, so that no two names become one.

    MLflow takes letters, digits, `_-. :/`, up to 250 characters, and no name that would be another as a path.
    """
    parts = re.sub(r"[^\w.\- :/]", "_", name).split("/")
    safe = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if safe == name and len(name) <= MAX_NAME_CHARACTERS:
        return name
    return f"{safe[: MAX_NAME_CHARACTERS - 10]}_{hashlib.sha256(storable(name).encode()).hexdigest()[:8]}"


def flat_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested mappings as `outer.inner` names; lists as JSON; values longer than 6000 characters cut, and saying so."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json")
        if isinstance(value, Mapping) and value:
            flat |= {mlflow_name(f"{key}.{inner}"): text for inner, text in flat_params(value).items()}
        else:
            flat[mlflow_name(str(key))] = shortened(_text(value), MAX_PARAM_CHARACTERS)
    return flat


def text_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them; values longer than 8000 characters cut, and saying so."""
    return {mlflow_name(str(key)): shortened(_text(value), MAX_TAG_CHARACTERS) for key, value in tags.items()}


def finite_metrics(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """The finite values, and a tag for each other one: MLflow's databases would store NaN as 0."""
    finite: dict[str, float] = {}
    dropped: dict[str, str] = {}
    for key, value in values.items():
        name = mlflow_name(str(key))
        number = _number(value)
        if number is not None and math.isfinite(number):
            finite[name] = number
        else:
            dropped[mlflow_name(f"dcr.dropped.{name}")] = shortened(_text(value), MAX_TAG_CHARACTERS)
    return finite, dropped


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def storable(text: str) -> str:
    """Without what databases and UTF-8 refuse: NUL characters and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def shortened(text: str, limit_characters: int) -> str:
    text = storable(text)
    if len(text) <= limit_characters:
        return text
    note = f" ... (cut from {len(text)} characters)"
    return text[: limit_characters - len(note)] + note
