"""state_shardings: where the state lives, through every wrapper, on every kind of mesh and parameter tree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_ext
from optax_ext import state_shardings

RATE = 1e-2
OPTIMIZERS = {
  "exadam": lambda: optax_ext.exadam(RATE),
  "adamnx": lambda: optax_ext.adamnx(RATE),
  "caadam": lambda: optax_ext.caadam(RATE),
  "nd_adam": lambda: optax_ext.nd_adam(RATE),
}
PARAMS = {
  "first": {"kernel": jnp.ones((16, 8)), "bias": jnp.zeros(8)},
  "last": {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4), "temperature": jnp.ones(())},
}
SPECS = {
  "first": {"kernel": P("data", "model"), "bias": P("model")},
  "last": {"kernel": P(("model", "data")), "bias": P(), "temperature": P()},
}


def mesh(kind=AxisType.Auto):
  return jax.make_mesh((2, 4), ("data", "model"), (kind, kind))


def on(mesh, specs=SPECS):
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def specs_of(tree):
  """Path → spec as a tuple without trailing None."""

  def spec(sharding):
    names = tuple(sharding.spec)
    while names and names[-1] is None:
      names = names[:-1]
    return names

  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="/"): spec(leaf) for path, leaf in leaves}


KERNELS = {"first/bias": ("model",), "first/kernel": ("data", "model"), "last/bias": (), "last/temperature": ()}
LIKE_PARAMS = KERNELS | {"last/kernel": (("model", "data"),)}
PER_VECTOR = KERNELS | {"first/kernel": (None, "model"), "last/kernel": ()}


def moments(prefix, nu=LIKE_PARAMS):
  head = {f"{prefix}count": ()}
  return head | {f"{prefix}{name}/{path}": s for name, t in (("mu", LIKE_PARAMS), ("nu", nu)) for path, s in t.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_lives_where_its_parameters_live(name):
  tx = OPTIMIZERS[name]()
  got = state_shardings(tx, PARAMS, on(mesh()))
  expected = {
    "exadam": moments("0/") | {"1/count": ()},
    "adamnx": moments("0/"),
    "caadam": moments("0/"),
    "nd_adam": moments("1/", PER_VECTOR),
  }
  assert specs_of(got) == expected[name]
  assert jax.tree.structure(got) == jax.tree.structure(tx.init(PARAMS))


HIDDEN = {"first": True, "last": {"kernel": True, "bias": False, "temperature": False}}
WRAPPERS = {
  "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  "masked": lambda tx: optax.masked(tx, HIDDEN),
  "masked by a function": lambda tx: optax.masked(tx, lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)),
  "partition": lambda tx: optax.partition(
    {"ours": tx, "theirs": optax.adam(RATE)},
    {"first": "ours", "last": {"kernel": "ours", "bias": "theirs", "temperature": "theirs"}},
  ),
  "partition by a function": lambda tx: optax.partition(
    {"ours": tx, "theirs": optax.sgd(RATE, momentum=0.9)},
    lambda tree: jax.tree.map(lambda leaf: "ours" if jnp.ndim(leaf) > 1 else "theirs", tree),
  ),
  "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
  "inject_hyperparams": None,
  "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
  "ema beside": lambda tx: optax.chain(tx, optax.ema(0.99)),
  "adafactor beside": lambda tx: optax.chain(tx, optax.scale_by_factored_rms(min_dim_size_to_factor=4)),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_state_can_live_there_and_train(wrapper, kind):
  """Moments of visible leaves are split like their parameters, and a training step leaves the state where it was."""
  tx = (
    optax.inject_hyperparams(optax_ext.nd_adam)(RATE)
    if wrapper == "inject_hyperparams"
    else WRAPPERS[wrapper](OPTIMIZERS["nd_adam"]())
  )
  with jax.set_mesh(here := mesh(kind)):
    shardings = on(here)
    params = jax.device_put(PARAMS, shardings)
    of_state = state_shardings(tx, params, shardings)
    found = specs_of(of_state)
    mine = {path: spec for path, spec in found.items() if "nu/" in path and "kernel" in path}
    assert {path.rpartition("nu/")[2]: spec for path, spec in mine.items()} == {
      path: spec for path, spec in PER_VECTOR.items() if "kernel" in path
    }
    assert all(
      spec == () for path, spec in found.items() if re.search("count|step|hyperparams/|v_row|v_col|last_finite", path)
    )
    assert all(
      spec == LIKE_PARAMS[path.partition("acc_grads/")[2]] for path, spec in found.items() if "acc_grads" in path
    )
    state = jax.device_put(tx.init(PARAMS), of_state)
    update = jax.jit(tx.update, donate_argnums=1, out_shardings=(shardings, of_state))
    for _ in range(2):
      updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
      params = optax.apply_updates(params, updates)
  matches = lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  assert jax.tree.all(jax.tree.map(matches, state, of_state))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_explicit_axes_are_inferred_as_promised(name):
  """With explicit axes jax itself says where an array lives: `tx.init` and `tx.update` without any annotation agree."""
  tx, here = OPTIMIZERS[name](), mesh(AxisType.Explicit)
  with jax.set_mesh(here):
    shardings = on(here)
    params = jax.device_put(PARAMS, shardings)
    of_state = state_shardings(tx, params, shardings)
    state = jax.jit(tx.init)(params)
    updates, new_state = jax.jit(tx.update)(params, state, params)
  where = lambda tree: jax.tree.map(
    lambda leaf: tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec)), tree
  )
  promised = jax.tree.map(
    lambda leaf, sharding: tuple(sharding.spec) + (None,) * (leaf.ndim - len(sharding.spec)), state, of_state
  )
  assert where(state) == promised
  assert where(new_state) == promised
  assert where(updates) == where(params)


def test_leaves_of_another_rank_or_of_no_such_size_are_replicated():
  """A leaf of another rank, or with an axis that does not divide the parameter's: nothing is guessed of it."""

  def init(params):
    return {
      "rows": jax.tree.map(lambda p: jnp.zeros(p.shape[:1]), params),
      "codes": jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int8), params),
      "scales": jax.tree.map(lambda p: jnp.zeros((*p.shape[:-1], 1)), params),
      "blocks": jax.tree.map(lambda p: jnp.zeros((-(-p.shape[0] // 2), *p.shape[1:])), params),
      "others": jax.tree.map(lambda p: jnp.zeros((p.shape[0] + 1, *p.shape[1:])), params),
    }

  tx = optax.GradientTransformation(init, None)
  params = {"w": jnp.ones((16, 8)), "one": jnp.ones((1, 8))}
  got = specs_of(state_shardings(tx, params, NamedSharding(mesh(), P(None, "model"))))
  assert got == {
    "rows/w": (), "rows/one": (), "codes/w": (None, "model"), "codes/one": (None, "model"),
    "scales/w": (), "scales/one": (), "blocks/w": (None, "model"), "blocks/one": (None, "model"),
    "others/w": (), "others/one": (),
  }  # fmt: skip
  deep = state_shardings(tx, {"w": jnp.ones((16, 8, 4))}, NamedSharding(mesh(), P("data", "model")))
  assert specs_of(deep)["scales/w"] == ("data", "model")


def test_masks_and_labels_that_look_parameters_up():
  """optax.tree.map_params calls no masks; it cannot call such labels, and the tree that they return is as good."""
  look_up = lambda tree: {path: path == "first" for path in [*tree]}
  shardings = on(mesh())
  for mask in look_up, look_up(PARAMS):
    assert specs_of(state_shardings(optax_ext.adamnx(RATE, mask=mask), PARAMS, shardings)) == moments("0/")
  transforms = {True: optax_ext.adamnx(RATE), False: optax.sgd(RATE)}
  with pytest.raises(
    ValueError, match=r"cannot tell which parts .* give what it returns for your parameters, a tree, in"
  ):
    state_shardings(optax.partition(transforms, look_up), PARAMS, shardings)
  got = specs_of(state_shardings(optax.partition(transforms, look_up(PARAMS)), PARAMS, shardings))
  assert [spec for path, spec in got.items() if path.endswith("mu/first/kernel")] == [("data", "model")]


def test_memory_kind_and_mesh_are_kept():
  kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
  kind = next(iter(kinds - {jax.devices()[0].default_memory().kind}))
  got = state_shardings(OPTIMIZERS["nd_adam"](), PARAMS, on_kind := NamedSharding(mesh(), P(), memory_kind=kind))
  state = optax.tree.get(got, "ScaleByAdamState")
  assert {leaf.memory_kind for leaf in jax.tree.leaves((state.mu, state.nu))} == {kind}
  assert state.count.memory_kind != kind
  assert {leaf.mesh for leaf in jax.tree.leaves(got)} == {on_kind.mesh}


def test_prefixes_abstract_parameters_and_none():
  tx = OPTIMIZERS["adamnx"]()
  abstract = jax.eval_shape(lambda: PARAMS)
  prefix = {"first": NamedSharding(mesh(), P("data")), "last": NamedSharding(mesh(), P())}
  got = specs_of(state_shardings(tx, abstract, prefix))
  assert got["0/mu/first/bias"] == got["0/nu/first/kernel"] == ("data",)
  assert got["0/mu/last/kernel"] == ()
  with_none = PARAMS | {"none": None}
  got = state_shardings(tx, with_none, on(mesh(), SPECS) | {"none": None})
  assert jax.tree.structure(got) == jax.tree.structure(tx.init(with_none))


def test_errors():
  tx, good = OPTIMIZERS["nd_adam"](), on(mesh())
  with pytest.raises(
    TypeError, match=r"^The sharding of 'first/kernel' must be a jax.sharding.NamedSharding, .* but was P"
  ):
    state_shardings(tx, PARAMS, SPECS | {"first": {"kernel": P("data"), "bias": good["first"]["bias"]}})
  with pytest.raises(TypeError, match=r"^The sharding of the parameters must be .* but was SingleDeviceSharding"):
    state_shardings(tx, PARAMS, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  with pytest.raises(
    ValueError, match=r"^The tree of shardings does not match the parameters: it has nothing for 'first/bias'\.$"
  ):
    state_shardings(tx, PARAMS, good | {"first": {"kernel": good["first"]["kernel"]}})
  with pytest.raises(ValueError, match=r"it names 'first/scale', which they do not have\.$"):
    state_shardings(tx, PARAMS, good | {"first": good["first"] | {"scale": good["first"]["bias"]}})
  with pytest.raises(ValueError, match="no parameters, so that no mesh is known"):
    state_shardings(tx, {}, {})


class Network(nnx.Module):
  def __init__(self, rngs):
    kernel, bias = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
    split = lambda *names: {
      "kernel_init": nnx.with_partitioning(kernel, names),
      "bias_init": nnx.with_partitioning(bias, names[1:]),
    }
    self.first = nnx.Linear(16, 8, rngs=rngs, **split("data", "model"))
    self.last = nnx.Linear(8, 4, rngs=rngs, **split("model", None))

  def __call__(self, x):
    return self.last(nnx.relu(self.first(x)))


@pytest.mark.heavy
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nnx_optimizer(name):
  """`nnx.Optimizer` built under `nnx.jit`, its state then put where `state_shardings` says; training keeps it there."""
  tx, here = OPTIMIZERS[name](), mesh()

  @nnx.jit
  def create():
    model = Network(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, x):
    optimizer.update(model, nnx.grad(lambda model: (model(x) ** 2).mean())(model))

  with jax.set_mesh(here):
    model, optimizer = create()
    params = nnx.state(model, nnx.Param)
    of_state = state_shardings(tx, params, nnx.get_named_sharding(params, here))
    leaves, structure = jax.tree.flatten(optimizer.opt_state)
    promised = jax.tree.leaves(of_state)
    assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params))]
    optimizer.opt_state = nnx.data(structure.unflatten(jax.device_put(leaves, promised)))
    step(model, optimizer, jnp.ones((8, 16)))
    after = jax.tree.leaves(optimizer.opt_state)
  assert all(leaf.sharding.is_equivalent_to(s, leaf.ndim) for leaf, s in zip(after, promised, strict=True))
  moments = optax.tree.get(of_state, "ScaleByAdamState")
  spec = lambda tree: tuple(jax.tree.leaves(tree["first"]["kernel"])[0].spec)
  assert spec(moments.mu) == ("data", "model")
  assert spec(moments.nu) == ((None if name == "nd_adam" else "data"), "model")


@pytest.mark.parametrize("boxed", [True, False])
def test_linen_partitioned_parameters(boxed):
  """`nn.get_sharding` gives one sharding for each box, a prefix of boxed parameters."""
  dense = nn.Dense(8, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("data", "model")))
  variables = dense.init(jax.random.key(0), jnp.ones((2, 16)))
  shardings = nn.get_sharding(variables, mesh())
  params = variables if boxed else nn.unbox(variables)
  tx = OPTIMIZERS["nd_adam"]()
  of_state = state_shardings(tx, params, shardings)
  state = jax.jit(tx.init, out_shardings=of_state)(params)
  nu = nn.unbox(optax.tree.get(state, "ScaleByAdamState").nu)["params"]
  assert nu["kernel"].shape == (1, 8)
  assert tuple(nu["kernel"].sharding.spec) == (None, "model")


def test_why_it_is_needed():
  """The usual recipe, copying the parameters' specs, asks to split an axis of size 1."""
  tx, shardings = OPTIMIZERS["nd_adam"](), on(mesh())
  copied = optax.tree.map_params(
    tx, lambda _, s: s, tx.init(PARAMS), shardings, transform_non_params=lambda _: NamedSharding(mesh(), P())
  )
  with pytest.raises(ValueError, match=r"size is 1|divisible"):
    jax.jit(tx.init, out_shardings=copied)(PARAMS)
