import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from support import enable_x64, open_loop, problem, relative, run

import optax_ext
from optax_ext import Additive, ByDepth, Multiplicative

pytestmark = pytest.mark.filterwarnings("ignore:(scale_by_structure|nd_adam) sees")  # many trees of one matrix

STEPS, SHAPE = 1000, (6, 5)
GRADS = open_loop(SHAPE, STEPS)
START = np.random.default_rng(1).normal(size=SHAPE)
UNIT = START / np.linalg.norm(START, axis=0)
GRADIENTS = {"open": lambda t, params: GRADS[t - 1], "closed": problem(SHAPE)}
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 20, STEPS)

CASES = {
  "exadam": (optax_ext.exadam(1e-3), reference.exadam),
  "exadam_decay": (
    optax_ext.exadam(3e-3, 0.85, 0.98, 1e-6, weight_decay=0.1),
    functools.partial(reference.exadam, lr=3e-3, b1=0.85, b2=0.98, eps=1e-6, decay=0.1),
  ),
  "exadam_nolog": (optax_ext.exadam(1e-3, log_step=False), functools.partial(reference.exadam, log_step=False)),
  "exadam_eps_root": (
    optax_ext.exadam(1e-3, eps=1e-4, eps_root=1e-3),
    functools.partial(reference.exadam, eps=1e-4, eps_root=1e-3),
  ),
  "adamnx": (optax_ext.adamnx(1e-3), reference.adamnx),
  "adamnx_b2": (
    optax_ext.adamnx(3e-3, 0.8, 0.9, 1e-6, weight_decay=0.0),
    functools.partial(reference.adamnx, lr=3e-3, b1=0.8, b2=0.9, eps=1e-6, decay=0.0),
  ),
  "adamnx_eps_root": (
    optax_ext.adamnx(1e-3, eps_root=1e-3),
    functools.partial(reference.adamnx, eps_root=1e-3),
  ),
  "caadam": (optax_ext.caadam(1e-3, rule=0.37), functools.partial(reference.caadam, scale=0.37)),
  "caadam_decay": (
    optax_ext.caadam(3e-3, 0.85, 0.98, 1e-6, weight_decay=0.1, rule=5.0),
    functools.partial(reference.caadam, scale=5.0, lr=3e-3, b1=0.85, b2=0.98, eps=1e-6, decay=0.1),
  ),
  "nd_adam": (optax_ext.nd_adam(1e-3, axes=(0,)), functools.partial(reference.nd_adam, axes=(0,))),
  "nd_adam_rate": (
    optax_ext.nd_adam(1.0, 0.8, 0.99, 1e-4, vector_learning_rate=0.01, axes=(1,)),
    functools.partial(reference.nd_adam, axes=(1,), lr=0.01, b1=0.8, b2=0.99, eps=1e-4),
  ),
  "nd_adam_scalars": (
    optax_ext.nd_adam(1e-3, axes=lambda path, leaf: None),
    functools.partial(reference.caadam, scale=1),
  ),
}


def start(name):
  return UNIT if name.startswith("nd_adam") else START


@pytest.mark.heavy
@pytest.mark.parametrize("loop", GRADIENTS)
@pytest.mark.parametrize("name", CASES)
def test_trajectory_float64(name, loop):
  """1,000 steps against the equations: 1e-12 relative (closed loops amplify rounding: measured up to 1e-12)."""
  tx, oracle = CASES[name]
  with enable_x64(True):
    got = run(tx, start(name), GRADIENTS[loop], STEPS)
  # the oracle evaluates AdamNX's decay as printed, with cancellation
  bound = 1e-10 if name.startswith("adamnx") else 1e-12
  assert relative(got, oracle(start(name), GRADIENTS[loop], STEPS)) <= bound


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_trajectory_float32(name):
  """1,000 open-loop steps: within 1e-5 of the largest parameter."""
  tx, oracle = CASES[name]
  grads = GRADS.astype(np.float32).astype(np.float64)
  begin = start(name).astype(np.float32).astype(np.float64)
  got = run(tx, begin, lambda t, p: grads[t - 1], STEPS, jnp.float32)
  assert relative(got, oracle(begin, lambda t, p: grads[t - 1], STEPS)) <= 1e-5


