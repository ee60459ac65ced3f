"""layer_statistics: the numbers against a float64 oracle, when they are measured, and in every surrounding."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import enable_x64, jitted

import optax_ext
from optax_ext import LayerStatisticsState, layer_statistics, read_statistics, update_and_apply
from optax_ext._common.applied import Applied

NAMES = ["gradient_norm", "update_norm", "parameter_norm", "update_ratio", "gradient_zeros", "angle"]


def oracle(g, u, w):
  """The six numbers in float64; the angle by Kahan's formula, from the two directions."""
  g, u, w = (np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64).ravel() for x in (g, u, w))
  norm = np.linalg.norm
  ratio = norm(u) / norm(w) if norm(w) else np.inf if norm(u) else 0.0
  a, b = w / (norm(w) or 1), (w + u) / (norm(w + u) or 1)
  angle = 2 * np.arctan2(norm(b - a), norm(b + a)) if norm(w) else np.pi / 2 if norm(u) else 0.0
  return dict(zip(NAMES, [norm(g), norm(u), norm(w), ratio, np.mean(g == 0), angle], strict=True))


def assert_close(got, want, rtol=2e-6, atol=0.0):
  assert [*got] == NAMES
  for name in NAMES:
    np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=atol, err_msg=name)


@jitted
def step_with(g, u, w):
  """The state after a step of an optimizer whose update is u, whatever the gradient."""
  inner = optax.GradientTransformation(lambda params: optax.EmptyState(), lambda grads, state, params=None: (u, state))
  tx = layer_statistics(inner)
  return tx.update(g, tx.init(w), w)[1]


def measured(g, u, w):
  """The numbers of one leaf."""
  return read_statistics(step_with(g, u, w))[""]


def draw(shape, seed=0, zeros=0.3, dtype=np.float64):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape) + (1j * rng.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else 0)
  return np.where(rng.random(shape) < zeros, 0, x).astype(dtype)


# the numbers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (30, 40), (3, 4, 5)])
def test_the_numbers_are_those_of_the_definition(dtype, shape):
  with enable_x64(dtype == "float64"):
    drawn_in = dtype if dtype != "bfloat16" else "float32"
    g, u, w = (jnp.asarray(draw(shape, seed, dtype=drawn_in), dtype) for seed in range(3))
    assert_close(measured(g, 0.1 * u, w), oracle(g, 0.1 * u, w), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", [1e-1, 1e-3, 1e-5, 1e-7, 1e-20])
def test_small_angles_keep_their_digits(ratio):
  """In float32, where the cosine of an angle below 1e-4 is 1."""
  u, w = draw((50, 40), 0, dtype=np.float32), draw((50, 40), 1, dtype=np.float32)
  u *= np.float32(ratio)
  with np.errstate(under="ignore"):
    cosine = np.vdot(u / ratio, w) / np.linalg.norm(u / ratio) / np.linalg.norm(w)
    size = np.linalg.norm(np.float64(u)) / np.linalg.norm(np.float64(w))
  want = np.arctan2(size * np.sqrt(1 - cosine**2), 1 + size * cosine)
  np.testing.assert_allclose(measured(u, jnp.asarray(u), jnp.asarray(w))["angle"], want, rtol=1e-5)


def test_weight_decay_alone_turns_nothing():
  """An update along the parameter only makes it shorter, or turns it around."""
  w = jnp.asarray(draw((100, 30), dtype=np.float32))
  for factor, angle in ((-1e-3, 0), (0.7, 0), (-3, np.pi)):
    np.testing.assert_allclose(measured(w, factor * w, w)["angle"], angle, atol=1e-6 * abs(factor))
  assert measured(w, -w, w)["angle"] <= np.pi


def test_float64_is_computed_in_float64():
  with enable_x64(True):
    w = jnp.asarray([1.0, 1.0, 0.0])
    u = 1e-3 * w + jnp.asarray([0.0, 0.0, 1e-13])  # in float32 nearly all of the angle would be rounding
    np.testing.assert_allclose(measured(u, u, w)["angle"], 1e-13 / 1.001 / 2**0.5, rtol=1e-2)
    big = jnp.full(4, 1e300)
    assert measured(big, big, big)["update_ratio"] == 1
    assert measured(big, big, big)["gradient_norm"] == np.finfo(np.float32).max  # what float32 has next to it


@pytest.mark.parametrize("exponent", [-110, -60, 0, 60, 120])
def test_norms_scale_with_their_vectors(exponent):
  """Squares of float32 leave its range below 2⁻⁶³ and above 2⁶³."""
  g, u, w = (jnp.asarray(draw((8, 8), seed, dtype=np.float32)) for seed in range(3))
  scale, want = 2.0**exponent, oracle(g, u, w)
  got = measured(scale * g, scale * u, scale * w)
  assert_close(got, want | {name: scale * want[name] for name in NAMES[:3]})
  np.testing.assert_allclose(measured(g, scale * u, w)["update_ratio"], scale * want["update_ratio"], rtol=1e-5)


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 3e38, -3e38, 1e19, 1e-19, 0.1])


