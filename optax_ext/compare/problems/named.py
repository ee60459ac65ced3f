"""Problems by name: those whose data come inside packages, those of the papers, and one's own."""

import importlib
from collections.abc import Callable

from optax_ext.compare.problem import Problem
from optax_ext.compare.problems.bundled import breast_cancer, digits, mnist5k
from optax_ext.compare.problems.papers import PAPERS

PROBLEMS: dict[str, Callable[[], Problem]] = {
  "digits": digits, "mnist5k": mnist5k, "breast_cancer": breast_cancer, **PAPERS
}  # fmt: skip


def load(name: str) -> Problem:
  """A bundled problem, one of the papers, or one's own as "module:function", which returns a `Problem`.

  Raises:
    ValueError: there is no such problem, in one sentence.
  """
  if name in PROBLEMS:
    return PROBLEMS[name]()
  module, colon, function = name.partition(":")
  if not colon:
    raise ValueError(f"Unknown problem {name!r}; the known ones are {', '.join(PROBLEMS)}, or give module:function.")
  try:
    problem = getattr(importlib.import_module(module), function)()
  except (ImportError, AttributeError) as error:
    raise ValueError(f"The problem {name!r} could not be loaded: {error}.") from error
  if not isinstance(problem, Problem):
    raise ValueError(f"{name} must return an optax_ext.compare.Problem, but returned a {type(problem).__name__}.")
  return problem
