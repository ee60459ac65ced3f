"""What nd_adam says at init where the method's conditions do not hold, and what keeps vectors at length 1."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import jitted

import optax_ext

X = jnp.ones((5, 4))
SHAPES = {"w": (4, 6), "bias": (6,), "out": (6, 2)}
UNIT = optax_ext.normalize_vectors(
  {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()},
  {"w": (0,), "bias": None, "out": (0,)},
)
AXES = {"w": (0,), "bias": None, "out": (0,)}


def net(p, x):
  y = x @ p["w"] + p["bias"]
  return ((y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)) @ p["out"]


def plain(p, x):
  return jnp.tanh(x @ p["w"] + p["bias"]) @ p["out"]


def told(tx, params, init=lambda tx, params: tx.init(params)):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    init(tx, params)
  assert all(one.category is UserWarning and one.filename == __file__ for one in caught)
  return [str(one.message) for one in caught]


# length


def test_unit_vectors_need_no_word():
  assert not told(optax_ext.nd_adam(1e-3, axes=AXES), UNIT)
  narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), UNIT)
  assert np.ptp(jnp.linalg.norm(narrow["w"].astype(jnp.float32), axis=0)) > 1e-3  # rounding
  assert not told(optax_ext.nd_adam(1e-3, axes=AXES), narrow)


@pytest.mark.parametrize(("factor", "lengths"), [(1.02, "1 to 1.02"), (0.98, "0.98 to 1"), (3.0, "1 to 3")])
def test_one_vector_of_another_length_gets_a_word(factor, lengths):
  params = UNIT | {"w": UNIT["w"].at[:, 1].multiply(factor)}
  (message,) = told(optax_ext.nd_adam(1e-3, axes=AXES), params)
  assert message == (
    f"nd_adam starts from vectors whose length is not 1, in 'w' ('w' has lengths from {lengths}), and its first step "
    "makes it 1: start from normalize_vectors(params, axes)."
  )
  assert not told(optax_ext.nd_adam(1e-3, axes=AXES | {"w": None}), params)


@pytest.mark.heavy
def test_vectors_of_length_0_jump_and_are_named():
  """A low-rank adapter's second factor starts from 0, which no normalisation helps."""
  params, axes = UNIT | {"lora_b": jnp.zeros((3, 4))}, AXES | {"lora_b": (0,)}
  words = "vectors of length 0, in 'lora_b', which jump to 1 with their first gradient: give them the axes None."
  assert told(optax_ext.nd_adam(1e-3, axes=axes), params) == [f"nd_adam starts from {words}"]
  (message,) = told(optax_ext.nd_adam(1e-3, axes=axes), params | {"w": 2 * UNIT["w"]})
  assert "length is not 1, in 'w' (" in message
  assert message.endswith(words)
  tx, grads = optax_ext.nd_adam(1e-3, axes=axes), jax.tree.map(jnp.ones_like, params)
  moved = optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
  np.testing.assert_allclose(jnp.linalg.norm(moved["lora_b"], axis=0), 1, rtol=1e-6)


def test_lengths_of_complex_and_wide_numbers():
  w = jnp.array([[3 + 4j], [0j]]) / 5
  assert not told(optax_ext.nd_adam(1e-3, axes=(0,)), w)
  assert told(optax_ext.nd_adam(1e-3, axes=(0,)), 2 * w)
  assert "lengths from 1 to inf" in told(optax_ext.nd_adam(1e-3, axes=(0,)), jnp.array([[1, 1e30], [0, 1e30]]))[0]


def test_where_numbers_are_not_at_hand_nothing_is_said():
  params, tx = jax.tree.map(lambda leaf: 2 * leaf, UNIT), optax_ext.nd_adam(1e-3, axes=AXES)
  assert told(tx, params)
  for init in (
    lambda tx, params: jax.jit(tx.init)(params),
    lambda tx, params: jax.eval_shape(tx.init, params),
    lambda tx, params: tx.init(jax.eval_shape(lambda: params)),
    lambda tx, params: jax.vmap(tx.init)(jax.tree.map(lambda leaf: leaf[None], params)),
  ):
    assert not told(tx, params, init)


# normalisers


