"""What an optax transformation promises beyond optax's own suites, for every factory of the library.

`EVERY` holds each optimizer and each piece, as a function of the learning rate.
"""

import copy
import functools
import itertools
import pickle
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from support import enable_x64, jitted

import optax_ext
from optax_ext import Additive, ByDepth, Multiplicative

AXES = lambda path, leaf: (0,) if path.endswith("kernel") else None


def chain(*pieces):
  return lambda rate: optax.chain(*pieces, optax.scale_by_learning_rate(rate))


def moments(**kwargs):
  return optax_ext.scale_by_moments(optax_ext.constant_gain(0.9), optax_ext.constant_gain(0.999), **kwargs)


def vectors(rate, eps_root=0.0):
  return optax.chain(
    optax_ext.project_out_params(AXES),
    moments(
      debias=optax_ext.standard(0.9, 0.999),
      ratio=optax_ext.adam_ratio(1e-8, eps_root),
      square=optax_ext.per_vector(AXES),
    ),
    optax.scale_by_learning_rate(rate),
    optax_ext.renormalize_params(AXES),
  )


OPTIMIZERS = {
  "exadam": optax_ext.exadam,
  "exadam without log step": functools.partial(optax_ext.exadam, log_step=False),
  "adamnx": optax_ext.adamnx,
  "caadam": optax_ext.caadam,
  "caadam additive": functools.partial(optax_ext.caadam, rule=Additive(), weight_decay=0.1),
  "caadam by depth": functools.partial(optax_ext.caadam, rule=ByDepth()),
  "nd_adam": optax_ext.nd_adam,
}
EVERY = OPTIMIZERS | {
  "standard": chain(moments(debias=optax_ext.standard(0.9, 0.999))),
  "cross_moment": chain(moments(debias=optax_ext.cross_moment(0.9, 0.999), ratio=optax_ext.accelerated_ratio())),
  "nesterov": chain(moments(debias=optax_ext.nesterov(0.9, 0.999), ratio=optax_ext.accelerated_ratio())),
  "adam_gain, adamnx_gain": chain(optax_ext.scale_by_moments(optax_ext.adam_gain(0.9), optax_ext.adamnx_gain(0.99))),
  "adax_gain": chain(optax_ext.scale_by_moments(optax_ext.adam_gain(0.9), optax_ext.adax_gain())),
  "adafactor_gain": chain(optax_ext.scale_by_moments(optax_ext.adam_gain(0.9), optax_ext.adafactor_gain())),
  "log_step_size": lambda rate: optax.scale_by_learning_rate(optax_ext.log_step_size(rate)),
  "scale_by_structure": chain(optax_ext.scale_by_structure(Multiplicative(signed=True) * ByDepth())),
  "project_out_params, per_vector, renormalize_params": vectors,
  "split_weights": lambda rate: optax_ext.split_weights(optax_ext.adamnx(rate)),
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)

RATE = 1e-2


def start(seed=0, *more):
  """Random numbers in the shape of a small network's parameters, or many of them along the axes `more`."""
  rng = np.random.default_rng(seed)
  weight = lambda *shape: rng.normal(size=(*more, *shape)) / shape[0] ** 0.5
  draw = {"Dense_0": {"kernel": weight(6, 5), "bias": weight(5)}, "Dense_1": {"kernel": weight(5, 1)}}
  return jax.tree.map(jnp.asarray, draw)


NOISE = start(2, 4, 16)  # 4 batches of 16


def gradient_of_rows(params, batch, rows):
  """A made-up one, of the mean over some rows of a batch."""
  return jax.tree.map(lambda leaf, noise: 0.1 * jnp.sin(3 * leaf) + noise[batch, rows].mean(0), params, NOISE)


@jitted
def gradient(params, batch=0):
  return gradient_of_rows(params, batch, slice(None))


@jitted
def gradient_of_four(params, batch, first):
  return gradient_of_rows(params, batch, first + jnp.arange(4))


def step(tx, params, state, grads):
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state


