"""Who writes candidates: source-level edits here, other authors behind the same Synthesiser port."""

from strategy.evolve.synthesise.builtin import BuiltinSynthesiser, random_program

__all__ = ["BuiltinSynthesiser", "random_program"]
