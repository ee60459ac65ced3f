"""Agreement with trajectories recorded from the authors' own programs.

The recordings are not part of the project. They are looked for in the folder named by OPTAX_EXT_GOLDEN, else in a
folder `shared/golden` beside the checkout; where there is none, every test is skipped and says so.
(tests/test_optimizers.py compares with the equations everywhere.)
"""

import importlib.util
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import enable_x64, in_full, jitted

import optax_ext
from optax_ext._moments.gains import one_minus_decay_power

GOLDEN = pathlib.Path(os.environ.get("OPTAX_EXT_GOLDEN", pathlib.Path(__file__).parents[2] / "shared" / "golden"))
CASES = sorted(path.stem for path in GOLDEN.glob("*__*__*.json"))
WITHOUT = f"There are no recordings of the authors' programs at {GOLDEN}: OPTAX_EXT_GOLDEN names their folder."

pytestmark = pytest.mark.skipif(not CASES, reason=WITHOUT)


def test_recordings():
  assert len(CASES) == 48


def read(case):
  spec = importlib.util.spec_from_file_location("golden_common", GOLDEN / "common.py")
  assert spec is not None
  assert spec.loader is not None
  common = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(common)
  meta = json.loads((GOLDEN / f"{case}.json").read_text())
  seeds = json.loads((GOLDEN / "SET.json").read_text())
  shapes = {leaf["name"]: tuple(leaf["shape"]) for leaf in meta["leaves"]}
  if meta["loop"] == "open":
    grads = common.make_grads(seeds["grad_seed"], shapes, 1000)
    gradient = lambda t, params: grads[t - 1]
  else:
    problem = common.make_problem(seeds["problem_seed"], seeds["n"])
    gradient = lambda t, params: common.problem_grad(problem, params)
  return meta, dict(np.load(GOLDEN / f"{case}.npz")), shapes, gradient


def eps_before_correction(b1, b2):
  """The CaAdam and PyTorch ND-Adam codes: α·√c₂/c₁·m/(√v + ε), as a debias rule."""

  def rule(t):
    c1, c2 = one_minus_decay_power(b1, t), one_minus_decay_power(b2, t)

    def debias(moments):
      factor = (jnp.sqrt(c2) / c1).astype(moments.square.dtype)
      return moments._replace(mean=moments.mean * factor)

    return debias

  return rule


def moments(b1, b2, eps, **kwargs):
  return optax_ext.scale_by_moments(
    optax_ext.constant_gain(b1),
    optax_ext.constant_gain(b2),
    debias=eps_before_correction(b1, b2),
    ratio=optax_ext.adam_ratio(eps),
    **kwargs,
  )


def project_as_written(axes):
  """g − (g·w) w, which is a projection for unit vectors only: what the authors' codes do from raw initial weights."""

  def update(updates, params):
    return {
      k: g if axes.get(k) is None else g - jnp.sum(g * params[k], axes[k], keepdims=True) * params[k]
      for k, g in updates.items()
    }

  return optax.stateless(update)


def optimizer(meta):
  h = meta["hyperparameters"]
  lr, (b1, b2), eps, decay = h["lr"], h["betas"], h["eps"], h["weight_decay"]
  variant = meta["variant"]
  if variant.startswith("exadam"):
    return optax_ext.exadam(lr, b1, b2, eps, weight_decay=decay, log_step=variant == "exadam")
  if variant == "adamnx":
    return optax_ext.adamnx(lr, b1, b2, eps, weight_decay=decay)
  if variant.startswith("caadam"):
    scales = {name: used["S"] for name, used in meta["scaling_used"].items()}
    return optax.chain(
      moments(b1, b2, eps),
      optax_ext.scale_by_structure(scales),
      optax.add_decayed_weights(decay),
      optax.scale_by_learning_rate(lr),
    )
  axes = {leaf["name"]: tuple(meta["vec_axes"].get(leaf["name"], ())) or None for leaf in meta["leaves"]}
  vector = {name: along is not None for name, along in axes.items()}
  if variant == "ndadam_tf" and h["init"] == "unit":
    return optax_ext.nd_adam(lr, b1, b2, eps, vector_learning_rate=lr * h["vec_lr_mult"], axes=axes)
  project = optax_ext.project_out_params(axes) if h["init"] == "unit" else project_as_written(axes)
  kwargs = {"square": optax_ext.per_vector(axes)}
  if variant == "ndadam_tf":
    tx = optax_ext.scale_by_moments(
      optax_ext.constant_gain(b1),
      optax_ext.constant_gain(b2),
      debias=optax_ext.standard(b1, b2),
      ratio=optax_ext.adam_ratio(eps),
      **kwargs,
    )
  else:
    tx = moments(b1, b2, eps, **kwargs)
  coupled = optax.add_decayed_weights(decay, {name: not is_vector for name, is_vector in vector.items()})
  factors = {name: h.get("vec_lr_mult", 1) if is_vector else 1 for name, is_vector in vector.items()}
  return optax.chain(
    coupled,
    project,
    tx,
    optax_ext.scale_by_structure(factors),
    optax.scale_by_learning_rate(lr),
    optax_ext.renormalize_params(axes),
  )


def run(case, dtype, last):
  """The flat parameters after the recorded steps up to `last`, and those steps' indices."""
  meta, data, shapes, gradient = read(case)
  ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
  steps = [t for t in meta["steps"] if t <= last]

  def tree(flat):
    parts = jnp.split(flat, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

  def flat(params):
    return jnp.concatenate([params[name].ravel() for name in shapes])

  tx = optimizer(meta)

  def step(carry, grads):
    params, state = carry
    updates, state = tx.update(tree(grads), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), flat(params)

  carry = jitted(lambda p0: (tree(p0), tx.init(tree(p0))))(data["p0"].astype(dtype))
  if meta["loop"] == "open":
    grads = np.stack([gradient(t, None) for t in range(1, last + 1)])
    _, path = in_full(lambda carry, grads: jax.lax.scan(step, carry, grads))(carry, grads.astype(dtype))
    return meta, data, np.asarray(path)[np.array(steps) - 1]
  step, now, path = jitted(step), data["p0"], []
  for t in range(1, last + 1):
    carry, now = step(carry, gradient(t, np.asarray(now, dtype)).astype(dtype))
    path.append(now)
  return meta, data, np.stack(path)[np.array(steps) - 1]


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES)
def test_float64(case):
  with enable_x64(True):
    meta, data, path = run(case, jnp.float64, last=1000)
  sensitivity = np.array(meta["check"]["sensitivity_maxabs_to_1e14_rel_gradient_noise"])
  floor = 1e-10 if meta["variant"] == "adamnx" else 5e-9 if meta["hyperparameters"].get("init") == "unit" else 1e-12
  bound = np.maximum(floor, 1e4 * sensitivity)
  difference = np.abs(path - data["f64"]).max(axis=1)
  stable = sensitivity <= 1e-12
  assert stable.sum() >= 6
  np.testing.assert_array_less(difference[stable], bound[stable])


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES)
def test_float32(case):
  last = 50 if case.endswith("closed") else 1000  # later, a closed loop amplifies its own rounding
  meta, data, path = run(case, jnp.float32, last)
  check, steps = meta["check"], np.array(meta["steps"])
  absolute = np.where(steps <= 50, 2e-6, 1e-5) * np.maximum(1, check["max_abs_param"])
  bound = 8 * np.maximum(absolute, 2 * np.array(check["f32_vs_f64_maxabs"]))
  difference = np.abs(path - data["f32"][steps <= last]).max(axis=1)
  np.testing.assert_array_less(difference, bound[steps <= last])