def scanned(tx, params, steps=3):
  """The parameters and the state after some steps, as a loop in the program."""

  def body(carry, batch):
    return step(tx, *carry, gradient_of_rows(carry[0], batch, slice(None))), None

  return jax.lax.scan(body, (params, tx.init(params)), jnp.arange(steps))[0]


@functools.cache
def path(make):
  """The parameters and the state before and after each of three steps, one call of a compiled step after another."""
  tx = make(RATE)
  update = jitted(functools.partial(step, tx))
  states = [(PARAMS, tx.init(PARAMS))]
  for batch in range(3):
    states.append(update(*states[-1], gradient(states[-1][0], batch)))
  return states


def close(got, want, rtol=1e-4, atol=1e-6):
  chex.assert_trees_all_close(got, want, rtol=rtol, atol=atol)


PARAMS = start()
GRADS = gradient(PARAMS)


# parts of a tree


def updated(tx, grads, params):
  """The updates of the second step: both moments and their debiasing matter."""
  state = tx.update(grads, tx.init(params), params)[1]
  return tx.update(jax.tree.map(lambda g: g + 1, grads), state, params)[0]


second_updates = jitted(updated, static_argnums=0)


def together(*functions):
  """The results of all, from one program."""
  return jitted(lambda *args: [function(*args) for function in functions])(GRADS, PARAMS)


@pytest.mark.slow
@every
def test_masked(make):
  """The visible part is treated as if it were all there is; hidden gradients pass."""
  kernels = lambda tree: {name: {"kernel": tree[name]["kernel"]} for name in tree}
  masked = optax.masked(make(RATE), {"Dense_0": {"kernel": True, "bias": False}, "Dense_1": True})
  got, want = together(
    lambda grads, params: updated(masked, grads, params),
    lambda grads, params: updated(make(RATE), kernels(grads), kernels(params)),
  )
  close(kernels(got), want)
  np.testing.assert_array_equal(got["Dense_0"]["bias"], GRADS["Dense_0"]["bias"] + 1)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:scale_by_structure sees 1 layer")  # each part has one
@every
def test_masked_inside_masked_and_partition_inside_partition(make):
  """Only the kernel of the first layer is left, which is then trained as if it were alone."""
  visible = lambda tree: {"Dense_0": {"kernel": tree["Dense_0"]["kernel"]}}
  bias = lambda tree: {"Dense_0": {"bias": tree["Dense_0"]["bias"]}}
  is_kernel = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
  masked = optax.masked(optax.masked(make(RATE), is_kernel), {"Dense_0": True, "Dense_1": False})
  inner = optax.partition({True: make(RATE), False: optax_ext.exadam(RATE)}, is_kernel)
  parts = optax.partition({"train": inner, "freeze": optax.set_to_zero()}, {"Dense_0": "train", "Dense_1": "freeze"})
  of_masked, of_parts, of_kernel, of_bias = together(
    lambda grads, params: updated(masked, grads, params),
    lambda grads, params: updated(parts, grads, params),
    lambda grads, params: updated(make(RATE), visible(grads), visible(params)),
    lambda grads, params: updated(optax_ext.exadam(RATE), bias(grads), bias(params)),
  )
  close(visible(of_masked), of_kernel)
  close(of_masked["Dense_1"], jax.tree.map(lambda g: g + 1, GRADS["Dense_1"]))
  close(visible(of_parts), of_kernel)
  assert not np.any(of_parts["Dense_1"]["kernel"])
  close(bias(of_parts), of_bias)


@pytest.mark.heavy
@every
def test_a_missing_gradient(make):
  """It has no update and keeps its moments; the others are treated as if it were there, CaAdam's scales too."""
  tx, state, missing = make(RATE), path(make)[1][1], [("Dense_0", "bias"), ("Dense_1", "kernel")]
  hide = lambda tree: tree | {layer: tree[layer] | {leaf: None} for layer, leaf in missing}
  (_, new), got, want = together(
    lambda grads, params: tx.update(hide(grads), state, params),
    lambda grads, params: updated(tx, hide(grads), params),
    lambda grads, params: hide(updated(tx, grads, params)),
  )
  close(got, want)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  for name, (layer, leaf) in itertools.product(("mu", "nu"), missing):
    kept, old = (optax.tree.get(of, name, GRADS)[layer][leaf] for of in (new, state))
    np.testing.assert_array_equal(kept, old)


