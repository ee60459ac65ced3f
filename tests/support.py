"""What several test files use."""

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = pathlib.Path(__file__).parents[1]

if hasattr(jax, "enable_x64"):
  enable_x64 = jax.enable_x64
else:  # jax < 0.8
  from jax.experimental import enable_x64  # noqa: F401


def blocks(page, language):
  """The code blocks of a Markdown file in a language."""
  text = page.read_text(encoding="utf-8")
  return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def links(page):
  """Each relative link of a Markdown file, to a file or a heading: (file, heading or "")."""
  text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
  for path, heading in re.findall(r"\]\((?!\w+:)([^()\s#]*)(?:#([^()\s]*))?\)", text):
    yield (page.parent / path if path else page), heading


def known(option, value):
  """Whether the installed XLA has a compiler option."""
  try:
    jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def cache_programs(monkeypatch, folder):
  """The processes that a test starts compile no program twice; one that is killed while it writes does no harm."""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


# Compiled with little optimization and by XLA's older emitters, as either takes longer than a few steps on small arrays
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if known("xla_cpu_use_fusion_emitters", False):  # until jax 0.11
  QUICK["xla_cpu_use_fusion_emitters"] = False
in_full = functools.partial(jax.jit, compiler_options=QUICK)


def jitted(function: Any, static_argnums: Any = ()) -> Any:
  """`jax.jit` for small arrays on one device, whose programs take XLA a third of the time to make.

  What XLA for CPUs finds outside of a loop becomes a function of its own for every few operations, at 15 ms each; a
  small loop becomes one function as a whole. So this is a loop that runs once. XLA must not see that: it would take the
  loop away, or what depends on nothing in the loop out of it.
  """
  body = jax.jit(function, static_argnums=static_argnums)

  @functools.partial(jax.jit, static_argnums=static_argnums, compiler_options=QUICK)
  def program(*args):
    *args, times = args
    given = {i: arg for i, arg in enumerate(args) if i not in np.atleast_1d(static_argnums)}
    alike = {(leaf.shape, leaf.dtype): leaf for leaf in map(jnp.asarray, jax.tree.leaves(given))}
    zeros = lambda leaf: alike.get((leaf.shape, leaf.dtype), jnp.zeros(leaf.shape, leaf.dtype))

    def once(i, _):
      _, now = jax.lax.optimization_barrier((i, given))
      return body(*(now.get(i, arg) for i, arg in enumerate(args)))

    return jax.lax.fori_loop(0, times, once, jax.tree.map(zeros, jax.eval_shape(body, *args)))

  return lambda *args: program(*args, 1)


def problem(shape, seed=0):
  """A gradient (t, params) -> array in float64: an ill-conditioned, slightly non-convex loss with fixed noise."""
  rng = np.random.default_rng(seed)
  curvature = 10.0 ** rng.uniform(-3, 1, shape)
  centre = rng.normal(size=shape)
  noise = 0.3 * rng.normal(size=(97, *shape))

  def gradient(t, params):
    p = np.asarray(params, np.float64)
    return curvature * (p - centre) + 0.1 * np.sin(3 * p) + noise[t % 97]

  return gradient


def open_loop(shape, steps, seed=0):
  """Gradients of magnitudes from 1e-6 to 1e3, some always zero and some rarely not: an array (steps, *shape)."""
  rng = np.random.default_rng(seed)
  grads = 10.0 ** rng.uniform(-6, 3, shape) * (rng.normal(size=(steps, *shape)) + 0.3 * rng.normal(size=shape))
  kind = rng.integers(0, 6, shape)
  grads = np.where(kind == 0, 0, grads)
  return np.where((kind == 1) & (np.arange(steps).reshape(-1, *[1] * len(shape)) % 10 != 0), 0, grads)


def run(tx, params, gradient, steps, dtype=jnp.float64, jit=True):
  """The parameters (one array, or a dict of them) after each step, as reference.py gives them."""
  params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
  state = tx.init(params)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  step = jitted(step) if jit else step
  path = [params]
  for t in range(1, steps + 1):
    grads = jax.tree.map(lambda g: jnp.asarray(g, dtype), gradient(t, path[-1]))
    params, state = step(params, state, grads)
    path.append(params)
  return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *path)


def relative(a, b):
  """Largest difference over a trajectory, relative to its largest value so far (steps along axis 0)."""
  a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
  size = np.maximum.accumulate(np.abs(b).max(axis=1, initial=1e-30))
  return float((np.abs(a - b).max(axis=1, initial=0) / size).max())