class TestFirstSteps(chex.TestCase):
  """The equations' first steps, compiled or not, from arrays on the device or of NumPy, and mapped over devices."""

  @chex.all_variants()
  @parameterized.parameters("exadam_decay", "adamnx", "caadam_decay", "nd_adam")
  def test_in_every_way_to_call_it(self, name):
    tx, oracle = CASES[name]
    step, path = self.variant(tx.update), [np.float32(start(name))]
    state = tx.init(path[0])
    for grad in np.float32(GRADS[:5]):
      updates, state = step(grad, state, path[-1])
      path.append(path[-1] + np.asarray(updates))
    want = oracle(path[0].astype(np.float64), lambda t, p: np.float32(GRADS[t - 1]).astype(np.float64), 5)
    chex.assert_trees_all_close(np.stack(path), np.float32(want), rtol=1e-5, atol=1e-5)


# caadam on a network


COUNTS = {"Dense_0": 30, "Dense_1": 40, "Dense_2": 8}
RULES = {
  Additive(): lambda name, i: reference.additive(COUNTS[name], [*COUNTS.values()], 0.95),
  Multiplicative(): lambda name, i: reference.multiplicative(COUNTS[name], [*COUNTS.values()], 5.0),
  Multiplicative(2.0, signed=True): lambda name, i: reference.multiplicative(
    COUNTS[name], [*COUNTS.values()], 2.0, signed=True
  ),
  ByDepth(): lambda name, i: reference.by_depth(i, 3, 1.0),
}


@pytest.mark.heavy
@pytest.mark.parametrize("rule", RULES)
def test_caadam_on_an_mlp(rule):
  shapes = {"Dense_0": (6, 5), "Dense_1": (5, 8), "Dense_2": (8, 1)}
  params = {
    name: {"kernel": np.random.default_rng(i).normal(size=shape), "bias": np.zeros(shape[1])}
    for i, (name, shape) in enumerate(shapes.items())
  }
  gradients = jax.tree.map(lambda p: problem(p.shape, seed=p.size), params)
  gradient = lambda t, params: jax.tree.map(lambda f, p: f(t, p), gradients, params)
  with enable_x64(True):
    got = run(optax_ext.caadam(1e-2, rule=rule, weight_decay=0.1), params, gradient, 200)
  for i, name in enumerate(shapes):
    for part in ("kernel", "bias"):
      scale = RULES[rule](name, i)
      want = reference.caadam(params[name][part], gradients[name][part], 200, scale, lr=1e-2, decay=0.1)
      assert relative(got[name][part], want) <= 1e-12


def test_caadam_with_unit_scale_is_adam():
  with enable_x64(True):
    want = run(optax.adam(1e-2), START, GRADIENTS["closed"], STEPS)
    assert relative(run(optax_ext.caadam(1e-2, rule=1.0), START, GRADIENTS["closed"], STEPS), want) <= 1e-11
    assert relative(run(optax_ext.caadam(1e-2), START, GRADIENTS["closed"], STEPS), want) <= 1e-11  # one layer: S = 1


# EXAdam's theorems


def test_late_exadam_without_log_step_is_quasi_hyperbolic_adam():
  """With c₁ = c₂ = d₁ = d₂ = 1 the direction is 2·(½m + ½g)/(√v + ε): quasi-hyperbolic Adam, twice the rate."""
  with enable_x64(True):
    m, v, g = (jnp.asarray(np.random.default_rng(i).uniform(0.1, 1, 8)) for i in range(3))
    tx = optax_ext.exadam(1e-3, log_step=False)
    state = tx.init(g)
    late = state[0]._replace(count=jnp.int32(200_000), mu=m, nu=v)
    updates, _ = tx.update(g, (late, *state[1:]))
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    np.testing.assert_allclose(updates, -2e-3 * (m / 2 + g / 2) / (np.sqrt(v) + 1e-8), rtol=1e-12)


@pytest.mark.parametrize(("size", "log", "plain"), [(1.0, 11.06, 15.95), (1e-2, 10.6, 15.3), (1e-3, 6.9, 10.0)])
def test_first_step_of_exadam_against_adams(size, log, plain):
  """The factors of equations that a user has to know: EXAdam is not invariant to the gradient's scale."""
  for log_step, want in ((True, log), (False, plain)):
    tx = optax_ext.exadam(1.0, log_step=log_step)
    updates, _ = tx.update(jnp.full(1, size), tx.init(jnp.zeros(1)))
    assert float(-updates[0]) == pytest.approx(want, rel=6e-3)