@pytest.mark.parametrize(
  ("tx", "sees_all"),
  [
    (optax_ext.caadam(RATE, rule=ByDepth()), False),
    (optax_ext.caadam(RATE, rule=ByDepth(), structure=optax_ext.structure_from_params(PARAMS)), True),
    (optax_ext.nd_adam(RATE, structure=optax_ext.structure_from_params(PARAMS)), True),
  ],
)
@pytest.mark.filterwarnings("ignore:scale_by_structure sees 1 layer")
def test_an_explicit_structure_sees_hidden_layers(tx, sees_all):
  masked = optax.masked(tx, {"Dense_0": True, "Dense_1": False})
  got, want = (second_updates(t, GRADS, PARAMS)["Dense_0"]["kernel"] for t in (masked, tx))
  assert np.allclose(got, want) == sees_all


# jax's transformations


@pytest.mark.heavy
@every
def test_scan_and_vmap(make):
  """A training loop inside lax.scan, mapped over members with their own learning rates, is the loop outside.

  A member is trained as it would be alone, whatever the others and its place: nothing mixes them. Carries keep their
  types, or scan would refuse.
  """
  rates, members = jnp.array([RATE, 3e-2]), jax.tree.map(lambda *leaves: jnp.stack(leaves), PARAMS, start(1))
  train = jitted(jax.vmap(lambda rate, params: scanned(make(rate), params)))
  for place in (0, 1):
    turned = jax.tree.map(lambda leaf, place=place: jnp.roll(leaf, place, axis=0), (rates, members))
    trained = train(*turned)
    close(jax.tree.map(lambda leaf, place=place: leaf[place], trained), path(make)[-1])
    assert not np.allclose(*trained[0]["Dense_0"]["kernel"])


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["exadam", "adamnx", "caadam additive", "nd_adam"])
def test_vmap_over_other_numbers(name):
  make = OPTIMIZERS[name]
  numbers = {"b1": jnp.array([0.95, 0.8]), "b2": jnp.array([0.9, 0.99]), "eps": jnp.array([1e-8, 1e-3])}
  many = jitted(jax.vmap(lambda kwargs: scanned(make(RATE, **kwargs), PARAMS)))(numbers)
  plain = {name: float(values[1]) for name, values in numbers.items()}
  want = jitted(lambda: scanned(make(RATE, **plain), PARAMS))()
  close(jax.tree.map(lambda leaf: leaf[1], many), want)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["exadam", "adamnx", "caadam additive", "nd_adam", "nesterov", "log_step_size"])
def test_gradient_through_training(name):
  """d f / d(learning rate, initial weights) after three steps, against central differences in float64."""
  make = EVERY[name]
  with enable_x64(True):
    params, direction, weights = start(), start(1), start(3)

    def final(rate, along):
      moved = jax.tree.map(lambda p, d: p + along * d, params, direction)
      return optax.tree.vdot(weights, jax.tree.map(jnp.sin, scanned(make(rate), moved)[0]))

    got = jitted(jax.grad(final, argnums=(0, 1)))(RATE, 0.0)
    final, h = jitted(final), 1e-6
    want = [
      (final(RATE + h, 0.0) - final(RATE - h, 0.0)) / (2 * h),
      (final(RATE, h) - final(RATE, -h)) / (2 * h),
    ]
    np.testing.assert_allclose(got, want, rtol=1e-3)
    assert np.all(np.abs(got) > 1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("make", [*OPTIMIZERS.values(), vectors], ids=[*OPTIMIZERS, "vectors"])
def test_gradient_through_an_update_at_zero(make):
  """With eps_root the derivatives by gradients and parameters exist where these are 0."""
  tx = make(RATE, eps_root=1e-8)

  @jitted
  def derivatives(grads, params):
    weighted = lambda leaf: jnp.sum(leaf * (1 + jnp.arange(leaf.size).reshape(leaf.shape)))
    total = lambda grads, params: sum(map(weighted, jax.tree.leaves(step(tx, params, state, grads)[0])))
    state = tx.update(grads, tx.init(params), params)[1]
    return jax.grad(total, argnums=(0, 1))(grads, params)

  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  for grads, params in ((zeros, PARAMS), (GRADS, zeros), (zeros, zeros)):
    by_grads, by_params = derivatives(grads, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_grads, by_params)))
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(by_grads))


