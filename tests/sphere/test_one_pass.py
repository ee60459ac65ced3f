"""ND-Adam in one reading pass is the chain of its pieces: the same numbers, from sums that do not cancel."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import enable_x64

import optax_ext
from optax_ext._sphere import one_pass
from optax_ext._sphere import step as steps

AXES = {"in": (0,), "conv": (0, 1, 3), "bias": None}
SHAPES = {"in": (256, 4), "conv": (3, 2, 4, 8), "bias": (7,)}
EPS = float(jnp.finfo(jnp.float32).eps)


@pytest.fixture(autouse=True)
def every_leaf_is_stepped_from_sums(monkeypatch):
  monkeypatch.setattr(one_pass, "SMALL", 1)
  monkeypatch.setattr(one_pass, "_on_cpu", lambda in_order, from_sums, *args: from_sums(*args))


def chain(axes=AXES, rate=0.05, scalar_rate=1e-3, **kwargs):
  """The definition: every piece reads what the one before it has written."""
  mask = optax_ext.vector_mask
  return optax_ext.cast_updates(
    optax.chain(
      optax_ext.project_out_params(axes),
      optax_ext.scale_by_moments(
        optax_ext.constant_gain(0.9),
        optax_ext.constant_gain(0.999),
        debias=optax_ext.standard(0.9, 0.999),
        square=optax_ext.per_vector(axes),
        **kwargs,
      ),
      optax.masked(optax.scale_by_learning_rate(rate), mask(axes)),
      optax.masked(optax.scale_by_learning_rate(scalar_rate), mask(axes, vectors=False)),
      optax_ext.renormalize_params(axes),
    )
  )


def applied(tx):
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return tx, jax.jit(step)


UNIT_STEP, CHAIN_STEP = applied(optax_ext.nd_adam(1e-3, axes=(0,))), applied(chain((0,)))


def draw(seed, dtype=np.float32, scale=1.0, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return {name: np.asarray(scale * rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def start(dtype):
  """Random weights whose vectors have length 1."""
  lengths = lambda w, axes: np.sqrt(np.sum(w * w, axes, keepdims=True)) if axes else 1
  return {name: np.asarray(w / lengths(w, AXES[name]), dtype) for name, w in draw(0, np.float64).items()}


def gradients(dtype):
  """Those of 1,000 steps: noise, and a drift."""
  noise, drift = draw(1, np.float64, shapes={k: (97, *s) for k, s in SHAPES.items()}), draw(2, np.float64, 0.3)
  return {name: np.asarray(noise[name][np.arange(1000) % 97] + drift[name], dtype) for name in SHAPES}


def stepped(tx, params, state, grads):
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state


def loop(step, carry, grads):
  """`jax.lax.scan`, of which XLA would make one function of all that a step does, in five times as long."""
  given = []
  for t in range(1000):
    carry, new = step(carry, {name: leaf[t] for name, leaf in grads.items()})
    given.append(new)
  return carry, jax.tree.map(lambda *leaves: np.stack(leaves), *given)


def error_of_length(path):
  """The largest distance of a vector's length from 1, of the parameters after each step."""
  squares = {name: np.float64(path[name]) ** 2 for name, axes in AXES.items() if axes}
  return max(np.abs(np.sqrt(x.sum(tuple(i + 1 for i in AXES[name]))) - 1).max() for name, x in squares.items())