@pytest.mark.parametrize(("t", "want"), [(10, 6.7), (100, 10.1), (1000, 10.4), (5000, 9.3)])
def test_steps_of_exadam_at_a_constant_gradient(t, want):
  tx = optax_ext.exadam(1.0)
  grad = jnp.ones(1)

  def step(state, _):
    updates, state = tx.update(grad, state)
    return state, updates

  _, updates = jax.lax.scan(step, tx.init(grad), length=t)
  assert float(-updates[-1, 0]) == pytest.approx(want, rel=1e-2)


@pytest.mark.heavy
@pytest.mark.parametrize(("t", "want"), [(10, 14.0), (300, 27.1), (1000, 24.9)])
def test_steps_of_exadam_in_noise_against_adams(t, want):
  """Root mean squares. Where the gradients' mean is zero, the gradient that EXAdam adds to m is the larger part."""

  def sizes(tx):
    def step(state, count):
      noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), count), (4096,))
      updates, state = tx.update(noise, state)
      return state, jnp.sqrt(jnp.mean(updates**2))

    return jax.lax.scan(step, tx.init(jnp.zeros(4096)), jnp.arange(t))[1]

  assert float(sizes(optax_ext.exadam(1.0))[-1] / sizes(optax.adam(1.0))[-1]) == pytest.approx(want, rel=5e-2)


def test_log_step_is_a_piece_of_its_own():
  """exadam without it, on a learning rate multiplied by it, is exadam with it."""
  got = optax_ext.exadam(optax_ext.log_step_size(SCHEDULE), log_step=False)
  with enable_x64(True):
    want = run(optax_ext.exadam(SCHEDULE), START, GRADIENTS["closed"], 100)
    assert relative(run(got, START, GRADIENTS["closed"], 100), want) <= 1e-12


# ND-Adam's theorems


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(7, 4), (3, 3, 2, 4)])
def test_vectors_keep_unit_length(shape):
  axes = tuple(range(len(shape) - 1))
  params = optax_ext.normalize_vectors(np.random.default_rng(0).normal(size=shape).astype(np.float32), axes)
  path = run(optax_ext.nd_adam(1e-2, axes=axes), params, problem(shape), 100, jnp.float32)
  np.testing.assert_allclose(np.sqrt((path.astype(np.float64) ** 2).sum(tuple(a + 1 for a in axes))), 1, atol=3e-7)


@pytest.mark.heavy
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=10)
def test_rotating_weights_and_gradients_rotates_the_trajectory(seed):
  rng = np.random.default_rng(seed)
  rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  grads, w = rng.normal(size=(30, *SHAPE)), optax_ext.normalize_vectors(rng.normal(size=SHAPE).astype(np.float32), (0,))
  with enable_x64(True):
    path = lambda tx, q: run(tx, q @ np.asarray(w), lambda t, p: q @ grads[t - 1], 30)
    nd = optax_ext.nd_adam(1e-2, axes=(0,))
    assert relative(path(nd, rotation), rotation @ path(nd, np.eye(6))) <= 1e-10
    assert relative(path(optax.adam(1e-2), rotation), rotation @ path(optax.adam(1e-2), np.eye(6))) > 1e-3


@pytest.mark.slow
@given(factor=st.sampled_from([1e-3, 0.1, 10.0, 1e4]))
@settings(deadline=None, max_examples=4)
def test_initial_length_is_forgotten(factor):
  """For recorded gradients, scaling the initial weights changes nothing after normalisation."""
  tx = optax_ext.nd_adam(1e-2, axes=(0,))
  with enable_x64(True):
    begin = lambda scale: optax_ext.normalize_vectors(jnp.asarray(scale * START), (0,))
    path = lambda scale: run(tx, begin(scale), GRADIENTS["open"], 100)
    assert relative(path(factor), path(1.0)) <= 1e-11


def test_without_momentum_the_step_is_along_the_projected_gradient():
  tx, g = optax_ext.nd_adam(1e-2, b1=0.0, axes=(0,)), GRADS[5]
  with enable_x64(True):
    w = jnp.asarray(UNIT)
    new = w + tx.update(jnp.asarray(g), tx.init(w), w)[0]
    direction = new / (new * w).sum(0) - w  # back to the tangent plane
    projected = g - (g * UNIT).sum(0) * UNIT
    some = np.linalg.norm(projected, axis=0) > 0
    cosine = (direction * projected).sum(0) / np.linalg.norm(direction, axis=0) / np.linalg.norm(projected, axis=0)
    np.testing.assert_allclose(cosine[some], -1, atol=1e-10)


