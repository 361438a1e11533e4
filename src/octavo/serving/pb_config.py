"""The configuration a Python model may complete in `auto_complete_config`, as Triton's Python backend offers it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


class ModelConfig:
    """A model's configuration in Triton's JSON form, with the setters a model may call.

    What config.pbtxt already says is never overruled: contradicting it raises `ValueError`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = copy.deepcopy(dict(config))

    def as_dict(self) -> dict[str, Any]:
        """The configuration as it stands."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """The largest batch; 0 says that the shapes hold the batch axis themselves."""
        current = int(self._config.get("max_batch_size", 0))
        if current > max_batch_size:
            raise ValueError(f"max_batch_size is {current} in config.pbtxt, the model sets {max_batch_size}")
        self._config["max_batch_size"] = int(max_batch_size)

    def set_dynamic_batching(self) -> None:
        """Turn dynamic batching on, unless another scheduler is chosen."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._config:
                raise ValueError(f"config.pbtxt already chooses {other}")
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy: Mapping[str, Any]) -> None:
        """Choose decoupled responses or not."""
        self._config["model_transaction_policy"] = {"decoupled": bool(transaction_policy.get("decoupled", False))}

    def add_input(self, given: Mapping[str, Any]) -> None:
        """Declare an input: `name`, `data_type`, `dims`, and perhaps `optional`."""
        self._add("input", given, {"name", "data_type", "dims", "optional", "allow_ragged_batch"})

    def add_output(self, given: Mapping[str, Any]) -> None:
        """Declare an output: `name`, `data_type`, `dims`."""
        self._add("output", given, {"name", "data_type", "dims"})

    def _add(self, side: str, given: Mapping[str, Any], known: set[str]) -> None:
        if unknown := sorted(set(given) - known):
            raise ValueError(f"{side} has unknown properties {', '.join(unknown)}")
        for key in ("name", "data_type", "dims"):
            if key not in given:
                raise ValueError(f"{side} lacks {key!r}")
        entry = dict(given) | {"dims": [int(axis) for axis in given["dims"]]}
        entries: list[dict[str, Any]] = self._config.setdefault(side, [])
        for existing in entries:
            if existing["name"] == entry["name"]:
                if (existing["data_type"], existing["dims"]) != (entry["data_type"], entry["dims"]):
                    raise ValueError(f"{side} {entry['name']!r} is declared differently in config.pbtxt")
                return
        entries.append(entry)
