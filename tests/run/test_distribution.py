"""The same training on one device, on meshes that split batch, weights and moments, and in several processes."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import ROOT, enable_x64, in_full, jitted, relative

import optax_ext
from optax_ext import state_shardings

LAYERS, WIDTH, STEPS = 4, 16, 12
# Two orders of summation differ by rounding, which training amplifies; measured at most 5e-15 and 1.5e-6.
TOLERANCE = {jnp.float64: 1e-13, jnp.float32: 1e-5}


def loss(params, x, y):
  """A residual network of scanned layers between two dense ones; a scale and biases beside the weights."""
  h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])

  def layer(h, weights):
    return h + jnp.tanh(h @ weights["kernel"] + weights["bias"]) * params["scale"], None

  h, _ = jax.lax.scan(layer, h, params["stack"])
  return ((h @ params["last"]["kernel"] - y) ** 2).mean()


def initial(dtype):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape) / np.sqrt(shape[-2])
  params = {
    "first": {"kernel": draw(8, WIDTH), "bias": np.zeros(WIDTH)},
    "stack": {"kernel": draw(LAYERS, WIDTH, WIDTH), "bias": np.zeros((LAYERS, WIDTH))},
    "scale": np.ones(WIDTH),
    "last": {"kernel": draw(WIDTH, 8)},
  }
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def batches(dtype):
  rng = np.random.default_rng(1)
  for _ in range(STEPS):
    x = rng.normal(size=(32, 8))
    yield jnp.asarray(x, dtype), jnp.asarray(np.sin(3 * x[:, ::-1]) + x, dtype)


@functools.cache
def structure():
  abstract = jax.eval_shape(lambda: initial(jnp.float32))
  data = (jax.ShapeDtypeStruct((32, 8), jnp.float32),) * 2
  return optax_ext.structure_from_model(loss, abstract, *data)


AXES = {  # by hand, where the traced structure must say the same
  "first": {"kernel": (0,), "bias": None},
  "stack": {"kernel": (1,), "bias": None},
  "scale": None,
  "last": {"kernel": (0,)},
}
OPTIMIZERS = {
  "exadam": lambda: optax_ext.exadam(1e-3, weight_decay=0.01),
  "adamnx": lambda: optax_ext.adamnx(1e-2),
  "caadam": lambda: optax_ext.caadam(
    1e-3, rule=optax_ext.ByDepth() * optax_ext.Multiplicative(), structure=structure()
  ),
  "nd_adam": lambda: optax_ext.nd_adam(1e-3, structure=structure()),
}

NONE = {
  "first": {"kernel": P(), "bias": P()},
  "stack": {"kernel": P(), "bias": P()},
  "scale": P(),
  "last": {"kernel": P()},
}
# From a name to the sizes of (data, fsdp, model) and the specs of the parameters. "fsdp" splits every contracted axis;
# "model" splits outputs of one layer and inputs of the next (Megatron), and so contracted axes too.
FSDP = {
  "first": {"kernel": P("fsdp"), "bias": P("fsdp")},
  "stack": {"kernel": P(None, "fsdp"), "bias": P(None, "fsdp")},
  "scale": P("fsdp"),
  "last": {"kernel": P("fsdp")},
}
TENSOR = {
  "first": {"kernel": P(None, "model"), "bias": P("model")},
  "stack": {"kernel": P(None, "model", None), "bias": P()},
  "scale": P(),
  "last": {"kernel": P("model")},
}
ALL = {
  "first": {"kernel": P("fsdp", "model"), "bias": P("model")},
  "stack": {"kernel": P("data", "model", "fsdp"), "bias": P(None, "model")},
  "scale": P("model"),
  "last": {"kernel": P(("model", "fsdp"))},
}
MESHES = {
  "data-parallel": ((8, 1, 1), NONE),
  "FSDP": ((1, 8, 1), FSDP),
  "tensor-parallel": ((1, 1, 8), TENSOR),
  "2×2×2": ((2, 2, 2), ALL),
}


def make_mesh(name, kind=AxisType.Auto):
  return jax.make_mesh(MESHES[name][0], ("data", "fsdp", "model"), (kind,) * 3)


def start(optimizer, dtype):
  params = initial(dtype)
  return optax_ext.normalize_vectors(params, AXES) if optimizer == "nd_adam" else params


def shardings_on(mesh_name):
  mesh = make_mesh(mesh_name)
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), MESHES[mesh_name][1])


@functools.cache
def gradient_on(mesh_name):
  """One program for all optimizers."""
  if mesh_name is None:
    return jitted(jax.grad(loss))
  return in_full(jax.grad(loss), out_shardings=shardings_on(mesh_name))


def trajectory(optimizer, dtype, mesh_name=None):
  """Every step's parameters, of one array per leaf."""
  tx, params = OPTIMIZERS[optimizer](), start(optimizer, dtype)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  place, gradient, state = lambda batch: batch, gradient_on(mesh_name), tx.init(params)
  if mesh_name:
    shardings = shardings_on(mesh_name)
    of_state = state_shardings(tx, params, shardings)
    params, state = jax.device_put((params, state), (shardings, of_state))
    step = in_full(step, out_shardings=(shardings, of_state))
    place = lambda batch: jax.device_put(batch, NamedSharding(make_mesh(mesh_name), P(("data", "fsdp"))))
  else:
    step = jitted(step)
  path = [params]
  for batch in batches(dtype):
    params, state = step(params, state, gradient(params, *place(batch)))
    path.append(params)
  if mesh_name:
    matches = lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert jax.tree.all(jax.tree.map(matches, (params, state), (shardings, of_state)))
  return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *path)