def test_permuting_units_permutes_the_update():
  order = np.random.default_rng(0).permutation(SHAPE[1])
  tx = optax_ext.nd_adam(1e-2, axes=(0,))
  with enable_x64(True):
    path = run(tx, UNIT, GRADIENTS["open"], 50)
    permuted = run(tx, UNIT[:, order], lambda t, p: GRADS[t - 1][:, order], 50)
  np.testing.assert_array_equal(permuted, path[..., order])


def test_zero_vectors_stay_zero():
  w = np.array(UNIT)
  w[:, 2] = 0
  zero_grads = np.where(np.arange(5) == 2, 0, GRADS)
  path = run(optax_ext.nd_adam(1e-2, axes=(0,)), w, lambda t, p: zero_grads[t - 1], 50, jnp.float32)
  assert np.isfinite(path).all()
  np.testing.assert_array_equal(path[:, :, 2], 0)


def test_default_vectors_follow_the_structure():
  params = {"Conv_0": {"kernel": np.ones((3, 3, 2, 4)), "bias": np.ones(4)}, "Dense_0": {"kernel": np.ones((4, 3))}}
  axes = {"Conv_0": {"kernel": (0, 1, 2), "bias": None}, "Dense_0": {"kernel": (0,)}}
  gradient = lambda t, params: jax.tree.map(lambda p: problem(p.shape)(t, p), params)
  with enable_x64(True):
    want = run(optax_ext.nd_adam(1e-2, axes=axes), params, gradient, 20)
    for kwargs in ({}, {"structure": optax_ext.structure_from_params(params)}):
      got = run(optax_ext.nd_adam(1e-2, **kwargs), params, gradient, 20)
      assert jax.tree.all(jax.tree.map(np.array_equal, got, want))


def test_scalars_of_nd_adam_take_adams_step():
  params = {"kernel": UNIT, "bias": START[0]}
  axes = {"kernel": (0,), "bias": None}
  gradient = lambda t, params: {"kernel": GRADS[t - 1], "bias": GRADS[t - 1][0]}
  with enable_x64(True):
    got = run(optax_ext.nd_adam(1e-2, axes=axes), params, gradient, 100)
  assert relative(got["bias"], reference.caadam(START[0], lambda t, p: GRADS[t - 1][0], 100, 1, lr=1e-2)) <= 1e-12
  assert relative(got["kernel"], reference.nd_adam(UNIT, GRADIENTS["open"], 100, (0,), lr=50e-2)) <= 1e-12


def test_vector_learning_rate_follows_a_schedule():
  with enable_x64(True):
    path = lambda **kwargs: run(optax_ext.nd_adam(SCHEDULE, axes=(0,), **kwargs), UNIT, GRADIENTS["open"], 60)
    assert relative(path(), path(vector_learning_rate=lambda count: 50 * SCHEDULE(count))) <= 1e-12
    assert relative(path(), path(vector_learning_rate=SCHEDULE)) > 1e-3


# across papers: one chain each


EXADAM_WITH_ADAMNX_DECAY = optax.chain(
  optax_ext.scale_by_moments(
    optax_ext.constant_gain(0.9),
    optax_ext.adamnx_gain(0.99),
    debias=optax_ext.cross_moment(0.9, 0.0),
    ratio=optax_ext.accelerated_ratio(1e-8),
  ),
  optax.scale_by_learning_rate(1e-3),
)


def oracle_exadam_with_adamnx_decay(params, gradient, steps):
  """v needs no correction (w(1) = 1), which is b2 = 0 in EXAdam's debiasing: c₂ = 1, d₁ = 1."""
  m, v, path, k = 0 * params, 0 * params, [params], 1 - 0.99
  for t in range(1, steps + 1):
    g = gradient(t, path[-1])
    decay = (1 - 0.99 ** (k * (t - 1))) / (1 - 0.99 ** (k * t))
    m, v = 0.9 * m + 0.1 * g, decay * v + (1 - decay) * g**2
    c1, d2 = 1 - 0.9**t, 1 + 0.9**t * m**2 / (m**2 + 1e-8)
    path.append(path[-1] - 1e-3 * (m / c1 + g / c1) / (np.sqrt(v * d2) + 1e-8))
  return np.stack(path)