@settings(deadline=None)
@given(*[st.lists(NUMBERS, min_size=3, max_size=3)] * 3)
def test_finite_vectors_give_no_nan(g, u, w):
  got = measured(*(jnp.asarray(x, jnp.float32) for x in (g, u, w)))
  assert not any(np.isnan(x) for x in got.values())
  assert 0 <= got["angle"] <= np.float32(np.pi)


def test_a_nan_stays_in_its_leaf_and_number():
  good, bad = jnp.array([1.0, 2.0]), jnp.array([jnp.nan, 0.0])
  tx = layer_statistics(optax.scale(-0.1))
  params = {"a": good, "b": good}
  got = read_statistics(tx.update({"a": bad, "b": good}, tx.init(params), params)[1])
  assert {name for name, x in got["a"].items() if np.isnan(x)} == {*NAMES} - {"parameter_norm", "gradient_zeros"}
  assert got["a"]["gradient_zeros"] == 0.5
  assert_close(got["b"], oracle(good, -0.1 * good, good), atol=1e-6)
  assert measured(jnp.array([jnp.inf, 1.0]), good, good)["gradient_norm"] == jnp.inf


def test_parameters_of_norm_0():
  zero, one = jnp.zeros(3), jnp.ones(3)
  for g, u, w, ratio, angle in ((one, zero, zero, 0, 0), (one, one, zero, np.inf, np.pi / 2), (zero, zero, one, 0, 0)):
    got = measured(g, u, w)
    assert got["update_ratio"] == ratio
    np.testing.assert_allclose(got["angle"], angle)
  assert measured(one, zero, zero)["gradient_zeros"] == 0  # those of the gradient, not of the update
  empty = jnp.zeros((0, 3))
  assert measured(empty, empty, empty) == dict.fromkeys(NAMES, 0.0)


# scanned layers


def scan_model(params, x):
  layer = lambda x, p: (jnp.tanh(x @ p["kernel"] + p["bias"]), None)
  return jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]


STACK = {
  "head": jnp.asarray(draw((4, 2), 9), jnp.float32),
  "layers": {"bias": jnp.asarray(draw((3, 4), 8), jnp.float32), "kernel": jnp.asarray(draw((3, 4, 4), 7), jnp.float32)},
}


def test_a_scanned_leaf_has_the_numbers_of_each_layer():
  structure = optax_ext.structure_from_model(scan_model, STACK, jnp.ones((5, 4)))
  tx = layer_statistics(optax.scale(-0.1), structure=structure)
  grads = jax.tree.map(jnp.sin, STACK)
  got = read_statistics(jitted(tx.update)(grads, tx.init(STACK), STACK)[1])
  for name in ("bias", "kernel"):
    for i in range(3):
      g, w = grads["layers"][name][i], STACK["layers"][name][i]
      assert_close({key: x[i] for key, x in got[f"layers/{name}"].items()}, oracle(g, -0.1 * g, w), rtol=1e-5)
  assert_close(got["head"], oracle(grads["head"], -0.1 * grads["head"], STACK["head"]), rtol=1e-5)
  assert isinstance(got["head"]["angle"], float)
  assert got["layers/bias"]["angle"].shape == (3,)


