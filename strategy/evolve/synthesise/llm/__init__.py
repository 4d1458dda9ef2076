"""Candidates written by language models, through any OpenAI-compatible endpoint (docs/llm.md)."""

from strategy.evolve.synthesise.llm.config import LlmConfig, LlmConfigError, LlmModel
from strategy.evolve.synthesise.llm.synthesiser import LlmSynthesiser

__all__ = ["LlmConfig", "LlmConfigError", "LlmModel", "LlmSynthesiser"]
