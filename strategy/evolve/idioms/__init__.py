"""The idiom library: known ways to schedule, each a readable module with one of a policy's four functions.

An idiom's docstring says what it does and then why one would want it; its constants carry their ranges. The
builtin synthesiser grafts them into policies.
"""

from strategy.evolve.idioms.catalogue import FOLDERS, Idiom, catalogue

__all__ = ["FOLDERS", "Idiom", "catalogue"]