@pytest.mark.heavy
@every
def test_export(make, tmp_path):
  """A step is exported for CPU, GPU and TPU, written to a file, read back and run here."""
  pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers")
  tx = make(RATE)
  leaves, treedef = jax.tree.flatten(
    path(make)[1][1]
  )  # a state's own types would have to be registered with jax.export

  @jax.jit
  def flat_step(params, leaves, grads):
    params, state = step(tx, params, treedef.unflatten(leaves), grads)
    return params, jax.tree.leaves(state)

  exported = export.export(flat_step, platforms=("cpu", "cuda", "tpu"))(PARAMS, leaves, GRADS)
  (tmp_path / "step.bin").write_bytes(exported.serialize())
  again = export.deserialize(bytearray((tmp_path / "step.bin").read_bytes()))
  assert again.platforms == ("cpu", "cuda", "tpu")
  params = path(make)[1][0]
  params, leaves = again.call(params, leaves, gradient(params, 1))
  close((params, treedef.unflatten(leaves)), path(make)[2])


@pytest.mark.heavy
@pytest.mark.parametrize(
  "tx",
  [
    optax_ext.nd_adam(RATE, axes=(0,)),
    optax_ext.quantize_state(optax_ext.adamnx(RATE), min_size=1),
    optax_ext.quantize_state(optax_ext.adamnx(RATE), min_size=1, block=4, axis=-2),
  ],
  ids=["nd_adam", "rows", "blocks"],
)
def test_export_for_every_size(tx):
  """Where sizes are symbols, a step is exported once and called with arrays of two sizes."""
  shapes = lambda a, b: {"kernel": (4 * a, b), "bias": (b,)}
  abstract = {
    path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes(*export.symbolic_shape("a, b")).items()
  }
  leaves, treedef = jax.tree.flatten(jax.eval_shape(tx.init, abstract))

  def flat_step(params, leaves, grads):
    params, state = step(tx, params, treedef.unflatten(leaves), grads)
    return params, jax.tree.leaves(state)

  exported = export.export(jax.jit(flat_step))(abstract, leaves, abstract)
  for a, b in ((16, 7), (32, 10)):
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes(a, b).items()}
    params = optax_ext.normalize_vectors(params, (0,)) | {"bias": params["bias"]}
    start = jax.tree.leaves(jitted(tx.init)(params))
    close(exported.call(params, start, params), jitted(flat_step)(params, start, params))


@pytest.mark.heavy
@every
def test_donation(make):
  """The step may overwrite the parameters and the state: every buffer is used (a warning is an error here)."""
  donating = jax.jit(functools.partial(step, make(RATE)), donate_argnums=(0, 1))
  params, state = jax.tree.map(jnp.copy, path(make)[1])
  grads = gradient(params, 1)
  new = donating(params, state, grads)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
  close(new, path(make)[2])


# optax's wrappers


@pytest.mark.slow
@every
def test_average_of_parameters(make):
  """optax.ema of the parameters that an optimizer makes is their debiased average."""
  average = optax.ema(0.5)
  state = average.init(PARAMS)
  steps = [params for params, _ in path(make)]
  for params in steps:
    mean, state = average.update(params, state)
  weights = 0.5 ** np.arange(len(steps))[::-1]
  close(mean, jax.tree.map(lambda *leaves: np.tensordot(weights / weights.sum(), np.stack(leaves), 1), *steps))