def deviation(a, b):
  """The largest difference of any leaf along the way, relative to the leaf's largest value."""
  return max(jax.tree.leaves(jax.tree.map(relative, a, b)))


ALONE = {}


def alone(optimizer, dtype):
  if (optimizer, dtype) not in ALONE:
    ALONE[optimizer, dtype] = trajectory(optimizer, dtype)
  return ALONE[optimizer, dtype]


def test_the_traced_structure_is_what_the_meshes_split():
  facts = structure().facts
  assert jax.tree.map(lambda leaf: leaf.contracting_axes, facts) == AXES
  assert list(facts["stack"]["kernel"].depth) == [1, 2, 3, 4]


@pytest.mark.heavy
@pytest.mark.parametrize(
  ("mesh", "dtype"),
  [*((mesh, jnp.float64) for mesh in MESHES), ("2×2×2", jnp.float32)],  # which splits most
  ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trajectory_is_that_of_one_device(optimizer, mesh, dtype):
  with enable_x64(dtype == jnp.float64):
    got, expected = trajectory(optimizer, dtype, mesh), alone(optimizer, dtype)
  assert np.abs(expected["last"]["kernel"][-1] - expected["last"]["kernel"][0]).max() > 1e-3
  assert deviation(got, expected) < TOLERANCE[dtype]


# What axis_name must say of each way to split the vectors, which run along the first axis of "up" and "down", inside
# shard_map. "up" is split over its outputs where its spec says so: then each device holds its vectors whole.
SPLITS = {
  "a name": (P("fsdp"), P("fsdp"), "fsdp"),
  "two names": (P(("fsdp", "model")), P(("fsdp", "model"), "data"), ("fsdp", "model")),
  "a function": (P(None, "model"), P("model"), lambda path, leaf: {"up": None, "down": "model"}[path]),
  "a function of two": (
    P("data", "model"),
    P("model", "fsdp"),
    lambda path, leaf: {"up": "data", "down": "model"}[path],
  ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("manual", [{"data", "fsdp", "model"}, {"fsdp", "model"}], ids=["manual", "partly manual"])
@pytest.mark.parametrize("split", SPLITS)
def test_nd_adam_inside_shard_map(split, manual):
  """With an axis name the update of one device's part is that part of the whole update; so is the state."""
  up, down, names = SPLITS[split]
  specs = {"up": up, "down": down, "bias": P()}
  axes = {"up": (0,), "down": (0,), "bias": None}
  rng = np.random.default_rng(0)
  draw = lambda: {"up": rng.normal(size=(8, 16)), "down": rng.normal(size=(16, 8)), "bias": rng.normal(size=16)}
  mesh = make_mesh("2×2×2")

  def by_hand(spec):
    """The part of a spec that shard_map is told; what is left to the compiler it must not be."""
    keep = lambda entry: tuple(name for name in (entry if isinstance(entry, tuple) else (entry,)) if name in manual)
    return P(*(keep(entry) or None for entry in spec))

  with enable_x64(True):
    params = optax_ext.normalize_vectors(jax.tree.map(jnp.asarray, draw()), axes)
    whole, here = (optax_ext.nd_adam(1e-2, axes=axes, axis_name=name) for name in (None, names))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    of_state = state_shardings(here, params, shardings)
    state_specs, param_specs = (jax.tree.map(lambda s: by_hand(s.spec), tree) for tree in (of_state, shardings))
    update = jax.jit(
      jax.shard_map(
        here.update,
        mesh=mesh,
        in_specs=(param_specs, state_specs, param_specs),
        out_specs=(param_specs, state_specs),
        axis_names=manual,
      )
    )
    state = jax.jit(here.init, out_shardings=of_state)(params)
    expected_state, expected = whole.init(params), params
    params = jax.device_put(params, shardings)
    for _ in range(3):
      grads = draw()
      updates, state = update(jax.device_put(grads, shardings), state, params)
      params = optax.apply_updates(params, updates)
      updates, expected_state = whole.update(grads, expected_state, expected)
      expected = optax.apply_updates(expected, updates)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    jax.tree.map(close, (params, state), (expected, expected_state))


@pytest.mark.heavy
def test_training_inside_shard_map():
  """Forward, backward and update on one device's part: a network with columns, then rows, over the devices."""
  mesh = jax.make_mesh((8,), ("model",), (AxisType.Auto,))
  specs = {"columns": P(None, "model"), "rows": P("model")}
  axes = lambda path, leaf: (0,)

  def output(params, x, total=lambda y: y):
    return total(jnp.tanh(x @ params["columns"]) @ params["rows"])

  def train(tx, params, state, x, total=lambda y: y):
    def step(carry, _):
      params, state = carry
      grads = jax.grad(lambda params: ((output(params, x, total) - x) ** 2).mean())(params)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), None, length=10)[0]

  rng = np.random.default_rng(0)
  with enable_x64(True):
    x = jnp.asarray(rng.normal(size=(32, 8)))
    draw = {"columns": jnp.asarray(rng.normal(size=(8, 24))), "rows": jnp.asarray(rng.normal(size=(24, 8)))}
    params = optax_ext.normalize_vectors(draw, axes)
    names = lambda path, leaf: "model" if path == "rows" else None
    whole, here = optax_ext.nd_adam(1e-3, axes=axes), optax_ext.nd_adam(1e-3, axes=axes, axis_name=names)
    state = whole.init(params)
    of_state = state_shardings(here, params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    state_specs = jax.tree.map(lambda sharding: sharding.spec, of_state)
    total = lambda y: jax.lax.psum(y, "model")
    inside = jax.shard_map(
      lambda params, state, x: train(here, params, state, x, total),
      mesh=mesh,
      in_specs=(specs, state_specs, P()),
      out_specs=(specs, state_specs),
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    jax.tree.map(close, in_full(inside)(params, state, x), train(whole, params, state, x))


@pytest.mark.heavy
def test_scales_inside_shard_map_need_the_structure():
  """CaAdam sees one device's part of each shape; the structure of the whole network says what the layers are."""
  mesh = make_mesh("FSDP")
  params = {"a": {"kernel": jnp.ones((8, 64))}, "b": {"kernel": jnp.ones((64, 32))}, "c": {"kernel": jnp.ones((32, 1))}}
  specs = {"a": {"kernel": P("fsdp")}, "b": {"kernel": P(None, "fsdp")}, "c": {"kernel": P()}}
  tx = optax_ext.caadam(0.1, rule=optax_ext.Additive(), structure=optax_ext.structure_from_params(params))
  state = tx.init(params)
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  state_specs = jax.tree.map(lambda sharding: sharding.spec, state_shardings(tx, params, shardings))
  inside = jax.shard_map(tx.update, mesh=mesh, in_specs=(specs, state_specs, specs), out_specs=(specs, state_specs))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(close, jax.jit(inside)(params, state, params), tx.update(params, state, params))


def test_wrong_axis_names():
  params = {"w": jnp.ones((8, 4))}
  mesh = make_mesh("FSDP")

  def update(axis_name):
    tx = optax_ext.project_out_params((0,), axis_name=axis_name)
    inside = lambda params: tx.update(params, tx.init(params), params)[0]
    return jax.shard_map(inside, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"))(params)

  np.testing.assert_allclose(update("fsdp")["w"], 0, atol=1e-7)
  with pytest.raises(ValueError, match=r"gave 'fdsp', but .* shard_map has the axes \('data', 'fsdp', 'model'\)"):
    update("fdsp")
  for wrong in 0, ("fsdp", 1), lambda path, leaf: ["fsdp"]:
    with pytest.raises(TypeError, match="axis_name must give a name of a mesh axis, a tuple of names or None, but was"):
      update(wrong)


def test_axis_name_changes_nothing_outside_shard_map():
  """So that one optimizer serves both, and `init` runs where the arrays are whole."""
  params = {"w": jnp.arange(1.0, 33).reshape(8, 4)}
  with_name, without = (optax_ext.nd_adam(1e-2, axes=(0,), axis_name=name) for name in ("fsdp", None))
  for mesh in None, make_mesh("FSDP"):
    placed = params if mesh is None else jax.device_put(params, NamedSharding(mesh, P("fsdp")))
    got, expected = (jax.jit(tx.update)(placed, tx.init(placed), placed) for tx in (with_name, without))
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"fsdp": 3}, "--fsdp must divide the number of devices, 8, but was 3."),
    ({"fsdp": 0}, "--fsdp must divide the number of devices, 8, but was 0."),
    ({"batch_size": 60}, "--batch-size must be a multiple of the number of devices, 8, up to 1797, but was 60."),
    ({"steps": 0}, "--steps must be at least 1, but was 0."),
    ({"save_every": 0}, "--save-every must be at least 1, but was 0."),
    ({}, None),
  ],
)
def test_options_of_the_example(options, sentence, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "examples"))
  train_sharded = importlib.import_module("train_sharded")
  monkeypatch.setattr("sys.argv", ["train_sharded.py"])
  parsed = train_sharded.parse_options()
  vars(parsed).update(options)
  assert train_sharded.find_problem(parsed, 8) == sentence


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["adamw", *OPTIMIZERS])
def test_the_example_splits_weights_and_moments(name, monkeypatch):
  """Each device holds an eighth of the training state, and a step writes into its memory."""
  monkeypatch.syspath_prepend(str(ROOT / "examples"))
  train_sharded = importlib.import_module("train_sharded")
  mesh = train_sharded.make_mesh(8)
  training = train_sharded.Training(train_sharded.OPTIMIZERS[name](1e-3), mesh, width=64, seed=0)
  state = training.init()
  data = train_sharded.Digits(64, seed=0)
  losses = []
  for step in range(1, 11):
    before = jax.tree.leaves(state)
    state, loss = training.step(state, *data.batch(step, training.batch_sharding))
    losses.append(float(loss))
    assert all(leaf.is_deleted() for leaf in before)
  assert losses[-1] < losses[0]
  share = lambda leaf: leaf.addressable_shards[0].data.size / leaf.size
  big = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 64]  # not ND-Adam's squares of vectors that are split
  assert {share(leaf) for leaf in big} == {1 / 8}