def test_rows_are_in_the_order_of_depth():
  """Two loops, the outer one along the last axis: `depth` has its axes in the order of `scanned_axes`."""
  w = jnp.asarray(draw((3, 4, 2), zeros=0), jnp.float32)
  structure = optax_ext.structure_from_params({"w": w})
  facts = dataclasses.replace(structure.facts["w"], scanned_axes=(2, 0), stacked_axes=(2, 0))
  tx = layer_statistics(structure=optax_ext.Structure({"w": facts}, 6))
  got = read_statistics(tx.update({"w": w}, tx.init({"w": w}), {"w": w})[1])["w"]["gradient_norm"]
  np.testing.assert_allclose(got, np.linalg.norm(w, axis=1).T, rtol=1e-6)


# steps


PARAMS = {"a": {"kernel": jnp.asarray(draw((6, 4), 1), jnp.float32), "bias": jnp.zeros(4)}, "b": jnp.ones((2, 6))}


def gradient(params, t):
  return jax.tree.map(lambda w: jnp.sin(3 * w + t), params)


def states_of(tx, steps=7, params=PARAMS):
  """The parameters and the state after each step, from one loop."""

  def body(carry, t):
    params, state = carry
    updates, state = tx.update(gradient(params, t), state, params)
    carry = optax.apply_updates(params, updates), state
    return carry, carry

  stacked = jitted(lambda carry: jax.lax.scan(body, carry, jnp.arange(steps))[1])((params, tx.init(params)))
  return [jax.tree.map(lambda leaf, t=t: leaf[t], stacked) for t in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 3])
def test_steps_that_measure(every):
  """At counts 0, k, 2k, … the numbers of this step, from its gradient, update and old parameter; else the last."""
  inner = optax.adam(0.05)
  plain, watched = states_of(inner), states_of(layer_statistics(inner, every=every))
  before = [PARAMS] + [params for params, _ in plain]
  for t, (params, state) in enumerate(watched):
    chex.assert_trees_all_close(params, plain[t][0], rtol=1e-5, atol=1e-7)
    last = t // every * every
    for path, at in (("a/kernel", lambda tree: tree["a"]["kernel"]), ("a/bias", lambda tree: tree["a"]["bias"])):
      w, new = at(before[last]), at(before[last + 1])
      want = oracle(at(gradient(before[last], last)), np.float64(new) - np.float64(w), w)
      assert_close(read_statistics(state)[path], want, rtol=1e-4, atol=1e-6)
    assert state.count == t + 1