def test_units_that_nothing_normalises_get_a_word():
  structure = optax_ext.structure_from_model(net, UNIT, X)
  (message,) = told(optax_ext.nd_adam(1e-3, structure=structure), UNIT)
  assert message.startswith(
    "nd_adam keeps unit vectors in 'out', where the trace shows no normaliser after each unit: "
  )
  assert told(optax_ext.nd_adam(1e-3, axes=structure), UNIT) == [message]
  assert not told(optax_ext.nd_adam(1e-3, axes=structure.normalised_axes()), UNIT)
  nothing = optax_ext.structure_from_model(plain, UNIT, X)
  assert "unit vectors in 'out', 'w', where" in told(optax_ext.nd_adam(1e-3, structure=nothing), UNIT)[0]
  assert "sees no weight vector" in told(optax_ext.nd_adam(1e-3, axes=nothing.normalised_axes()), UNIT)[0]


def test_names_tell_of_no_normaliser():
  (message,) = told(optax_ext.nd_adam(1e-3), UNIT)
  assert message.startswith("nd_adam keeps unit vectors in all of 'out', 'w', the output layer among them, since names")
  assert told(optax_ext.nd_adam(1e-3, structure=optax_ext.structure_from_params(UNIT)), UNIT) == [message]
  assert not told(optax_ext.nd_adam(1e-3), {"w": UNIT["w"]})


@pytest.mark.slow
def test_the_right_way_in_one_line():
  """Normalised units alone are unit vectors; the output and the bias take Adam's steps."""
  axes = optax_ext.structure_from_model(net, UNIT, X).normalised_axes()
  params = optax_ext.normalize_vectors(jax.tree.map(lambda leaf: 3 * leaf, UNIT), axes)
  tx, adam = optax_ext.nd_adam(1e-2, axes=axes), optax.adam(1e-2)
  grads = jax.grad(lambda p: jnp.sum(net(p, jnp.arange(20.0).reshape(5, 4) ** 2) ** 2))(params)
  updates = tx.update(grads, tx.init(params), params)[0]
  np.testing.assert_allclose(jnp.linalg.norm(params["w"] + updates["w"], axis=0), 1, rtol=1e-6)
  like = adam.update(grads, adam.init(params))[0]
  for name in ("out", "bias"):
    np.testing.assert_allclose(updates[name], like[name], rtol=1e-5)


def test_one_tuple_for_all_makes_no_vectors_of_biases():
  wrong = optax_ext.normalize_vectors({"w": 3 * UNIT["w"], "bias": 3 * jnp.ones(6)}, (0,))
  np.testing.assert_array_equal(wrong["bias"], 3)
  np.testing.assert_allclose(jnp.linalg.norm(wrong["w"], axis=0), 1, rtol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(optax_ext.normalize_vectors(jnp.array([3.0, 4.0]), (0,))), 1, rtol=1e-6)


# what follows


def schedule_free(tx):
  return optax.contrib.schedule_free(tx, learning_rate=1e-3, b1=0.9)


AFTERWARDS = {
  "a scale": lambda tx: optax.chain(tx, optax.scale(0.5)),
  "weight decay": lambda tx: optax.chain(tx, optax.add_decayed_weights(-1e-3)),
  "apply_every": lambda tx: optax.chain(tx, optax.apply_every(4)),
  "ema": lambda tx: optax.chain(tx, optax.ema(0.9)),
  "schedule_free": schedule_free,
  "mechanize": optax.contrib.mechanize,
}
HARMLESS = {
  "MultiSteps": lambda tx: optax.MultiSteps(tx, 4),
  "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
  "clipping before": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
}


def worst_length(tx):
  """The largest | ‖w‖ − 1 | in 30 steps towards a target, with noise."""
  w = UNIT["w"]

  def step(carry, key):
    w, state = carry
    updates, state = tx.update(w - 3 + jax.random.normal(key, w.shape), state, w)
    w = optax.apply_updates(w, updates)
    return (w, state), jnp.max(jnp.abs(jnp.linalg.norm(w, axis=0) - 1))

  keys = jax.random.split(jax.random.key(0), 30)
  return float(jnp.max(jitted(lambda w: jax.lax.scan(step, (w, tx.init(w)), keys)[1])(w)))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", AFTERWARDS.values(), ids=AFTERWARDS)
def test_renormalize_params_as_the_last_link_keeps_unit_length(wrap):
  tx = wrap(optax_ext.nd_adam(1e-3, axes=(0,)))
  assert worst_length(tx) > 1e-4
  assert worst_length(optax.chain(tx, optax_ext.renormalize_params((0,)))) < 2e-6


@pytest.mark.parametrize("wrap", HARMLESS.values(), ids=HARMLESS)
def test_wrappers_that_keep_unit_length(wrap):
  assert worst_length(wrap(optax_ext.nd_adam(1e-3, axes=(0,)))) < 2e-6
