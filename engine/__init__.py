"""A paged-attention inference engine that is a subject to study: every optimisation in it is a variant.

What needs torch is imported when it is first used, so that options, errors and `--help` are had at once.
"""

import importlib
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.errors import ConfigError, EngineError, ModelError, RequestError
from engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from engine.llm import LLM, Increment, Output

__all__ = [
    "LLM",
    "ConfigError",
    "EngineConfig",
    "EngineError",
    "Increment",
    "ModelError",
    "Output",
    "RequestError",
    "SamplingParams",
]

_HOMES = {"LLM": "engine.llm", "Increment": "engine.llm", "Output": "engine.llm"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