@pytest.mark.parametrize("every", [1, 2])
def test_a_link_of_a_chain_sees_what_flows_there(every):
  link = functools.partial(layer_statistics, every=every)
  tx = optax.chain(link(), optax.scale(-0.1), link())
  plain = optax.scale(-0.1)
  state = tx.init(PARAMS)
  grads = gradient(PARAMS, 0)
  updates, state = jitted(tx.update)(grads, state, PARAMS)
  chex.assert_trees_all_equal(updates, plain.update(grads, plain.init(PARAMS))[0])
  for i, factor in ((0, 1), (2, -0.1)):
    flow = factor * grads["b"]
    assert_close(read_statistics(state[i])["b"], oracle(flow, flow, PARAMS["b"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.heavy
def test_a_missing_gradient_keeps_the_numbers(every):
  params = PARAMS | {"none": None}
  tx = layer_statistics(optax.sgd(0.1), every=every)
  _, state = tx.update(gradient(params, 0), tx.init(params), params)
  old, state = read_statistics(state), state._replace(count=jnp.zeros([], jnp.int32))
  updates, state = jitted(tx.update)(gradient(params, 1) | {"b": None}, state, params)
  new = read_statistics(state)
  assert [*new] == [*old] == ["a/bias", "a/kernel", "b"]
  assert updates["b"] is None
  assert new["b"] == old["b"]
  assert new["a/kernel"] != old["a/kernel"]


def test_numbers_are_0_before_the_first_step():
  assert read_statistics(layer_statistics().init({"w": jnp.ones(3)})) == {"w": dict.fromkeys(NAMES, 0.0)}


# surroundings


SMALL = {"a": {"kernel": True, "bias": False}, "b": False}


def wrap(name):
  adam = lambda learning_rate=1e-2: layer_statistics(optax.adam(learning_rate), every=2)
  labels = lambda tree: jax.tree.map(lambda leaf: "large" if jnp.ndim(leaf) == 2 else "small", tree)
  parts = lambda large: optax.partition({"large": large, "small": optax.sgd(0.1)}, labels)
  steps = lambda tx: optax.MultiSteps(tx, 2).gradient_transformation()
  return {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(10.0), adam()),
    "masked": lambda: optax.masked(adam(), SMALL),
    "of masked": lambda: layer_statistics(optax.masked(optax.adam(1e-2), SMALL), every=2),
    "partition": lambda: parts(adam()),
    "of partition": lambda: layer_statistics(parts(optax.adam(1e-2)), every=2),
    "inject": lambda: optax.inject_hyperparams(adam)(learning_rate=optax.linear_schedule(1e-2, 1e-3, 9)),
    "of inject": lambda: layer_statistics(optax.inject_hyperparams(optax.adam)(1e-2), every=2),
    "MultiSteps": lambda: steps(adam()),
    "of MultiSteps": lambda: layer_statistics(optax.MultiSteps(optax.adam(1e-2), 2), every=2),
    "apply_if_finite": lambda: optax.apply_if_finite(adam(), 3),
    "of 8 bits": lambda: layer_statistics(optax_ext.quantize_state(optax.adam(1e-2), min_size=12), every=2),
    "8 bits": lambda: optax_ext.quantize_state(layer_statistics(optax.adam(1e-2), every=2), min_size=12),
  }[name]


WRAPPED = [
  "chain", "masked", "of masked", "partition", "of partition", "inject", "of inject", "MultiSteps", "of MultiSteps",
  "apply_if_finite", "of 8 bits", "8 bits",
]  # fmt: skip
SEEN = {"masked": ["a/kernel"], "partition": ["a/kernel", "b"]}


@pytest.mark.heavy
@pytest.mark.parametrize("name", WRAPPED)
def test_in_every_surrounding(name, tmp_path):
  """Inside and outside of other wrappers: the numbers, map_params, shardings, and a checkpoint."""
  tx = wrap(name)()
  steps = states_of(tx, 3)
  state = steps[-1][1]
  got = read_statistics(state)
  assert [*got] == SEEN.get(name, ["a/bias", "a/kernel", "b"])
  last = 0 if name == "MultiSteps" else 2  # its first two gradients are one step
  w = steps[last - 1][0]["a"]["kernel"] if last else PARAMS["a"]["kernel"]
  np.testing.assert_allclose(got["a/kernel"]["parameter_norm"], np.linalg.norm(w), rtol=1e-6)
  if name != "MultiSteps":
    u = np.float64(steps[2][0]["a"]["kernel"]) - np.float64(w)
    np.testing.assert_allclose(got["a/kernel"]["update_norm"], np.linalg.norm(u), rtol=1e-4)

  mapped = optax.tree.map_params(tx, lambda leaf, *_: leaf, state, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
  assert jax.tree.structure(mapped) == jax.tree.structure(state)
  mesh = jax.make_mesh((2, 2), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  of_params = jax.tree.map(lambda leaf: NamedSharding(mesh, P("x") if leaf.ndim == 2 else P()), PARAMS)
  specs = optax_ext.state_shardings(tx, PARAMS, of_params)
  assert jax.tree.structure(specs) == jax.tree.structure(state)
  for node in jax.tree.leaves(specs, is_leaf=is_state):
    if is_state(node):
      assert {leaf.spec for leaf in jax.tree.leaves(node.statistics)} == {P()}
  on_mesh = jax.device_put(state, specs)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", on_mesh)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
  chex.assert_trees_all_equal(restored, state)
  assert read_statistics(restored) == got


def is_state(node):
  return isinstance(node, LayerStatisticsState)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("every", [1, 2])
def test_sharded_as_on_one_device(kind, every):
  tx = layer_statistics(optax.sgd(0.1), every=every)
  mesh = jax.make_mesh((2, 2), ("x", "y"), (kind, kind))
  w, g = (jnp.asarray(draw((8, 6), seed), jnp.float32) for seed in (0, 1))
  on_mesh = jax.device_put({"w": w}, NamedSharding(mesh, P("x", "y")))
  with jax.set_mesh(mesh):
    state = jax.jit(tx.init, out_shardings=optax_ext.state_shardings(tx, on_mesh, NamedSharding(mesh, P("x", "y"))))(
      on_mesh
    )
    grads = {"w": jax.device_put(g, NamedSharding(mesh, P("x", "y")))}
    got = read_statistics(jax.jit(tx.update)(grads, state, on_mesh)[1])
  assert_close(got["w"], oracle(g, -0.1 * g, w), rtol=1e-5)


@pytest.mark.parametrize("every", [1, 3])
def test_one_trace_and_all_donated(every):
  tx = layer_statistics(optax.adam(1e-2), every=every)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  @chex.assert_max_traces(1)
  def step(params, state, t):
    updates, state = tx.update(gradient(params, t), state, params)
    return optax.apply_updates(params, updates), state

  params, state = jax.tree.map(jnp.copy, (PARAMS, tx.init(PARAMS)))
  for t in range(3):
    old = (params, state) if every > 1 else (params, state.count, state.inner_state)  # old numbers are not read
    params, state = step(params, state, t)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))


def test_members_of_a_vmap_are_measured_one_by_one():
  tx = layer_statistics(optax.sgd(0.1), every=2)
  many = {"w": jnp.asarray(draw((5, 3, 4)), jnp.float32)}
  step = lambda params: tx.update(gradient(params, 0), tx.init(params), params)[1]
  got = read_statistics(jitted(jax.vmap(step))(many))["w"]
  for i in range(5):
    one = {"w": many["w"][i]}
    assert_close({name: x[i] for name, x in got.items()}, read_statistics(step(one))["w"], rtol=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_derivatives_pass_by_the_numbers(every):
  """A derivative through training is that of the optimizer alone, where parameters and gradients are 0 too."""

  def final(rate, tx):
    params = {"w": jnp.array([0.0, 1.0]), "zero": jnp.zeros(2)}

    def body(carry, t):
      params, state = carry
      grads = {"w": jnp.sin(params["w"]), "zero": 0 * params["zero"]}
      updates, state = tx(rate).update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, tx(rate).init(params)), jnp.arange(3))[0][0]["w"].sum()

  derivative = lambda tx: jitted(jax.grad(functools.partial(final, tx=tx)))(0.1)
  want = derivative(optax.sgd)
  np.testing.assert_allclose(derivative(lambda rate: layer_statistics(optax.sgd(rate), every=every)), want, rtol=1e-5)
  assert want < -0.1


def kernel_of_sgd(asked=None):
  """SGD with a kernel; the list gets whether each call asks for it."""

  def update(grads, state, params=None, *, return_applied=False, **extra_args):
    if asked is not None:
      asked.append(return_applied)
    step = lambda g, w: Applied(w - 0.1 * g) if return_applied else -0.1 * g
    return jax.tree.map(step, grads, params), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_a_kernel_that_applies_its_update(every):
  """`update_and_apply` gets the kernel's parameters; the numbers are those of a plain step."""
  tx = layer_statistics(kernel_of_sgd(asked := []), every=every)
  grads = gradient(PARAMS, 0)
  params, state = jax.jit(functools.partial(update_and_apply, tx))(grads, tx.init(PARAMS), PARAMS)
  assert sorted(asked) == [False, True]
  updates, same = jitted(tx.update)(grads, tx.init(PARAMS), PARAMS)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(close, (params, state), (optax.apply_updates(PARAMS, updates), same))
  after_the_kernel = optax.chain(kernel_of_sgd(), layer_statistics(every=every))
  with pytest.raises(TypeError, match="split_weights or a kernel has applied an update already"):
    update_and_apply(after_the_kernel, grads, after_the_kernel.init(PARAMS), PARAMS)


def test_extra_arguments_reach_the_optimizer_in_both_computations():
  def update(grads, state, params=None, *, factor, **extra_args):
    return jax.tree.map(lambda g: factor * g, grads), state

  tx = layer_statistics(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update), every=2)
  updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, factor=2.0)
  np.testing.assert_allclose(updates["b"], 2)
  np.testing.assert_allclose(read_statistics(state)["b"]["update_ratio"], 2)
  plain = layer_statistics(optax.sgd(0.1))
  plain.update(PARAMS, plain.init(PARAMS), PARAMS, value=1.0)  # which sgd does not know