# Both forms round differently by some units in the last place of each step, and 1,000 steps of noise do not contract:
# √1000 of them.
@pytest.mark.heavy
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-13), (jnp.float32, 32 * EPS)])
def test_both_forms_agree_over_1000_steps(dtype, tolerance):
  with enable_x64(dtype == jnp.float64):
    txs = optax_ext.nd_adam(1e-3, axes=AXES), chain()

    @jax.jit
    def step(carry, grads):
      new = [stepped(tx, *one, grads) for tx, one in zip(txs, carry, strict=True)]
      return new, [params for params, _ in new]

    params = start(dtype)
    (ours, theirs), paths = loop(step, [(params, tx.init(params)) for tx in txs], gradients(dtype))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(lambda x: (x.shape, x.dtype), theirs)
    flat = lambda tree: [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    for a, b in zip(flat(ours), flat(theirs), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    for path in paths:
      assert error_of_length(path) <= {4: 4 * EPS, 8: 1e-15}[jnp.dtype(dtype).itemsize]


@pytest.mark.heavy
@pytest.mark.parametrize(
  ("dtype", "kwargs"),
  [(jnp.float32, {"mu_dtype": jnp.bfloat16}), (jnp.bfloat16, {}), (jnp.float16, {})],
  ids=["bfloat16 mean", "bfloat16", "float16"],
)
def test_both_forms_take_the_same_step_from_each_of_1000_states(dtype, kwargs):
  """Stored in a narrow dtype, what differs by float32's rounding may be rounded to neighbours, and rarely is.

  Two trajectories would keep such differences, and part by a distance that depends on the processor. Neighbours lie a
  unit in the last place apart. For a number among the largest of its leaf some units of float32 in one of bfloat16,
  16 · 2⁻²³ / 2⁻⁸, make it a matter of one in two thousand; small numbers have smaller units: of all, one in a hundred.
  """
  tx, definition = optax_ext.nd_adam(1e-3, axes=AXES, **kwargs), chain(**kwargs)

  def apart(old, a, b):
    """The largest distance in units that are allowed, and the share of numbers that are not the same.

    An update is rounded, and then its sum with the old number: two neighbours.
    """
    info = jnp.finfo(b.dtype)
    old, a, b = (np.float64(x).reshape(1000, -1) for x in (old, a, b))
    difference, size = np.abs(a - b), np.abs(b)
    rounding = 16 * EPS * size.max(1, keepdims=True)
    unit = lambda size: float(info.eps) * np.maximum(size, float(info.smallest_normal)) if info.bits == 16 else 0
    neighbours = unit(size) + unit(size + np.abs(old))
    return np.max(difference / (neighbours + rounding)), np.mean(difference > rounding)

  @jax.jit
  def step(carry, grads):
    ours, theirs = stepped(tx, *carry, grads), stepped(definition, *carry, grads)
    return ours, (carry, ours, theirs)

  params = start(dtype)
  _, states = loop(step, (params, tx.init(params)), gradients(dtype))
  floats = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  for leaves in zip(*map(floats, states), strict=True):
    distance, share = apart(*leaves)
    assert distance <= 1
    assert share <= 0.01
  assert error_of_length(states[1][0]) <= {2: 2**-8, 4: 4 * EPS}[jnp.dtype(dtype).itemsize]


def parallel(kind, n, sine, columns=32):
  """Unit vectors w, gradients at an angle to them, and what is left of these without their part along w."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(n, columns))
  if kind == "one large weight":
    w *= 1e-3
    w[n // 3] = 1
  elif kind == "dead inputs":
    w *= np.where(rng.random((n, 1)) < 0.5, 1e-8, 1)
  elif kind == "of all magnitudes":
    w *= 10.0 ** rng.uniform(-8, 0, (n, 1))
  elif kind == "one in a hundred":
    w *= rng.random((n, columns)) < 0.01
    w[n // 3] += w[n // 3] == 0
  w = (w / np.linalg.norm(w, axis=0)).astype(np.float32).astype(np.float64)
  tangent = rng.normal(size=(n, columns))
  tangent -= (tangent * w).sum(0) / (w * w).sum(0) * w
  g = (3 * (w + sine * tangent / np.linalg.norm(tangent, axis=0))).astype(np.float32).astype(np.float64)
  return w, g, g - (g * w).sum(0) / (w * w).sum(0) * w


def first_step(w, g):
  """ND-Adam's estimate of ‖projected g‖ after one step from 0, and the new weights."""
  tx, step = UNIT_STEP
  new, state = step(jnp.asarray(w, jnp.float32), tx.init(jnp.asarray(w, jnp.float32)), jnp.asarray(g, jnp.float32))
  lengths = np.sqrt(np.asarray(optax.tree.get(state, "nu"), np.float64)[0] / 1e-3)
  return lengths, np.asarray(new, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("sine", [1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("kind", ["normal", "one large weight", "dead inputs", "of all magnitudes"])
def test_gradients_nearly_parallel_to_the_weights(kind, sine):
  """No digit is lost but by the rounding of g − c·w itself, of the relative size ε/sin θ, whatever the angle.

  The plain difference g·g − (g·w)²/(w·w) loses ε/sin² θ. One large weight that the sample does not see costs 10⁻³.
  """
  for n in (2, 512) if kind == "normal" else (512,):
    w, g, rest = parallel(kind, n, sine)
    lengths, new = first_step(w, g)
    want = np.linalg.norm(rest, axis=0)
    limit = EPS / sine + 8 * EPS + (1e-3 if kind == "one large weight" and sine < 0.1 else 0)
    np.testing.assert_allclose(lengths, want, rtol=limit)
    exact = w - 0.05 * rest / want
    np.testing.assert_allclose(np.linalg.norm(new, axis=0), 1, atol=2e-6 if kind == "one large weight" else 4 * EPS)
    np.testing.assert_allclose(new, exact / np.linalg.norm(exact, axis=0), atol=0.05 * limit + 2 * EPS)


@pytest.mark.parametrize("sine", [1, 1e-1, 1e-2, 1e-4, 1e-6])
def test_sparse_weights_that_the_sample_misses(sine):
  """The angle is resolved to 10⁻³; below, the length is over-estimated, never less, so that no step is too large."""
  w, g, rest = parallel("one in a hundred", 512, sine)
  lengths, new = first_step(w, g)
  want = np.linalg.norm(rest, axis=0)
  assert (lengths >= want * (1 - 2 * EPS / sine**2)).all() or (lengths >= want).all()
  assert (lengths <= want * (1 + 8 * EPS / sine**2) + 3e-3).all()
  np.testing.assert_allclose(np.linalg.norm(new, axis=0), 1, atol=2e-3 if sine < 1e-3 else 1e-5)


@pytest.mark.heavy
def test_a_mean_that_is_not_tangent():
  """As after a restart from another optimizer's mean: the exact products of m are used, not those of theory."""
  w, g, m = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(3, 64, 8)))
  w = optax_ext.normalize_vectors(w, (0,))
  ours, theirs = optax_ext.nd_adam(1e-3, axes=(0,)), chain((0,))
  moments = optax.ScaleByAdamState(count=jnp.int32(3), mu=m + 2 * w, nu=jnp.full((1, 8), 0.1))
  state = lambda tx: tuple(moments if isinstance(s, optax.ScaleByAdamState) else s for s in tx.init(w))
  got, want = (jax.jit(tx.update)(g, state(tx), w)[0] for tx in (ours, theirs))
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(w + got, axis=0), 1, rtol=4 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1e-15, 1e10, 1e18, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("length", [0, 1e-25, 1, 1e3, 1e25])
def test_extreme_numbers_do_as_in_the_chain(size, length):
  """Zero vectors, weights that are not of unit length, squares that leave float32, gradients that are no numbers."""
  w, g = np.random.default_rng(0).normal(size=(2, 32, 4))
  w, g = (jnp.asarray(x, jnp.float32) for x in (length * w / np.linalg.norm(w, axis=0), size * g))
  w = w.at[:, 0].set(0)
  results = []
  for tx, step in (UNIT_STEP, CHAIN_STEP):
    params, state = w, tx.init(w)
    for _ in range(2):
      params, state = step(params, state, g)
    results.append((params, optax.tree.get(state, "mu"), optax.tree.get(state, "nu")))
  for ours, theirs in zip(*results, strict=True):
    largest = np.abs(theirs, where=np.isfinite(theirs), out=np.zeros(theirs.shape)).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.heavy
def test_derivative_of_an_update():
  """The sampled coefficient is held fixed: the result does not depend on it."""
  with enable_x64(True):
    w, g = draw(0, jnp.float64, shapes={"in": (32, 2)}), draw(1, jnp.float64, shapes={"in": (32, 2)})
    w = optax_ext.normalize_vectors(w, (0,))

    def loss(tx, g, w):
      updates, state = tx.update(g, tx.init(w), w)
      return jnp.sum(jnp.sin(optax.apply_updates(w, updates)["in"])) + jnp.sum(optax.tree.get(state, "nu")["in"])

    slopes = jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)
    ours, theirs = (slopes(tx, g, w) for tx in (UNIT_STEP[0], CHAIN_STEP[0]))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.heavy
def test_leaves_of_other_kinds_take_the_chain(monkeypatch):
  """Complex vectors, empty leaves, scalars, missing gradients and small leaves, beside one that does not."""
  monkeypatch.setattr(one_pass, "SMALL", 16)
  params = {
    "c": jnp.ones((4, 2), jnp.complex64) * (1 + 2j),
    "empty": jnp.ones((0, 3)),
    "w": jnp.eye(4),
    "small": jnp.eye(3),
    "s": jnp.ones(3),
  }
  params = params | {"missing": None}
  axes = lambda path, leaf: None if path == "s" else (0,)
  grads = jax.tree.map(lambda p: p * 0.5 + 1, params)
  results = []
  for tx in (optax_ext.nd_adam(1e-3, axes=axes), chain(axes)):
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    results.append((updates, state))
    _, state = jax.jit(tx.update)(grads | {"w": None, "small": None}, state, params)
    results[-1] += (state,)
  assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
  chex.assert_trees_all_close(*results, rtol=1e-5, atol=4 * EPS)


@pytest.mark.slow
def test_vmap_and_injected_numbers():
  tx = optax.inject_hyperparams(optax_ext.nd_adam, static_args="axes")(1e-3, axes=(0,))
  w = optax_ext.normalize_vectors(draw(0)["in"], (0,))
  many = jnp.stack([w, -w, w[::-1]])
  update = lambda w: tx.update(w**2 + 1, tx.init(w), w)[0]
  want = jnp.stack([CHAIN_STEP[1](w, CHAIN_STEP[0].init(w), w**2 + 1)[0] - w for w in many])
  np.testing.assert_allclose(jax.jit(jax.vmap(update))(many), want, atol=4 * EPS)


def test_no_sum_waits_for_another():
  """A second round of sums would read everything once more. The chain of pieces has three."""

  total = lambda x: jnp.sum(x, 0, keepdims=True)
  totals = lambda *products: tuple(map(total, products))

  def rounds(step, *rest):
    x, v = jnp.ones((64, 2)), jnp.ones((1, 2))
    jaxpr = jax.make_jaxpr(lambda g, w, m, v: step(g, w, m, v, *rest))(x, x, x, v).jaxpr
    depth = {}
    for eqn in jaxpr.eqns:
      below = max((depth.get(x, 0) for x in eqn.invars if not hasattr(x, "val")), default=0)
      depth |= dict.fromkeys(eqn.outvars, below + (eqn.primitive.name == "reduce_sum"))
    return max(depth.values())

  gains, multiplier = (0.1, 0.001), lambda v: -0.1 / v
  assert rounds(steps.step_from_sums, jnp.ones((1, 2)), gains, multiplier, totals) == 1
  assert rounds(steps.step_in_order, gains, multiplier, total) == 3


@pytest.mark.parametrize("along", [(0,), (1,), (0, 2)])
def test_sums_one_by_one_and_at_once(monkeypatch, along):
  """Programs for GPUs stack what is summed."""
  products = tuple(draw(seed, shapes={"x": (3, 4, 5)})["x"] for seed in range(3))
  want = steps.totals(products, along, ())
  monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))
  got = steps.totals(products, along, ())
  assert [x.shape for x in got] == [np.sum(products[0], along, keepdims=True).shape] * 3
  chex.assert_trees_all_close(got, want, rtol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=["input split", "output split"])
def test_vectors_on_a_mesh(spec, kind):
  """Split by jax.jit, and inside shard_map with an axis name: the same as whole."""
  mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
  with enable_x64(True):
    w, g = (draw(seed, jnp.float64, shapes={"in": (64, 8)})["in"] for seed in (0, 1))
    w = optax_ext.normalize_vectors(w, (0,))
    tx = optax_ext.nd_adam(1e-3, axes=(0,), axis_name="data" if spec == P("data") else None)
    state = tx.init(w)
    want = jax.jit(tx.update)(g, state, w)
    of_state = optax_ext.state_shardings(tx, w, NamedSharding(mesh, spec))
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (g, w)]
    with jax.set_mesh(mesh):
      args = placed[0], jax.device_put(state, of_state), placed[1]
      specs = jax.tree.map(lambda x: x.sharding.spec, args)
      inside = jax.shard_map(tx.update, in_specs=specs, out_specs=specs[:2])
      for update in (jax.jit(tx.update), jax.jit(inside)):
        got = update(*args)
        chex.assert_trees_all_close(got, want, rtol=1e-12, atol=1e-15)
