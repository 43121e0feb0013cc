"""A paged-attention inference engine that is a subject to study: every optimisation in it is a variant."""

from engine.config import EngineConfig
from engine.errors import ConfigError, EngineError, ModelError, RequestError
from engine.llm import LLM, Increment, Output
from engine.sampling_params import SamplingParams

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