class Network(nnx.Module):
  def __init__(self):
    kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("x", "y"))
    self.layers = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0), kernel_init=kernel) for _ in range(2)])

  def __call__(self, x):
    return self.layers[1](nnx.relu(self.layers[0](x)))


@pytest.mark.parametrize("on_mesh", [False, True])
@pytest.mark.heavy
def test_nnx_optimizer(on_mesh):
  mesh = jax.make_mesh((2, 2), ("x", "y"), (AxisType.Auto, AxisType.Auto))
  with jax.set_mesh(mesh if on_mesh else jax.make_mesh((1, 1), ("x", "y"), (AxisType.Auto, AxisType.Auto))):
    model = Network()
    optimizer = nnx.Optimizer(model, layer_statistics(optax.sgd(0.1), every=2), wrt=nnx.Param)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    @nnx.jit
    def step(model, optimizer, x):
      optimizer.update(model, nnx.grad(lambda model: (model(x) ** 2).mean())(model))

    for _ in range(2):
      step(model, optimizer, jnp.ones((3, 4)))
  got = read_statistics(optimizer.opt_state)
  assert [*got] == [f"layers/{i}/{name}" for i in range(2) for name in ("bias", "kernel")]
  w = before["layers"][1]["kernel"]
  np.testing.assert_allclose(got["layers/1/kernel"]["parameter_norm"], np.linalg.norm(w), rtol=1e-5)