@pytest.mark.heavy
@every
def test_accumulated_gradients_are_those_of_the_large_batch(make):
  """Four microbatches of 4 examples under optax.MultiSteps are one step with their 16; bad ones are left out."""
  tx = optax.MultiSteps(make(RATE), every_k_schedule=4, should_skip_update_fn=optax.skip_not_finite)
  params, state = PARAMS, tx.init(PARAMS)
  update = jitted(functools.partial(step, tx))
  for batch in range(2):
    for rows, factor in ((0, 1), (1, 1), (1, jnp.nan), (2, 1), (2, jnp.inf), (3, 1)):
      grads = gradient_of_four(params, batch, 4 * rows)
      params, state = update(params, state, grads | {"Dense_1": {"kernel": factor * grads["Dense_1"]["kernel"]}})
  close((params, state.inner_opt_state), path(make)[2])


@pytest.mark.heavy
@every
def test_steps_that_are_not_finite_are_skipped(make):
  """Under optax.apply_if_finite a bad step leaves no trace."""
  tx = optax.apply_if_finite(make(RATE), max_consecutive_errors=5)
  params, state = PARAMS, tx.init(PARAMS)
  update = jitted(functools.partial(step, tx))
  for batch, factor in ((0, 1), (1, jnp.nan), (1, jnp.inf), (1, 1)):
    grads = gradient(params, batch)
    params, state = update(params, state, grads | {"Dense_1": {"kernel": factor * grads["Dense_1"]["kernel"]}})
  assert int(state.total_notfinite) == 2
  close((params, state.inner_state), path(make)[2])


# copies


MODEL_STRUCTURE = optax_ext.structure_from_model(
  lambda params, x: x @ params["w"], {"w": PARAMS["Dense_0"]["kernel"]}, np.ones((3, 6))
)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize(
  "thing",
  [
    Additive(),
    Multiplicative(3.0, signed=True),
    ByDepth(),
    ByDepth() * Additive() * Multiplicative(),
    optax_ext.structure_from_params(PARAMS),
    optax_ext.structure_from_model(lambda params, x: x @ params, PARAMS["Dense_0"]["kernel"], np.ones((3, 6))),
  ],
  ids=lambda thing: type(thing).__name__,
)
def test_rules_and_structures_can_be_copied(again, thing):
  assert again(thing) == thing
  assert hash(again(Additive())) == hash(Additive())


@pytest.mark.heavy
@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
@each_optimizer
def test_factories_and_states_can_be_copied(again, make):
  """Settings travel as partials of a factory (to other processes, into a config); the state as it is."""
  settings = functools.partial(make, b1=0.8)
  if make is OPTIMIZERS["caadam by depth"]:
    settings = functools.partial(settings, structure=optax_ext.structure_from_params(PARAMS))
  tx, same = settings(RATE), again(settings)(RATE)
  params, state = path(make)[1]
  copied = again(state)
  assert jax.tree.structure(copied) == jax.tree.structure(state)
  close(step(same, params, copied, GRADS), step(tx, params, state, GRADS), rtol=0, atol=0)


@pytest.mark.slow
@every
def test_transformations_can_be_deep_copied(make):
  params, state = path(make)[1]
  close(step(copy.deepcopy(make(RATE)), params, copy.deepcopy(state), GRADS), step(make(RATE), params, state, GRADS))


@every
def test_numpy_parameters_of_double_precision(make):
  """Without x64 jax has no float64; they are taken as float32, without a word, as by optax."""
  params = {"Dense_0": {"kernel": np.ones((4, 3)), "bias": np.ones(3)}, "Dense_1": {"kernel": np.ones((3, 2))}}
  with warnings.catch_warnings(action="error"):
    warnings.filterwarnings("ignore", "(nd_adam keeps|split_weights splits no)")
    updates = jax.eval_shape(functools.partial(updated, make(RATE)), params, params)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"float32"}