def oracle_exadam_by_depth(params, gradient, steps):
  path = reference.exadam(np.zeros_like(params), gradient, steps)
  return params + 2**0.5 * path  # open loop: the updates of the first of two layers, scaled


def oracle_nd_adam_with_adamnx_decay(params, gradient, steps):
  m, v, path, k = 0 * params, 0.0, [params], 1 - 0.99
  for t in range(1, steps + 1):
    w, g = path[-1], gradient(t, path[-1])
    g = g - (g * w).sum(0) / (w * w).sum(0) * w
    b1 = (0.9 - 0.9**t) / (1 - 0.9**t)
    b2 = (1 - 0.99 ** (k * (t - 1))) / (1 - 0.99 ** (k * t))
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * (g * g).sum(0)
    w = w - 1e-2 * m / (np.sqrt(v) + 1e-8)
    path.append(w / np.linalg.norm(w, axis=0))
  return np.stack(path)


def oracle_all_pieces(params, gradient, steps):
  m, v, path, k = 0 * params, 0.0, [params], 1 - 0.99
  for t in range(1, steps + 1):
    w, g = path[-1], gradient(t, path[-1])
    g = g - (g * w).sum(0) / (w * w).sum(0) * w
    b2 = (1 - 0.99 ** (k * (t - 1))) / (1 - 0.99 ** (k * t))
    m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * (g * g).sum(0)
    c1, d2 = 1 - 0.9**t, 1 + 0.9**t * m**2 / (m**2 + 1e-8)
    step = 1e-2 * 2**0.5 * np.log(2 * (t + 1)) / 2
    w = w - step * (m / c1 + g / c1) / (np.sqrt(v * d2) + 1e-8)
    path.append(w / np.linalg.norm(w, axis=0))
  return np.stack(path)


def two_layers(rule):
  """Scales of the first of two layers."""
  structure = optax_ext.structure_from_params({"a": {"kernel": np.ones(SHAPE)}, "b": {"kernel": np.ones((5, 1))}})
  return rule.scales(structure)["a"]["kernel"]


COMBINATIONS = {
  "AdamNX's decay under EXAdam's debiasing": (EXADAM_WITH_ADAMNX_DECAY, oracle_exadam_with_adamnx_decay, 1e-10),
  "EXAdam scaled by depth": (
    optax.chain(optax_ext.exadam(1e-3), optax_ext.scale_by_structure(two_layers(ByDepth()))),
    oracle_exadam_by_depth,
    1e-12,
  ),
  "ND-Adam's vectors with AdamNX's decay": (
    optax.chain(
      optax_ext.project_out_params((0,)),
      optax_ext.scale_by_moments(
        optax_ext.adam_gain(0.9), optax_ext.adamnx_gain(0.99), square=optax_ext.per_vector((0,))
      ),
      optax.scale_by_learning_rate(1e-2),
      optax_ext.renormalize_params((0,)),
    ),
    oracle_nd_adam_with_adamnx_decay,
    1e-10,
  ),
  "all five kinds of piece": (
    optax.chain(
      optax_ext.project_out_params((0,)),
      optax_ext.scale_by_moments(
        optax_ext.constant_gain(0.9),
        optax_ext.adamnx_gain(0.99),
        debias=optax_ext.cross_moment(0.9, 0.0),
        ratio=optax_ext.accelerated_ratio(),
        square=optax_ext.per_vector((0,)),
      ),
      optax_ext.scale_by_structure(two_layers(ByDepth())),
      optax.scale_by_learning_rate(optax_ext.log_step_size(1e-2)),
      optax_ext.renormalize_params((0,)),
    ),
    oracle_all_pieces,
    1e-10,
  ),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_pieces_of_several_papers_in_one_chain(name):
  tx, oracle, bound = COMBINATIONS[name]
  with enable_x64(True):
    got = run(tx, UNIT, GRADIENTS["open"], 300)
  assert relative(got, oracle(UNIT, GRADIENTS["open"], 300)) <= bound


# arguments


ALL = {"exadam": optax_ext.exadam, "adamnx": optax_ext.adamnx, "caadam": optax_ext.caadam, "nd_adam": optax_ext.nd_adam}
PARAMS = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}, "Dense_1": {"kernel": jnp.ones((4, 2))}}


