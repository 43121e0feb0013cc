"""Where a trace was captured, as far as its file says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OURS = "tracetool"
# Of one capture, and different in the next one of the same program on the same machine.
_OF_ONE_CAPTURE = frozenset({"trace_id", "traceName", "baseTimeNanoseconds", "displayTimeUnit", "deviceProperties"})

_DEEPEST = 20
"""Levels of settings within settings; what lies deeper was not written by a profiler."""


def as_captured(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `tracetool capture` noted in a trace; nothing in those of others."""
    ours = metadata.get(_OURS)
    return ours if isinstance(ours, dict) else {}


def describe(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The settings that tell one environment from another, by name."""
    found = {}
    devices = metadata.get("deviceProperties")
    names = (
        [str(device["name"]) for device in devices if isinstance(device, dict) and "name" in device]
        if isinstance(devices, list)
        else []
    )
    if names:
        found["gpu"] = ", ".join(
            f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
        )
    found.update(_settings(as_captured(metadata)))
    others = {key: value for key, value in metadata.items() if key not in _OF_ONE_CAPTURE and key != _OURS}
    found.update(_flat("", others))
    return found


def _settings(ours: Mapping[str, Any]) -> dict[str, str]:
    """What `tracetool capture` notes, as far as it tells one environment or variant from another."""
    told = {name: ours[name] for name in ("workload", "script", "module", "callable") if name in ours}
    for name in ("axes", "versions", "host", "git", "environment"):
        value = ours.get(name)
        if isinstance(value, dict):
            prefix = f"{name}." if name in {"host", "git"} else ""
            told.update({f"{prefix}{key}": each for key, each in value.items()})
    options = ours.get("options")
    told.update({name: value for name, value in options.items() if value} if isinstance(options, dict) else {})
    if "driver" in ours:
        told["driver"] = ours["driver"]
    return _flat("", told)


def _flat(prefix: str, values: Mapping[str, Any], deepest: int = _DEEPEST) -> dict[str, str]:
    """Nested settings by dotted names; lists, which describe and do not set, are left out."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(_flat(f"{prefix}{key}.", value, deepest - 1) if deepest else {})
        elif isinstance(value, str | int | float | bool):
            found[f"{prefix}{key}"] = _version(value) if key.startswith(("cuda_", "hip_")) else str(value)
    return found


def _version(value: object) -> str:
    """CUDA writes 13.0 as 13000."""
    if isinstance(value, int) and value >= 1000:
        return f"{value // 1000}.{value % 1000 // 10}"
    return str(value)


def differences(environments: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Settings in which environments differ, each with its value on every side (`-` where it has none)."""
    names = list(dict.fromkeys(name for environment in environments for name in environment))
    table = {name: [environment.get(name, "-") for environment in environments] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}