def test_boxed_parameters_of_linen():
  dense = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("x", "y")))
  boxed = dense.init(jax.random.key(0), jnp.ones((2, 4)))
  tx = layer_statistics(optax.sgd(0.1), every=2, structure=optax_ext.structure_from_params(boxed))
  assert read_statistics(tx.update(boxed, tx.init(boxed), boxed)[1]).keys() == {"bias", "kernel"}
  mesh = jax.make_mesh((2, 3), ("x", "y"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:6])
  of_state = optax_ext.state_shardings(tx, boxed, nn.get_sharding(boxed, mesh))
  state = jax.jit(tx.init, out_shardings=of_state)(boxed)
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.statistics))


# reading, and what is refused


def test_numbers_of_parts_are_joined():
  labels = {"a": "adam", "b": "sgd"}
  parts = {"adam": layer_statistics(optax.adam(1e-2)), "sgd": layer_statistics(optax.sgd(1e-2))}
  tx = optax.partition(parts, labels)
  assert [*read_statistics(tx.init(PARAMS))] == ["a/bias", "a/kernel", "b"]
  for twice in (optax.chain(layer_statistics(), layer_statistics()), layer_statistics(layer_statistics())):
    with pytest.raises(ValueError, match=r"^Several layer_statistics .* 'a/bias', 'a/kernel', 'b': call .*\.$"):
      read_statistics(twice.init(PARAMS))
  with pytest.raises(ValueError, match=r"^The optimizer's state has no LayerStatisticsState: wrap .*\.$"):
    read_statistics(optax.adam(1e-2).init(PARAMS))


def test_numbers_of_numpy_count():
  layer_statistics(optax.adam(1e-2), every=np.int64(2))


@pytest.mark.parametrize("every", [0, -1, 2.0, True, None, jnp.array(2)])
def test_every_is_a_positive_int(every):
  with pytest.raises(ValueError, match=r"^every must be a whole number of at least 1, but was .*\.$"):
    layer_statistics(optax.adam(1e-2), every=every)


def test_what_is_refused():
  with pytest.raises(TypeError, match=r"^inner must be an optax transformation, such as .*, but was the function adam"):
    layer_statistics(optax.adam)
  with pytest.raises(TypeError, match=r"^structure must be a Structure"):
    layer_statistics(structure={"w": 1})
  tx = layer_statistics(optax.adam(1e-2))
  with pytest.raises(ValueError, match=r"^layer_statistics needs the current value of the parameters, but you are not"):
    tx.update(PARAMS, tx.init(PARAMS))
  with pytest.raises(TypeError, match=r"^Parameter 'w' has dtype int32, but only arrays of floating"):
    tx.init({"w": jnp.arange(3)})
  with pytest.raises(ValueError, match=r"^Several leaves of the tree have the same path: 'a/b'"):
    tx.init({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
  structure = optax_ext.structure_from_params({"w": jnp.ones((3, 2))})
  with pytest.raises(ValueError, match=r"^The structure does not match the parameters: it has nothing for 'v'\.$"):
    layer_statistics(structure=structure).init({"v": jnp.ones(3)})
  with pytest.raises(ValueError, match=r"^The structure is of another model: leaf 'w' has shape \(2, 3\)"):
    layer_statistics(structure=structure).init({"w": jnp.ones((2, 3))})