def test_signatures_are_those_of_adamw():
  adamw = list(inspect.signature(optax.adamw).parameters)[:8]
  for name in ("exadam", "adamnx", "caadam"):
    assert list(inspect.signature(ALL[name]).parameters)[:8] == adamw
  assert list(inspect.signature(optax_ext.nd_adam).parameters)[:6] == adamw[:6]
  for make in ALL.values():
    assert inspect.signature(make).parameters["learning_rate"].annotation == optax.ScalarOrSchedule
    assert isinstance(make(1e-3), optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
  ("kwargs", "says"),
  [
    ({"learning_rate": -1e-3}, "learning_rate must be a number in"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number in"),
    ({"learning_rate": 1e-3, "b1": 1.0}, r"^b1 must be a number in \[0, 1\), but was 1.0"),
    ({"learning_rate": 1e-3, "b2": -0.1}, "^b2 must be a number in"),
    ({"learning_rate": 1e-3, "b2": 1.0}, "^b2 must be a number in"),
    ({"learning_rate": 1e-3, "eps": -1e-8}, "eps must be a number in"),
    ({"learning_rate": 1e-3, "eps_root": -1.0}, "eps_root must be a number in"),
  ],
)
def test_values_outside_their_range(make, kwargs, says):
  with pytest.raises(ValueError, match=says):
    make(**kwargs)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("bad", ["1e-3", None, [1e-3], True])
def test_learning_rates_that_are_no_numbers(make, bad):
  with pytest.raises(TypeError, match=r"learning_rate must be a number in .* or a schedule"):
    make(bad)


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("kind", [jnp.bfloat16, np.float16, np.float64])
def test_numbers_of_every_numpy_type(make, kind):
  """Each is the Python number that it stands for; none is an integer's, or a date's."""
  rate, b1 = np.asarray([0.0625, 0.75]).astype(kind)
  params = {"layer": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.ones(3)}}
  update = lambda tx: tx.update(params, tx.init(params), params)[0]
  got, want = update(make(rate, b1)), update(make(0.0625, 0.75))
  chex.assert_trees_all_close(got, want, rtol=1e-6)
  with pytest.raises(ValueError, match=r"^b1 must be a number in \[0, 1\)"):
    make(rate, np.asarray(-1).astype(kind)[()])
  with pytest.raises(TypeError, match="learning_rate must be a number in"):
    make(np.str_("1e-3"))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("name", ["mu_dtype", "nu_dtype"])
@pytest.mark.parametrize("bad", [jnp.int8, int, bool, "foo", 3])
def test_dtypes_that_moments_cannot_have(make, name, bad):
  with pytest.raises(TypeError, match=f"^{name} must be a floating-point dtype, .* or None, but was "):
    make(1e-3, **{name: bad})


@pytest.mark.parametrize("make", [ALL[name] for name in ("exadam", "adamnx", "caadam")])
def test_negative_weight_decay(make):
  with pytest.raises(ValueError, match="weight_decay must be a number"):
    make(1e-3, weight_decay=-0.1)


def test_bad_arguments_of_single_optimizers():
  with pytest.raises(TypeError, match="rule must be"):
    optax_ext.caadam(1e-3, rule="additive")
  with pytest.raises(TypeError, match=r"write \(0,\)"):
    optax_ext.nd_adam(1e-3, axes=0)
  with pytest.raises(ValueError, match="vector_learning_rate must be a number"):
    optax_ext.nd_adam(1e-3, vector_learning_rate=-1.0)
  with pytest.raises(ValueError, match="give one"):
    optax_ext.nd_adam(1e-3, axes=(0,), structure=optax_ext.structure_from_params(PARAMS))
  with pytest.raises(ValueError, match="has no axis 3"):
    optax_ext.nd_adam(1e-3, axes=lambda path, leaf: (3,)).init(PARAMS)
  for structure in (PARAMS, {}):
    with pytest.raises(TypeError, match=r"^structure must be a Structure, as .* or None, but was a dict"):
      optax_ext.nd_adam(1e-3, structure=structure)


@pytest.mark.slow
def test_params_are_needed_for_decay_and_vectors_only():
  for name, make in ALL.items():
    tx = make(1e-3)
    state = tx.init(PARAMS)
    if name in ("exadam", "caadam"):
      tx.update(PARAMS, state)
    else:
      with pytest.raises(ValueError, match=r"not passing `params`|Weight decay needs the parameters"):
        tx.update(PARAMS, state)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_integer_parameters(make):
  with pytest.raises(TypeError, match="Parameter 'steps' has dtype int32"):
    make(1e-3).init({"steps": jnp.zeros(3, jnp.int32)})


