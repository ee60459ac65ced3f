"""How long `structure_from_model` takes on unrolled transformers of 25, 50, 100 layers, beyond `jax.make_jaxpr`.

Run `python benchmarks/tracing.py`; raw output goes to `benchmarks/results/`, dated. No accelerator is needed: nothing
is computed.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp

import optax_ext
from optax_ext import structure_from_model

WIDTH, HEADS, LENGTH, VOCABULARY = 64, 4, 32, 100
LAYERS, REPEATS = (25, 50, 100), 5


def shapes(layers):
  """Of the parameters: 16 leaves a layer, for query, key, value, output, both norms and the perceptron."""
  f = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  dim = WIDTH // HEADS
  norm = {"scale": f(WIDTH), "bias": f(WIDTH)}
  block = {n: {"kernel": f(WIDTH, HEADS, dim), "bias": f(HEADS, dim)} for n in ("query", "key", "value")}
  block |= {"out": {"kernel": f(HEADS, dim, WIDTH), "bias": f(WIDTH)}, "norm0": norm, "norm1": norm}
  block |= {
    "up": {"kernel": f(WIDTH, 4 * WIDTH), "bias": f(4 * WIDTH)},
    "down": {"kernel": f(4 * WIDTH, WIDTH), "bias": f(WIDTH)},
  }
  return {"embedding": f(VOCABULARY, WIDTH), "norm": norm} | {f"block_{i}": block for i in range(layers)}


def normalize(p, x):
  mean = x.mean(-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def model(params, ids):
  x = jnp.take(params["embedding"], ids, axis=0)
  for i in range(len(params) - 2):
    p = params[f"block_{i}"]
    y = normalize(p["norm0"], x)
    q, k, v = (jnp.einsum("btd,dhk->bthk", y, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
    x = (
      x + jnp.einsum("bqhk,hkd->bqd", jnp.einsum("bhqs,bshk->bqhk", weights, v), p["out"]["kernel"]) + p["out"]["bias"]
    )
    y = jax.nn.gelu(normalize(p["norm1"], x) @ p["up"]["kernel"] + p["up"]["bias"])
    x = x + y @ p["down"]["kernel"] + p["down"]["bias"]
  return normalize(params["norm"], x) @ params["embedding"].T


def count(jaxpr):
  inner = [p for eqn in jaxpr.eqns for p in eqn.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
  return len(jaxpr.eqns) + sum(count(getattr(p, "jaxpr", p)) for p in inner)


def seconds(run):
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def main():
  rows, ids = [], jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)
  for layers in LAYERS:
    params = shapes(layers)
    structure = structure_from_model(model, params, ids)
    assert structure.num_layers == 4 * layers + 1
    traced, read = [], []
    for _ in range(REPEATS):  # a new function each time: jax remembers those that it has traced
      traced.append(seconds(lambda given=params: jax.make_jaxpr(lambda p, x: model(p, x))(given, ids)))
      read.append(seconds(lambda given=params: structure_from_model(lambda p, x: model(p, x), given, ids)))
    equations = count(jax.make_jaxpr(model)(params, ids).jaxpr)
    row: dict[str, float] = {"layers": layers, "leaves": len(jax.tree.leaves(params)), "equations": equations}
    row |= {"make_jaxpr_s": statistics.median(traced), "structure_from_model_s": statistics.median(read)}
    row["beyond_s"] = row["structure_from_model_s"] - row["make_jaxpr_s"]
    row["beyond_us_per_equation"] = 1e6 * row["beyond_s"] / equations
    rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    print(rows[-1])
  facts = {"jax": jax.__version__, "optax_ext": optax_ext.__version__, "python": platform.python_version()}
  facts |= {"machine": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
  out = pathlib.Path(__file__).parent / "results" / f"tracing-{datetime.date.today()}.json"
  out.write_text(json.dumps({"what": "median seconds of 5", **facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
