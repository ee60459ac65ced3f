"""Reads one model of the zoo inside its package's virtual environment, and prints facts and times as JSON.

python benchmarks/zoo/inside.py NAME [ROUNDS]
"""

import gc
import importlib
import importlib.metadata
import json
import pathlib
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_ext import structure_from_model

sys.path.insert(0, str(pathlib.Path(__file__).parent))


def version(package: str) -> str:
  return importlib.metadata.version(package)


def trace(apply_fn: Callable[..., Any], params: Any, inputs: tuple[Any, ...]) -> None:
  """`jax.make_jaxpr` of the model as a function of its arrays; a new function each time, so that no trace is reused."""
  leaves, treedef = jax.tree.flatten((params, inputs))
  arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")}

  def flat(*values: Any) -> Any:
    given = dict(zip(arrays, values, strict=True))
    first, rest = jax.tree.unflatten(treedef, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
    return [leaf for leaf in jax.tree.leaves(apply_fn(first, *rest)) if hasattr(leaf, "dtype")]

  jax.make_jaxpr(flat)(*arrays.values())


def seconds(function: Callable[[], Any]) -> float:
  gc.collect()
  begin = time.perf_counter()
  function()
  return time.perf_counter() - begin


def seconds_inside(function: Callable[[], Any]) -> tuple[float, float]:
  """Seconds that a function takes, and those of them that it spends in `jax.make_jaxpr`, calls within a call aside."""
  inside, nested, make_jaxpr = 0.0, 0, jax.make_jaxpr

  def watched(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    made = make_jaxpr(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
      nonlocal inside, nested
      begin, nested = time.perf_counter(), nested + 1
      try:
        return made(*args, **kwargs)
      finally:
        nested -= 1
        inside += 0.0 if nested else time.perf_counter() - begin

    return run

  jax.make_jaxpr = watched
  try:
    return seconds(function), inside
  finally:
    jax.make_jaxpr = make_jaxpr


def report(name: str, rounds: int) -> dict[str, Any]:
  """Facts of every leaf, the warnings, and median times of interleaved runs."""
  module = importlib.import_module(f"models.{name}")
  apply_fn, params, inputs = module.build()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    structure = structure_from_model(apply_fn, params, *inputs)
    told = [str(warning.message) for warning in caught if "structure_from_model" in str(warning.message)]
    times = [
      (
        seconds(lambda: trace(apply_fn, params, inputs)),
        *seconds_inside(lambda: structure_from_model(apply_fn, params, *inputs)),
      )
      for _ in range(rounds)
    ]
  leaves = {
    facts.path: {
      "shape": facts.shape,
      "layer": facts.layer,
      "depth": np.asarray(facts.depth).tolist(),
      "connections": facts.connections,
      "contracting_axes": facts.contracting_axes,
      "stacked_axes": facts.stacked_axes,
      "uses": facts.uses,
      "note": facts.note,
    }
    for facts in structure.leaves()
  }
  return {
    "leaves": leaves,
    "num_layers": structure.num_layers,
    "warnings": told,
    "trace": statistics.median(trace for trace, _, _ in times),
    "total": statistics.median(total for _, total, _ in times),
    "inside": statistics.median(inside for _, _, inside in times),
  }


if __name__ == "__main__":
  name, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 7
  try:
    result = report(name, rounds)
  except Exception:  # another package's error is a finding of the zoo, and the other models go on
    result = {"error": traceback.format_exc(limit=-8)}
  known = importlib.import_module(f"models.{name}")
  result |= {
    "versions": {package: version(package) for package in dict.fromkeys([known.PACKAGE, "jax", "optax"])},
    "python": platform.python_version(),
  }
  print("\n" + json.dumps(result))