@pytest.mark.parametrize("make", [ALL[name] for name in ("exadam", "adamnx", "caadam")])
def test_state_does_not_depend_on_the_amount_of_decay(make):
  """So that a checkpoint can be continued with another weight decay."""
  assert jax.tree.structure(make(1e-3, weight_decay=0.0).init(PARAMS)) == jax.tree.structure(
    make(1e-3, weight_decay=0.1).init(PARAMS)
  )


@pytest.mark.parametrize("make", [ALL[name] for name in ("exadam", "adamnx", "caadam")])
def test_mask_and_decay_schedule(make):
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  no_biases = lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
  ones = jax.tree.map(jnp.ones_like, PARAMS)
  tx = make(0.5, weight_decay=0.1, mask=no_biases)
  updates, _ = tx.update(zeros, tx.init(ones), ones)
  np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["Dense_0"]["bias"], 0)
  tx = make(0.5, weight_decay=lambda count: 0.1 / (count + 1))
  _, state = tx.update(zeros, tx.init(ones), ones)
  np.testing.assert_allclose(tx.update(zeros, state, ones)[0]["Dense_0"]["bias"], -0.025, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_constant_schedule_is_the_number(make):
  path = lambda rate: jax.jit(make(rate).update)(PARAMS, make(rate).init(PARAMS), PARAMS)[0]
  assert jax.tree.all(jax.tree.map(np.allclose, path(1e-2), path(optax.constant_schedule(1e-2))))


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_come_back_and_stay(make, dtype):
  params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
  tx = make(1e-2)
  state = tx.init(params)
  for grads in (params, jax.tree.map(jnp.zeros_like, params), params):
    updates, new = jax.jit(tx.update)(grads, state, params)
    assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, params)
    assert jax.tree.map(lambda s: (s.dtype, s.shape), new) == jax.tree.map(lambda s: (s.dtype, s.shape), state)
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    state = new


@pytest.mark.heavy
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_odd_trees(make):
  for params in (
    {},
    {"a": None, "b": jnp.ones((0, 3))},
    jnp.ones(()),
    {"w": 1.0},
    [jnp.ones(2), (jnp.ones((2, 2)),)],
    {"c": jnp.ones((2, 2), jnp.complex64)},
  ):
    tx = make(1e-2)
    updates, state = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_inject_hyperparams(make):
  """Every number becomes state and may be traced; callables and rules are left alone."""
  plain, injected = make(1e-2), optax.inject_hyperparams(make)(1e-2)
  state, injected_state = plain.init(PARAMS), injected.init(PARAMS)
  assert {"learning_rate", "b1", "b2", "eps"} <= set(injected_state.hyperparams)
  for _ in range(3):
    updates, state = jax.jit(plain.update)(PARAMS, state, PARAMS)
    got, injected_state = jax.jit(injected.update)(PARAMS, injected_state, PARAMS)
    chex.assert_trees_all_close(got, updates, rtol=2e-5, atol=1e-7)


def test_callable_arguments_under_inject_hyperparams():
  """Axes and masks that are functions belong in static_args: a callable is taken for a schedule otherwise."""
  tx = optax.inject_hyperparams(optax_ext.nd_adam, static_args="axes")(1e-2, axes=lambda path, leaf: None)
  assert jax.tree.leaves(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0])
  mask = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
  tx = optax.inject_hyperparams(optax_ext.adamnx, static_args="mask")(1e-2, mask=mask)
  assert jax.tree.leaves(tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0])


def test_bfloat16_parameters_under_inject_hyperparams():
  """inject_hyperparams rounds numbers to the parameters' dtype, where 0.999 is 1: ask for float32 (optax #1414)."""
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
  want = optax_ext.exadam(1e-2).update(params, optax_ext.exadam(1e-2).init(params), params)[0]
  good = optax.inject_hyperparams(optax_ext.exadam, hyperparam_dtype=jnp.float32)(1e-2)
  got = good.update(params, good.init(params), params)[0]
  assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a.astype(float), b.astype(float), rtol=1e-2), got, want))
  bad = optax.inject_hyperparams(optax_ext.exadam)(1e-2)
  assert float(bad.init(params).hyperparams["b2"]) == 1


def test_extra_arguments_are_accepted():
  for make in ALL.values():
    tx = make(1e-2)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, unexpected="x")
