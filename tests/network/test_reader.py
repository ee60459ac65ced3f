"""Theorems about facts read from a computation, and what is said where it cannot be read. Plain jax, any version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from plain_models import PLAIN, check, leaves_by_path, mlp_dict, rand, shared, tree

from optax_ext import ByDepth, structure_from_model, structure_from_params
from optax_ext._network.jaxpr import control, model, reader
from optax_ext._network.jaxpr.reader import Reader
from optax_ext._network.jaxpr.versions import UnknownFormError, scan_form

X = rand((2, 4))


def read(apply, params, *inputs):
  return leaves_by_path(structure_from_model(apply, params, *inputs).facts)


def brief(facts):
  return facts.layer, facts.connections, facts.contracting_axes, facts.stacked_axes, np.asarray(facts.depth).tolist()


@pytest.mark.parametrize("build", PLAIN, ids=lambda build: build.__name__)
def test_facts(build):
  model = build()
  check(structure_from_model(model.apply, model.params, *model.inputs), model)


@pytest.mark.parametrize("build", PLAIN, ids=lambda build: build.__name__)
@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.checkpoint(jax.jit(f))])
def test_jit_and_checkpoint_change_nothing(build, wrap):
  model = build()
  check(structure_from_model(wrap(model.apply), model.params, *model.inputs), model)


@pytest.mark.parametrize("build", PLAIN, ids=lambda build: build.__name__)
def test_casts_change_nothing(build):
  model = build()
  cast = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, tree)
  apply = lambda p, *inputs: model.apply(cast(p), *cast(inputs))
  check(structure_from_model(apply, model.params, *model.inputs), model)


@pytest.mark.parametrize("build", PLAIN, ids=lambda build: build.__name__)
def test_names_and_order_change_nothing(build):
  model = build()
  names = {old: f"{len(model.params) - i:02d}_" for i, old in enumerate(model.params)}  # the other way round
  apply = lambda p, *inputs: model.apply({old: p[new] for old, new in names.items()}, *inputs)
  found = read(apply, {names[old]: tree for old, tree in model.params.items()}, *model.inputs)
  for path, want in model.facts.items():
    head, _, tail = path.partition("/")
    facts = found["/".join([names[head], tail] if tail else [names[head]])]
    np.testing.assert_array_equal(facts.depth, want.depth)
    assert (facts.connections, facts.contracting_axes, facts.stacked_axes) == (
      want.connections,
      want.contracting,
      want.stacked,
    )
    assert (facts.layer is None) == (want.layer is None)


def test_transposing_a_weight_and_its_use_transposes_its_axes():
  def apply(p, x, order):
    w = jnp.transpose(p["w"], np.argsort(order))
    return jnp.einsum("bij,ijkl->bkl", x, w)

  for order in [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 0, 1)]:
    params = {"w": jnp.transpose(rand((2, 3, 4, 5)), order)}
    facts = read(lambda p, x, order=order: apply(p, x, order), params, rand((2, 2, 3)))["w"]
    assert set(facts.contracting_axes) == {order.index(0), order.index(1)}


def test_a_scanned_stack_is_its_layers_unrolled():
  def layer(x, p):
    h = jnp.tanh(x @ p["up"] + p["b"])
    return x + (h * p["scale"]) @ p["down"], None

  names = tree(up=(4, 6), b=(6,), scale=(6,), down=(6, 4))
  stacked = jax.tree.map(lambda a: jnp.stack([a] * 3), names)

  def unrolled(p, x):
    for i in range(3):
      x, _ = layer(x, p[f"layer_{i}"])
    return x

  alone = read(unrolled, {f"layer_{i}": names for i in range(3)}, X)
  scans = {
    "scan": lambda p, x: lax.scan(layer, x, p)[0],
    "scan, unrolled twice": lambda p, x: lax.scan(layer, x, p, unroll=2)[0],
    "fori_loop": lambda p, x: lax.fori_loop(0, 3, lambda i, x: layer(x, jax.tree.map(lambda a: a[i], p))[0], x),
    "while_loop": lambda p, x: lax.while_loop(
      lambda c: c[0] < 3, lambda c: (c[0] + 1, layer(c[1], jax.tree.map(lambda a: a[c[0]], p))[0]), (0, x)
    )[1],
    "an index each": lambda p, x: unrolled({f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], p) for i in range(3)}, x),
    "an array of indices": lambda p, x: lax.scan(
      lambda x, i: layer(x, jax.tree.map(lambda a: jnp.take(a, i, axis=0), p)), x, jnp.arange(3)
    )[0],
    "two halves": lambda p, x: lax.scan(
      layer, layer(x, jax.tree.map(lambda a: a[0], p))[0], jax.tree.map(lambda a: a[1:], p)
    )[0],
    "carried": lambda p, x: lax.fori_loop(
      0, 3, lambda i, c: (c[0], layer(c[1], jax.tree.map(lambda a: a[i], c[0]))[0]), (p, x)
    )[1],
    "normalised in a loop": lambda p, x: lax.scan(
      layer, x, lax.map(lambda p: p | {"up": p["up"] / jnp.linalg.norm(p["up"])}, p)
    )[0],
  }
  for name, apply in scans.items():
    found = read(apply, stacked, X)
    for leaf, facts in found.items():
      each = [alone[f"layer_{i}/{leaf}"] for i in range(3)]
      assert list(facts.depth) == [one.depth for one in each], (name, leaf)
      assert facts.connections == each[0].connections, (name, leaf)
      assert facts.macs == each[0].macs, (name, leaf)
      assert facts.stacked_axes == facts.scanned_axes == (0,), (name, leaf)
      axes = each[0].contracting_axes
      assert facts.contracting_axes == (axes and tuple(axis + 1 for axis in axes)), (name, leaf)

  found = read(lambda p, x: lax.scan(layer, x, p, reverse=True)[0], stacked, X)
  assert list(found["up"].depth) == [4, 2, 0]
  found = read(lambda p, x: lax.scan(layer, x, jax.tree.map(lambda a: a[::-1], p))[0], stacked, X)
  assert list(found["up"].depth) == [4, 2, 0]
  backwards = lambda p: lax.map(lambda p: jax.tree.map(jnp.tanh, p), jax.tree.map(lambda a: a[::-1], p))
  found = read(lambda p, x: lax.scan(layer, x, backwards(p))[0], stacked, X)
  assert list(found["up"].depth) == [4, 2, 0]


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 2, 1, 0], [1, 0, 2, 3]])
def test_a_stack_in_another_order(order):
  """An array of constants picks the layers of a stack: each has the depth of the iteration that it is picked in."""
  scanned = lambda ws, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]
  for pick in (
    lambda w: w[jnp.array(order)],
    lambda w: jnp.take(w, np.array(order), axis=0),
    lambda w: w[::-1][3 - np.array(order)],
  ):
    facts = read(lambda p, x, pick=pick: scanned(pick(p["w"]), x), {"w": rand((4, 4, 4))}, X)["w"]
    assert list(facts.depth) == np.argsort(order).tolist()
    assert (facts.contracting_axes, facts.connections) == ((1,), 16)


def test_rows_of_an_array_one_by_one():
  """`for row in array` gives the layers of a stack; so do numbers from a row of positions, in any order."""
  params = tree(w=(3, 4, 4), side=(4, 2, 4))

  def rows(p, x):
    for w in p["w"]:
      x = jnp.tanh(x @ w)
    first, second = jnp.unstack(p["side"], axis=1)
    return x @ first @ second

  def positions(p, x):
    for i in jnp.arange(3):
      x = jnp.tanh(x @ p["w"][i])
    for i in jnp.array([0, 1]):
      x = x @ p["side"][:, i]
    return x

  for apply in (rows, positions):
    found = read(apply, params, X)
    assert brief(found["w"]) == ("w", 16, (1,), (0,), [0, 1, 2])
    assert brief(found["side"]) == ("side", 16, (0,), (1,), [3, 4])


def test_rows_of_what_a_layer_gives():
  """A bias added to one row of a layer's outputs belongs to the layer."""

  def apply(p, x):
    first, _ = jnp.unstack(x @ p["w"], axis=0)
    return first + p["b"]

  found = read(apply, tree(w=(4, 3), b=(3,)), X)
  assert found["b"].layer == "w"


def test_what_a_loop_does_with_constants_of_its_body():
  """A table of positions that the body closes over picks weights, in each iteration the same."""
  table = jnp.array([1, 0])

  def apply(p, x):
    body = lambda x, w: (jnp.tanh(x @ w) @ p["side"][table[0]] @ p["side"][table[1]], None)
    return lax.scan(body, x, p["w"])[0]

  found = read(apply, tree(w=(2, 4, 4), side=(2, 4, 4)), X)
  assert list(found["w"].depth) == [0, 3]
  assert list(found["side"].depth) == [2, 1]


@pytest.mark.parametrize(
  "between",
  [
    lambda h: jnp.log2(1 + h * h),
    lambda h: jnp.polyval(jnp.array([1.0, 2.0, 3.0]), h),
    lambda h: jnp.polyval(jnp.array([1.0, 2.0, 3.0]), h) + jnp.empty_like(h),
    lambda h: h * jax.grad(lambda h: jnp.tanh(h).sum())(h),  # 1 − tanh²
    lambda h: h[:, jnp.nonzero(h[0], size=4)[0]],
    lambda h: h * jnp.searchsorted(jnp.arange(4.0), h),
    lambda h: lax.custom_root(lambda y: y - h, h, lambda f, y: y - f(y), lambda g, y: y / g(jnp.ones_like(y))),
  ],
  ids=["log2", "polynomial", "empty", "derivative of tanh", "nonzero", "searchsorted", "custom_root"],
)
def test_operations_between_layers(between):
  found = read(lambda p, x: between(x @ p["a"] + p["b"]) @ p["c"], tree(a=(4, 4), b=(4,), c=(4, 2)), X)
  assert [(found[name].layer, found[name].depth) for name in "abc"] == [("a", 0), ("a", 0), ("c", 1)]


def test_parameters_inside_a_primitive_that_a_class_defines():
  """Since jax 0.11 `custom_root` is one equation that hides its program: the weights inside are read."""

  def apply(p, x):
    solve = lambda f, y: f(y) + y
    y = lax.custom_root(lambda y: x @ p["a"] - y, x, solve, lambda g, y: -y)
    return y @ p["c"]

  found = read(apply, tree(a=(4, 4), c=(4, 2)), X)
  assert [(found[name].layer, found[name].depth) for name in "ac"] == [("a", 0), ("c", 1)]


def test_the_order_of_rows_that_are_summed_does_not_matter():
  order = np.array([2, 0, 3, 1])
  facts = read(lambda p, x: x @ p["w"][order] @ p["v"][:, order[::-1]], tree(w=(4, 4), v=(4, 4)), X)
  assert [facts[name].contracting_axes for name in "wv"] == [(0,), (0,)]


def test_layers_chosen_by_a_counter():
  """Branches chosen by a loop's counter count where they are chosen, as if the loop were written out."""
  params = tree(dense=(2, 4, 4), bias=(2, 4), expert=(2, 4, 4))

  def layer(p, x, i, kind):
    return jnp.tanh(x @ p["dense"][i] + p["bias"][i]) if kind == 0 else jnp.tanh(jnp.tanh(x @ p["expert"][i]))

  def unrolled(p, x):
    for i in range(4):
      x = layer(p, x, i // 2, i % 2)
    return x

  def scanned(p, x):
    branches = [lambda x, i, kind=kind: layer(p, x, i, kind) for kind in (0, 1)]
    step = lambda x, i: (lax.cond(i % 2 == 0, *branches, x, i // 2), None)
    return lax.scan(step, x, jnp.arange(4))[0]

  def switched(p, x):
    branches = [lambda x, n=n: layer(p, x, n // 2, n % 2) for n in range(4)]
    return lax.fori_loop(0, 4, lambda i, x: lax.switch(i, branches, x), x)

  want = structure_from_model(unrolled, params, X)
  assert np.asarray(want.facts["expert"].depth).tolist() == [1, 3]
  for apply in (scanned, switched):
    found = structure_from_model(apply, params, X)
    assert found.num_layers == want.num_layers == 4
    for name, facts in leaves_by_path(found.facts).items():
      assert brief(facts) == brief(want.facts[name]), (apply, name)
      assert all(0 <= int(depth) < 4 for use in facts.uses for depth in use.split("@")[1].split("..")), facts.uses
      assert facts.macs == want.facts[name].macs


def test_a_learned_query_is_an_input():
  """With a bias its projection is a layer like that of the keys; what has no bias is one weight, however it is made."""
  params = tree(query=(3, 4), wq=(4, 2, 5), bq=(2, 5), wk=(4, 2, 5), bk=(2, 5))

  def attention(p, x, order):
    q = jnp.einsum("qd,dhk->qhk", p["query"], p["wq"]).transpose(order) + p["bq"].transpose(*np.argsort(order)[1:] - 1)
    k = jnp.einsum("nd,dhk->nhk", x, p["wk"]) + p["bk"]
    return jnp.einsum("qhk,nhk->hqn", q.transpose(np.argsort(order)), k)

  for order in [(0, 1, 2), (0, 2, 1)]:
    order = np.array(order)
    facts = read(lambda p, x, order=order: attention(p, x, order), params, X)
    assert brief(facts["wq"]) == ("wq", 40, (0,), (), 0)
    assert brief(facts["wk"]) == ("wk", 40, (0,), (), 0)
    assert brief(facts["bq"]) == ("wq", 40, None, (), 0)
    assert facts["query"].contracting_axes is None
    assert facts["query"].uses == ("elementwise@0",)
  adapted = lambda p, x: x @ (p["w"] + p["a"] @ p["b"]) @ (p["v"] + p["c"] @ p["d"])
  facts = read(adapted, tree(w=(4, 3), a=(4, 2), b=(2, 3), v=(3, 1), c=(3, 2), d=(2, 1)), X)
  assert [facts[name].contracting_axes for name in "wavc"] == [(0,)] * 4
  assert [facts[name].uses for name in "wavc"] == [("product@0",)] * 2 + [("product@1",)] * 2


def test_a_stack_cut_into_groups():
  group = lambda x, ws: (lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None)
  facts = read(lambda p, x: lax.scan(group, x, p["w"].reshape(2, 3, 4, 4))[0], {"w": rand((6, 4, 4))}, X)["w"]
  assert (list(facts.depth), facts.stacked_axes, facts.contracting_axes) == ([0, 1, 2, 3, 4, 5], (0,), (1,))


def test_positions_are_no_bias():
  """What differs from place to place belongs to no layer, though it is added to a product."""
  facts = read(
    lambda p, x: (x @ p["w"] + p["b"] + p["places"]) @ p["v"],
    tree(w=(4, 3), b=(3,), places=(5, 3), v=(3, 2)),
    rand((2, 5, 4)),
  )
  assert (facts["b"].layer, facts["places"].layer) == ("w", None)
  assert facts["places"].depth == 0


def test_a_bias_after_a_residual_belongs_to_the_deeper_product():
  def apply(p, x):
    x = x @ p["v"]
    return x + jnp.tanh(x) @ p["w"] + p["b"]

  facts = read(apply, tree(v=(4, 4), w=(4, 4), b=(4,)), X)
  assert (facts["b"].layer, facts["b"].depth) == ("w", 1)


def test_experts_stacked_in_the_model():
  apply = lambda p, x: jnp.einsum("etd,edf->etf", x, jnp.stack([p["a"], p["b"]]))
  facts = read(apply, tree(a=(4, 3), b=(4, 3)), rand((2, 5, 4)))
  assert [(facts[name].layer, facts[name].connections, facts[name].macs) for name in "ab"] == [
    ("a", 12, 60),
    ("b", 12, 60),
  ]


def test_biases_of_copies_after_a_layer_that_they_share():
  """What each copy adds to the shared layer's results is a bias of that layer, stacked, and no table of positions."""

  def copy(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]), p["bias"]

  def apply(p, x):
    h, bias = jax.vmap(copy, (0, None))({name: p[name] for name in ("a", "b", "bias")}, x)
    return jnp.tanh(h @ p["shared"] + bias[:, None]) @ p["out"]

  facts = read(apply, tree(a=(5, 4, 6), b=(5, 6, 3), bias=(5, 7), shared=(3, 7), out=(7, 2)), X)
  assert [facts[name].stacked_axes for name in ("a", "b", "bias", "shared")] == [(0,), (0,), (0,), ()]
  assert (facts["bias"].layer, facts["shared"].contracting_axes) == ("shared", (0,))


def test_a_layer_is_named_for_a_leaf_of_its_own():
  """`a` meets the input alone first, so that the product of `a` and `b` together is a layer of `b`."""
  apply = lambda p, x: jnp.tanh(x @ p["a"]) @ jnp.concatenate([p["a"], p["b"]], 1)
  facts = read(apply, tree(a=(4, 4), b=(4, 4)), X)
  assert (facts["a"].layer, facts["b"].layer) == ("a", "b")
  assert (facts["a"].connections, facts["b"].connections) == (16, 32)


def test_a_loop_over_time_counts_once():
  params = tree(w=(4, 3), u=(3, 3), b=(3,), out=(3, 2), h0=(3,))

  def rnn(p, xs):
    step = lambda h, x: (jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"]),) * 2
    return lax.scan(step, p["h0"], xs)[1] @ p["out"]

  facts = read(rnn, params, rand((7, 4)))
  assert {name: facts[name].depth for name in facts} == {"w": 0, "u": 0, "b": 0, "h0": 0, "out": 1}
  assert facts["b"].layer == "w"
  assert facts["h0"].layer is None
  assert facts["u"].macs == 7 * 9
  assert facts["w"].stacked_axes == ()


@pytest.mark.parametrize(
  "spelling", ["one loop", "a loop a layer", "input products before the loop", "layers over time"]
)
def test_recurrent_weights_are_as_deep_as_what_their_products_are_added_to(spelling):
  """Three layers of tanh(w·x + u·h) and a head; hidden states start as zeros, which have no depth of their own."""
  layer = lambda p, h, wx: (jnp.tanh(wx + h @ p["u"]),) * 2
  blocks = [tree(w=(3, 3), u=(3, 3)) for _ in range(3)]
  params, xs, zeros = {"blocks": blocks, "out": jnp.ones((3, 2))}, rand((7, 4, 3)), jnp.zeros((4, 3))

  def one_loop(p, xs):
    def cell(hidden, x):
      new = []
      for block, h in zip(p["blocks"], hidden, strict=True):
        x, _ = layer(block, h, x @ block["w"])
        new.append(x)
      return new, x

    return lax.scan(cell, [zeros] * 3, xs)[1]

  def loop_a_layer(p, xs):
    for block in p["blocks"]:
      _, xs = lax.scan(lambda h, x, block=block: layer(block, h, x @ block["w"]), zeros, xs)
    return xs

  def products_before(p, xs):
    for block in p["blocks"]:
      _, xs = lax.scan(lambda h, wx, block=block: layer(block, h, wx), zeros, xs @ block["w"])
    return xs

  def layers_over_time(p, xs):
    body = lambda xs, block: (lax.scan(lambda h, x: layer(block, h, x @ block["w"]), zeros, xs)[1], None)
    return lax.scan(body, xs, p["blocks"])[0]

  spellings = {"one loop": one_loop, "a loop a layer": loop_a_layer, "input products before the loop": products_before}
  if spelling == "layers over time":
    params["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
  hidden = spellings.get(spelling, layers_over_time)
  facts = read(lambda p, xs: hidden(p, xs)[-1] @ p["out"], params, xs)
  assert facts["out"].depth == 3
  if spelling == "layers over time":
    assert np.array_equal(facts["blocks/w"].depth, [0, 1, 2])
    assert np.array_equal(facts["blocks/u"].depth, [0, 1, 2])
  else:
    assert [facts[f"blocks/{i}/{name}"].depth for i in range(3) for name in "wu"] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("cast", [jnp.float32, jnp.bfloat16])
def test_a_loss_and_its_penalty(cast):
  model = mlp_dict()
  loss = lambda p, x: jnp.mean(model.apply(p, x).astype(cast) ** 2) + sum(jnp.sum(w**2) for w in jax.tree.leaves(p))
  check(structure_from_model(loss, model.params, *model.inputs), model)


def test_a_gradient_is_refused():
  model = mlp_dict()
  loss = lambda p, x: jnp.mean(model.apply(p, x) ** 2)
  for apply in (jax.grad(loss), jax.value_and_grad(loss)):
    with pytest.raises(ValueError, match="forward function"):
      structure_from_model(apply, model.params, *model.inputs)


def test_uses_are_listed():
  model = shared()
  facts = read(model.apply, model.params, *model.inputs)["again"]
  assert facts.uses == ("product@1", "product@2", "product@3")
  assert facts.macs == 3 * 2 * 16


def test_nothing_is_computed():
  shapes = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)  # 4 TiB
  facts = read(
    lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": shapes}, jax.ShapeDtypeStruct((8, 1 << 20), jnp.float32)
  )
  assert facts["w"].connections == 1 << 40


def test_other_arguments_are_passed_on():
  def apply(p, batch, train, steps, *, key=None):
    assert train is True
    for _ in range(steps):
      batch = {"x": jnp.tanh(batch["x"] @ p["w"])}
    return batch["x"] + 1

  assert read(apply, {"w": rand((4, 4)), "f": jnp.tanh, "none": None}, {"x": X}, True, 3)["w"].uses[-1] == "product@2"
  noisy = lambda p, key, x: x @ (p["mean"] + p["deviation"] * jax.random.normal(key, (4, 3)))
  for key in (jax.random.key(0), jax.random.PRNGKey(0)):  # noise is no input
    facts = read(noisy, tree(mean=(4, 3), deviation=(4, 3)), key, X)
    assert facts["mean"].contracting_axes == facts["deviation"].contracting_axes == (0,)


def said(apply, params, *inputs):
  """What is warned of, and the facts."""
  with pytest.warns(UserWarning, match="could not see") as caught:
    structure = structure_from_model(apply, params, *inputs)
  return str(caught[0].message), structure


def callback(p, x):
  return jax.pure_callback(lambda w, x: x @ w, jax.ShapeDtypeStruct((2, 3), jnp.float32), p["w"], x)


@pytest.mark.parametrize(
  ("apply", "reason"),
  [
    (lambda p, x: x, "never used"),
    (callback, "pure_callback"),
    (lambda p, x: lax.linalg.triangular_solve(p["w"][:3], x[:, :3].T, left_side=True), "triangular_solve"),
  ],
)
def test_what_cannot_be_seen_is_said(apply, reason):
  message, structure = said(apply, {"w": rand((4, 3))}, X)
  [facts] = structure.leaves()
  assert "'w'" in message
  assert reason in message
  assert reason in facts.note
  assert reason in str(structure)
  assert (facts.connections, facts.contracting_axes) == (12, (0,))  # from path and shape


@pytest.mark.parametrize(
  ("apply", "reason"),
  [
    (lambda p, x: x @ lax.linalg.qr(p["w"])[0][:, :3], "qr"),
    (lambda p, x: x @ jnp.zeros((4, 3)).at[jnp.array([0, 2])].set(p["w"][:2]), "scatter"),
    (lambda p, x: x @ jnp.zeros((4, 4)).at[np.triu_indices(4, 1)].set(p["w"].ravel()[:6])[:, :3], "scatter"),
    (lambda p, x: x @ p["w"][jnp.array([0, 1, 1, 3])], "array of constants"),
    (lambda p, x: x @ lax.pad(p["w"][:2], 0.0, [(0, 1, 1), (0, 0, 0)]), "between its entries"),
    (lambda p, x: lax.fori_loop(0, x.sum().astype(int), lambda i, h: h + x[:, :3] @ p["w"][i], x[:, 0]), "indexed"),
  ],
)
def test_a_layer_of_which_the_axes_are_not_known(apply, reason):
  """It keeps its layer, its bias and its depth, and no axes are guessed for it."""
  params = {"w": rand((4, 3)), "b": rand((3,) if reason != "indexed" else (2,)), "v": rand((4, 4)), "out": rand((2, 2))}
  model = lambda p, x: p["out"] @ (apply(p, jnp.tanh(x @ p["v"])) + p["b"]).reshape(2, -1)
  message, structure = said(model, params, X)
  facts = structure.facts
  assert "'w'" in message
  assert reason in message
  assert reason in facts["w"].note
  assert "guessed" not in str(structure)
  assert (facts["w"].layer, facts["w"].connections, facts["w"].contracting_axes) == ("w", 12, None)
  assert [facts[name].depth for name in ("v", "w", "b", "out")] == [0, 1, 1, 2]
  if reason != "indexed":  # what a loop adds up is no single product's
    assert (facts["b"].layer, facts["b"].connections) == ("w", 12)


@pytest.mark.parametrize(
  "apply",
  [
    lambda p, x: jnp.einsum("bi,aio->bao", x[:, :2], p["w"].reshape(2, 2, 3)),
    lambda p, x: jnp.einsum("bgi,gio->bgo", x.reshape(2, 2, 2), p["w"].reshape(2, 2, 3)),
    lambda p, x: x[:, :2] @ p["w"][:2],
  ],
)
def test_an_axis_partly_contracted_is_none(apply):
  message, structure = said(apply, {"w": rand((4, 3))}, X)
  assert structure.facts["w"].contracting_axes is None
  assert "axis 0 is only partly contracted" in message


def test_contracted_in_two_ways_is_none():
  message, structure = said(lambda p, x: x @ (p["w"] + p["w"].T), {"w": rand((4, 4))}, X)
  assert structure.facts["w"].contracting_axes is None
  assert "two ways" in message


def test_pallas_is_not_looked_into():
  from jax.experimental import pallas as pl

  def kernel(x_ref, w_ref, o_ref):
    o_ref[...] = x_ref[...] @ w_ref[...]

  call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((2, 4), jnp.float32))
  message, structure = said(lambda p, x: call(x, p["w"]) @ p["out"], tree(w=(4, 4), out=(4, 2)), X)
  assert "pallas_call" in message
  assert "'out'" not in message
  assert structure.facts["out"].contracting_axes == (0,)


def test_what_is_guessed_is_no_deeper_than_the_network():
  """Its path says that it is the third weight of three; the network is one layer deep. Nothing seen: all is."""
  solve = lambda p, x: jnp.linalg.solve(p["z"], (x @ p["a"] + x @ p["b"]).T).T
  _, structure = said(solve, tree(a=(4, 4), b=(4, 4), z=(4, 4)), X)
  assert (structure.num_layers, structure.facts["z"].depth) == (1, 0)
  _, structure = said(lambda p, x: callback({"w": callback(p, p["v"])}, x), tree(w=(4, 4), v=(4, 3)), X)
  assert (structure.num_layers, structure.facts["w"].depth) == (2, 1)


def test_a_primitive_of_another_version_stops_nothing(monkeypatch):
  monkeypatch.setattr(reader, "safety_net", True)
  monkeypatch.setitem(model.RULES, "dot_general", lambda *_: 1 / 0)
  message, structure = said(lambda p, x: x @ p["w"], {"w": rand((4, 3))}, X)
  assert "dot_general" in message
  assert structure.facts["w"].contracting_axes == (0,)


def test_a_loop_in_an_unknown_form(monkeypatch):
  """An error in tests; a note, and no wrong facts, for users."""
  eqn = jax.make_jaxpr(lambda x: lax.scan(lambda c, _: (c, None), x, length=2)[0])(X).eqns[0]
  monkeypatch.setattr(control, "scan_form", lambda _: scan_form(eqn.replace(params={"length": 2, "parts": ()})))
  model = lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0] @ p["out"]
  params = tree(w=(3, 4, 4), out=(4, 2))
  with pytest.raises(UnknownFormError, match="length, parts"):
    structure_from_model(model, params, X)
  monkeypatch.setattr(reader, "safety_net", True)
  message, structure = said(model, params, X)
  assert "UnknownFormError: a scan with the parameters length, parts" in message
  assert "'out'" not in message
  assert structure.facts["out"].contracting_axes == (0,)


def test_facts_compare_and_hash():
  params = {"w": rand((3, 4, 4))}
  apply = lambda p, x: lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0]
  one, two = structure_from_model(apply, params, X), structure_from_model(apply, params, X)
  other = structure_from_model(lambda p, x: apply({"w": p["w"][::-1]}, x), params, X)
  assert one == two
  assert one != other
  assert len({one.facts["w"], two.facts["w"]}) == 1
  np.testing.assert_allclose(ByDepth().scales(one)["w"].ravel(), 2 ** (np.array([2, 1, 0]) / 3))


def test_time_is_linear(monkeypatch):
  """Work, not seconds: a model of twice the layers takes twice the equations and uses, and no more."""
  counts, equation = [], Reader.equation
  for layers in (10, 20):
    params = {f"w{i}": rand((4, 4)) for i in range(layers)}

    def apply(p, x):
      for w in p.values():
        x = jnp.tanh(x @ w)
      return x

    calls = []

    def counted(self, eqn, ins, calls=calls):
      calls.append(eqn)
      return equation(self, eqn, ins)

    monkeypatch.setattr(Reader, "equation", counted)
    read(apply, params, X)
    counts.append(len(calls))
  assert counts[1] == 2 * counts[0]


# Programs that write a product in other ways


def layers(apply, params, *inputs):
  """Each leaf's layer, depth and axes, and the number of layers."""
  structure = structure_from_model(apply, params, *inputs)
  facts = leaves_by_path(structure.facts)
  found = {
    path: (f.layer, np.asarray(f.depth).tolist(), f.contracting_axes, f.stacked_axes) for path, f in facts.items()
  }
  return found, structure.num_layers


def test_a_loop_that_carries_a_sum_of_parameters():
  """Beside the activations; some rows of a stack meet in one value."""

  def apply(p, x):
    body = lambda c, q: ((c[0] @ q["w"], c[1] + q["d"].sum()), None)
    return jnp.multiply(*lax.scan(body, (x, 0.0), p)[0])

  found, _ = layers(apply, tree(w=(3, 4, 4), d=(3, 4)), X)
  assert found["w"] == ("w", [0, 1, 2], (1,), (0,))
  assert found["d"][0] is None

  def over_time(p, xs):  # this one counts once
    body = lambda c, x: ((jnp.tanh(x @ p["w"] + c[0]), c[1] + p["d"].sum()), None)
    return jnp.multiply(*lax.scan(body, (jnp.zeros(3), 0.0), xs)[0])

  found, depth = layers(over_time, tree(w=(4, 3), d=(3,)), rand((5, 4)))
  assert (found["w"], depth) == (("w", 0, (0,), ()), 1)


@pytest.mark.parametrize("rows", [2, 3])
def test_several_slices_of_a_stack_in_one_weight(rows):
  found, depth = layers(lambda p, x: x @ sum(p["s"][i] for i in range(rows)), tree(s=(rows, 4, 4)), X)
  assert (found["s"], depth) == (("s", [0] * rows, (1,), (0,)), 1)
  blended = lambda p, x: jnp.tanh(x @ (0.5 * p["s"][0] + 0.5 * p["s"][1])) @ (p["s"][2] - p["s"][3])
  found, _ = layers(blended, tree(s=(4, 4, 4)), X)
  assert found["s"] == ("s", [0, 0, 1, 1], (1,), (0,))


def test_weights_fetched_an_iteration_ahead():
  def apply(p, x):
    def body(c, i):
      h, w = c
      return (jnp.tanh(h @ w), p["w"][jnp.minimum(i + 1, 2)]), None

    return lax.scan(body, (x, p["w"][0]), jnp.arange(3))[0][0] @ p["out"]

  found, depth = layers(apply, tree(w=(3, 4, 4), out=(4, 2)), X)
  assert (found["w"], found["out"][1], depth) == (("w", [0, 1, 2], (1,), (0,)), 3, 4)


@pytest.mark.parametrize(
  "scale",
  [
    lambda x, g: jnp.einsum("bd,d->bd", x, g),
    lambda x, g: jnp.einsum("bd,d->db", x, g).T,
    lambda x, g: jnp.einsum("d,bd->bd", g, x),
    lambda x, g: jnp.einsum("bd,ed->bed", x, g[None])[:, 0],
    lambda x, g: jax.vmap(lambda row: row * g)(x),
  ],
)
def test_a_product_that_contracts_nothing_is_no_layer(scale):
  found, depth = layers(lambda p, x: scale(x, p["norm"]) @ p["a"], tree(norm=(4,), a=(4, 3)), X)
  assert (found["norm"], found["a"], depth) == ((None, 0, None, ()), ("a", 0, (0,), ()), 1)


@pytest.mark.parametrize(
  ("product", "axes"),
  [
    (lambda h, w: (h[:, :, None] * w).sum(1), (0,)),
    (lambda h, w: (w * h[:, :, None]).sum(-2), (0,)),
    (lambda h, w: (h[:, None, :] * w.T).sum(-1), (0,)),
    (lambda h, w: (h[..., None].astype(jnp.bfloat16) * w.astype(jnp.bfloat16)).astype(jnp.float32).sum(1), (0,)),
    (lambda h, w: jax.vmap(lambda row: (row[:, None] * w).sum(0))(h), (0,)),
    (lambda h, w: jnp.sum(0.5 * (h[:, :, None] * w), axis=1), (0,)),
    (lambda h, w: 4 * jnp.mean(h[:, :, None] * w, axis=1), (0,)),
  ],
)
def test_a_product_summed_over_a_shared_axis_is_a_layer(product, axes):
  params = tree(first=(4, 4), w=(4, 3), b=(3,), out=(3, 2))
  model = lambda p, x: jnp.tanh(product(jnp.tanh(x @ p["first"]), p["w"]) + p["b"]) @ p["out"]
  found, depth = layers(model, params, X)
  assert found["w"] == ("w", 1, axes, ())
  assert found["b"] == ("w", 1, None, ())
  assert (found["out"][1], depth) == (2, 3)
  facts = read(model, params, X)["w"]
  assert (facts.connections, facts.macs) == (12, 24)


def test_a_scale_summed_over_places_is_no_layer():
  """Nothing of the scale is summed over: its axis stays."""
  model = lambda p, x: (x * p["scale"]).mean(1) @ p["out"]
  found, depth = layers(model, tree(scale=(4,), out=(4, 2)), rand((2, 5, 4)))
  assert (found["scale"][0], found["out"][1], depth) == (None, 0, 1)


@pytest.mark.parametrize(
  "product",
  [
    lambda x, w, i: jnp.einsum("bi,bio->bo", x, w[i]),
    lambda x, w, i: jnp.einsum("bi,boi->bo", x, w.transpose(0, 2, 1)[i]),
    lambda x, w, i: jax.vmap(lambda row, n: row @ w[n])(x, i),
    lambda x, w, i: (x[:, :, None] * w[i]).sum(1),
    lambda x, w, i: (x[:, None] @ jnp.take(w, i, axis=0))[:, 0],
  ],
)
def test_a_weight_that_an_input_chooses_is_a_layer(product):
  """Experts, or species: the chosen axis counts layers of one depth."""
  model = lambda p, x, i: jnp.tanh(product(x, p["w"], i)) @ p["o"]
  found, depth = layers(model, tree(w=(7, 4, 3), o=(3, 2)), X, jnp.array([3, 1]))
  assert found == {"w": ("w", 0, (1,), (0,)), "o": ("o", 1, (0,), ())}
  assert depth == 2
  routed = lambda p, x: model(p, x, jnp.argmax(x @ p["router"], -1))
  found, depth = layers(routed, tree(w=(7, 4, 3), o=(3, 2), router=(4, 7)), X)
  assert (found["router"][1], found["w"][1], found["o"][1], depth) == (0, 1, 2, 3)


def test_two_embeddings_multiplied_are_no_layer():
  """A matrix factorisation looks up both."""
  model = lambda p, i, j: jnp.einsum("bd,bd->b", p["user"][i], p["item"][j]) + p["bias"][i]
  found, depth = layers(model, tree(user=(7, 4), item=(6, 4), bias=(7,)), jnp.arange(3), jnp.arange(3))
  assert [found[name][0] for name in found] == [None] * 3
  assert depth == 0
  model = lambda p, i: p["user"][i] @ p["out"]
  found, depth = layers(model, tree(user=(7, 4), out=(4, 2)), jnp.arange(3))
  assert (found["user"][0], found["out"], depth) == (None, ("out", 0, (0,), ()), 1)


@pytest.mark.parametrize(
  "shifted",
  [
    lambda x, c: sum(jnp.roll(x, j, 0) * c[j, 0] for j in range(3)),
    lambda x, c: sum(c[j, 0] * jnp.roll(x, -j, 0) for j in range(3)),
    lambda x, c: sum(jnp.pad(x, ((2, 0), (0, 0)))[j : j + len(x)] * c[j, 0] for j in range(3)),
    lambda x, c: sum(lax.dynamic_slice_in_dim(jnp.pad(x, ((2, 0), (0, 0))), j, len(x)) * c[j] for j in range(3)),
  ],
)
def test_a_depthwise_convolution_by_shifts(shifted):
  model = lambda p, x: jax.nn.silu(shifted(jnp.tanh(x @ p["in"]), p["c"]) + p["b"]) @ p["out"]
  params = tree(**{"in": (4, 4)}, c=(3, 1, 4), b=(4,), out=(4, 2))
  found, depth = layers(model, params, rand((5, 4)))
  assert found["c"] == ("c", 1, (0, 1), ())
  assert found["b"] == ("c", 1, None, ())
  assert (found["out"][1], depth) == (2, 3)
  facts = read(model, params, rand((5, 4)))["c"]
  assert (facts.connections, facts.groups, facts.macs) == (12, 4, 3 * 5 * 4)


def test_learned_weights_of_two_streams_are_no_layer():
  """Only shifts of one activation make a convolution."""
  model = lambda p, x: (p["mix"][0] * x + p["mix"][1] * jnp.tanh(x)) @ p["out"]
  found, depth = layers(model, tree(mix=(2, 4), out=(4, 2)), X)
  assert (found["mix"][0], depth) == (None, 1)


def test_a_table_of_positions_in_each_group():
  """A group convolution: each group sums over the whole axis, in an order of its own."""
  table = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1]])
  model = lambda p, x: jnp.einsum("bs,fgs->bfg", x, p["k"][:, table]) + p["b"][:, None]
  found, depth = layers(model, tree(k=(6, 4), b=(6,)), X)
  assert (found["k"], found["b"], depth) == (("k", 0, (1,), ()), ("k", 0, None, ()), 1)
  message, structure = said(
    lambda p, x: jnp.einsum("bs,fgs->bfg", x, p["k"][:, np.minimum(table, 2)]) + p["b"][:, None],
    tree(k=(6, 4), b=(6,)),
    X,
  )
  assert "array of constants" in message
  assert structure.facts["k"].contracting_axes is None
  assert (structure.facts["k"].layer, structure.facts["b"].layer) == ("k", "k")


def test_a_layer_fed_by_a_constant():
  model = lambda p, x: jnp.concatenate([x, jnp.ones((2, 1)) @ p["e"]], -1) @ p["a"]
  found, depth = layers(model, tree(e=(1, 3), a=(7, 2)), X)
  assert (found, depth) == ({"e": ("e", 0, (0,), ()), "a": ("a", 1, (0,), ())}, 2)

  grid = np.random.default_rng(0).normal(size=(2, 3))

  def positions(p, x):
    """A table of positions by a small network, as Swin's."""
    return (x + jnp.tanh(grid @ p["e"] + p["b"]) @ p["f"]) @ p["out"]

  found, depth = layers(positions, tree(e=(3, 6), b=(6,), f=(6, 4), out=(4, 2)), X)
  assert (found["e"], found["b"], depth) == (("e", 0, (0,), ()), ("e", 0, None, ()), 3)
  assert [found[name][1] for name in "ef"] + [found["out"][1]] == [0, 1, 2]


def test_a_weight_times_a_constant_is_still_a_weight():
  """A product of parameters with constants is part of the layer whose weight it makes."""
  rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
  model = lambda p, x: jnp.tanh(x @ (jnp.tril(jnp.ones((4, 4))) @ p["w"])) @ (rotation @ p["v"])
  found, depth = layers(model, tree(w=(4, 4), v=(4, 2)), X)
  assert (found["w"][1], found["v"][1], depth) == (0, 1, 2)


def test_a_mask_among_the_leaves_is_no_layer():
  """The weight that it masks has the layer, the bias and the connections; a mask alone is what there is."""
  params = {"mask": jnp.ones((4, 3), bool), "w": rand((4, 3)), "z": rand((3,)), "out": rand((3, 2))}
  for apply in (
    lambda p, x: jnp.tanh(x @ jnp.where(p["mask"], p["w"], 0) + p["z"]) @ p["out"],
    lambda p, x: jnp.tanh(x @ (p["mask"] * p["w"]) + p["z"]) @ p["out"],
  ):
    found, depth = layers(apply, params, X)
    assert (found["w"], found["z"], depth) == (("w", 0, (0,), ()), ("w", 0, None, ()), 2)
    assert found["mask"][:3] == (None, 0, None)


def test_a_weight_of_which_constants_replace_entries():
  """A diagonal of ones, as in triangular flows: like a mask."""
  params = tree(w=(4, 4), b=(4,), out=(4, 2))
  for replaced in (
    lambda w: w.at[jnp.diag_indices(4)].set(1.0),
    lambda w: w.at[0].add(1.0),
    lambda w: jnp.tril(w).at[np.array([0, 2]), np.array([1, 1])].multiply(2.0),
    lambda w: w.at[jnp.diag_indices(4)].set(jax.nn.softplus(jnp.diag(w))),
  ):
    model = lambda p, x, replaced=replaced: jnp.tanh(x @ replaced(p["w"]) + p["b"]) @ p["out"]
    found, depth = layers(model, params, X)
    assert (found["w"], found["b"], depth) == (("w", 0, (0,), ()), ("w", 0, None, ()), 2)


def test_a_determinant_beside_the_layer():
  """The weights of a flow enter its density at another depth; their own is that of their products."""

  def flow(p, x):
    def body(c, w):
      return (jnp.tanh(c[0] @ w), c[1] + jnp.log(jnp.diag(w)).sum()), None

    z, log_det = lax.scan(body, (x, 0.0), p["w"])[0]
    return z.sum(-1) + log_det

  found, depth = layers(flow, tree(w=(3, 4, 4)), X)
  assert (found["w"], depth) == (("w", [0, 1, 2], (1,), (0,)), 3)
  early = lambda p, x: jnp.tanh((x + jnp.log(jnp.diag(p["b"])).sum()) @ p["a"]) @ p["b"]  # before its own product
  found, _ = layers(early, tree(a=(4, 4), b=(4, 4)), X)
  assert found == {"a": ("a", 0, (0,), ()), "b": ("b", 1, (0,), ())}


def test_tables_of_scanned_layers():
  body = lambda x, p: (jnp.tanh(x @ p["w"] + p["table"][x[:, 0].astype(int)]), None)
  found, _ = layers(lambda p, x: lax.scan(body, x, p)[0], tree(w=(3, 4, 4), table=(3, 7, 4)), X)
  assert found["w"] == ("w", [0, 1, 2], (1,), (0,))
  assert found["table"] == (None, [0, 0, 1], None, (0,))


# Derivatives


def energy(p, r):
  return jnp.sum(jnp.tanh(jnp.tanh(r @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]) @ p["w3"])


@pytest.mark.parametrize(
  "derivative",
  [
    lambda p, r: jax.grad(energy, 1)(p, r),
    lambda p, r: jax.value_and_grad(energy, 1)(p, r),
    lambda p, r: jax.grad(jax.jit(energy), 1)(p, r),
    lambda p, r: jax.jit(jax.grad(jax.checkpoint(energy), 1))(p, r),
    lambda p, r: jax.hessian(energy, 1)(p, r),
    lambda p, r: jax.jvp(lambda r: energy(p, r), (r,), (jnp.ones_like(r),)),
    lambda p, r: jax.jacfwd(energy, 1)(p, r),
    lambda p, r: jax.vmap(jax.grad(energy, 1), (None, 0))(p, r),
    lambda p, r: jax.vjp(lambda r: energy(p, r), r)[1](1.0),
    lambda p, r: jax.linearize(lambda r: energy(p, r), r)[1](r),
    lambda p, r: (energy(p, r), jax.grad(lambda r: (jax.grad(energy, 1)(p, r) ** 2).sum())(r)),
  ],
  ids=["grad", "value_and_grad", "jit", "checkpoint", "hessian", "jvp", "jacfwd", "vmap", "vjp", "linearize", "twice"],
)
def test_derivatives_have_no_layers(derivative):
  """Forces: the facts are those of the energy, whatever products its derivatives take."""
  params = tree(w1=(4, 6), b1=(6,), w2=(6, 6), b2=(6,), w3=(6, 1))
  want, depth = layers(energy, params, X)
  assert layers(derivative, params, X) == (want, depth)


def test_a_layer_behind_a_derivative():
  params = tree(w1=(4, 6), b1=(6,), w2=(6, 6), b2=(6,), w3=(6, 1), out=(4, 2))
  found, _ = layers(lambda p, r: jax.grad(energy, 1)(p, r) @ p["out"], params, X)
  assert [found[name][1] for name in ("w1", "w2", "w3", "out")] == [0, 1, 2, 2]


def test_tied_weights_of_an_autoencoder_are_no_derivative():
  model = lambda p, x: jnp.tanh(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["b"].T) @ p["a"].T
  facts = read(model, tree(a=(4, 3), b=(3, 2)), X)
  assert [facts[name].uses for name in "ab"] == [("product@0", "product@3"), ("product@1", "product@2")]


# What follows a layer


@pytest.mark.parametrize(
  ("normaliser", "normalised"),
  [
    (lambda y, p: y, False),
    (lambda y, p: (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5), True),
    (lambda y, p: (y - y.mean(0)) * (lax.rsqrt(y.var(0) + 1e-5) * p["scale"]) + p["scale"], True),
    (lambda y, p: (y - p["mean"]) * lax.rsqrt(p["var"] + 1e-5), True),  # running statistics
    (lambda y, p: (y - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"], True),
    (lambda y, p: y / jnp.sqrt(jnp.mean(y * y, 0)), True),
    (lambda y, p: (y - y.mean(-1, keepdims=True)) * lax.rsqrt(y.var(-1, keepdims=True)), False),  # layer norm
    (lambda y, p: (y - y.mean()) / jnp.sqrt(y.var()), False),
    (lambda y, p: y * p["scale"], False),
    (lambda y, p: y - y.mean(0), False),
    (lambda y, p: jnp.tanh(y) / jnp.sqrt(y.var(0)), False),  # tanh of twice as much is not twice as much
    (lambda y, p: norm(jnp.tanh(y)), False),
    (lambda y, p: norm(jax.nn.gelu(y)), False),
    (lambda y, p: norm(jax.nn.silu(y)), False),
    (lambda y, p: norm(jax.nn.relu(2 * y)), True),
    (lambda y, p: y / y.var(0), False),  # what is left depends on the vector's length
    (lambda y, p: y * jnp.sqrt(y.var(0)), False),
  ],
)
def test_whether_a_normaliser_follows_each_unit(normaliser, normalised):
  params = tree(w=(4, 3), b=(3,), scale=(3,), mean=(3,), var=(3,), out=(3, 2))
  model = lambda p, x: jnp.tanh(normaliser(x @ p["w"] + p["b"], p)) @ p["out"] + sum(jnp.sum(v) for v in p.values())
  found = read(model, params, X)
  assert (found["w"].normalised, found["out"].normalised) == (normalised, False)


@pytest.mark.parametrize(
  "apply",
  [
    lambda p, x: norm(x @ p["w"] + (x @ p["a"]) @ p["b"]) @ p["out"],  # an adapter beside the layer
    lambda p, x: norm(x @ p["w"] + x @ p["a"] @ p["b"] + x) @ p["out"],  # and a residual
    lambda p, x: norm((x @ p["w"]) * jax.nn.sigmoid(x @ p["a"] @ p["b"])) @ p["out"],
  ],
)
def test_a_normaliser_of_a_sum_makes_no_layer_free_of_its_length(apply):
  found = read(apply, tree(w=(4, 4), a=(4, 2), b=(2, 4), out=(4, 2)), X)
  assert not any(facts.normalised for facts in found.values())


def norm(y):
  return (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)


def test_vectors_of_the_layers_that_a_normaliser_follows():
  """With a low-rank adapter inside the weight no leaf's length is free, though the product is normalised."""
  params = tree(w=(4, 6), a=(4, 1), b=(1, 6), out=(6, 2))
  adapted = lambda p, x: norm(x @ (p["w"] + p["a"] @ p["b"])) @ p["out"]
  axes = structure_from_model(adapted, params, X).normalised_axes()
  assert {name: axes(name, leaf) for name, leaf in params.items()} == dict.fromkeys(params)
  params = tree(w=(4, 6), out=(6, 2))
  axes = structure_from_model(lambda p, x: norm(x @ p["w"]) @ p["out"], params, X).normalised_axes()
  assert {name: axes(name, leaf) for name, leaf in params.items()} == {"w": (0,), "out": None}
  with pytest.raises(ValueError, match="nothing for leaf 'v'"):
    axes("v", params["w"])
  with pytest.raises(ValueError, match="'w'"):
    axes("w", params["out"])
  with pytest.raises(ValueError, match=r"^normalised_axes needs a structure from structure_from_model"):
    structure_from_params(params).normalised_axes()


def test_a_convolution_and_its_batch_norm():
  def model(p, x):
    y = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean, square = y.mean((0, 1, 2)), (y * y).mean((0, 1, 2))
    return jax.nn.relu((y - mean) * lax.rsqrt(square - mean**2 + 1e-5) * p["scale"]).mean((1, 2)) @ p["out"]

  found = read(model, tree(k=(3, 3, 2, 4), scale=(4,), out=(4, 2)), rand((2, 5, 5, 2)))
  assert (found["k"].normalised, found["out"].normalised) == (True, False)


@pytest.mark.parametrize(("groups", "kernel"), [(1, (3, 4, 6)), (2, (3, 2, 6)), (4, (3, 1, 4))])
def test_groups_of_a_convolution(groups, kernel):
  def model(p, x):
    numbers = {"dimension_numbers": ("NHC", "HIO", "NHC"), "feature_group_count": groups}
    return lax.conv_general_dilated(x, p["k"], (1,), "SAME", **numbers)

  facts = read(model, {"k": rand(kernel)}, rand((2, 5, 4)))["k"]
  assert (facts.groups, facts.contracting_axes) == (groups, (0, 1))
  copies = read(jax.vmap(model), {"k": rand((3, *kernel))}, rand((3, 2, 5, 4)))["k"]
  assert (copies.groups, copies.stacked_axes) == (groups, (0,))


def test_tables_of_positions_however_they_are_read():
  """Added along places, they are told from biases and class tokens; looked up, they are lookups."""

  def model(p, ids, read):
    x = p["tokens"][ids] + read(p["table"], ids)
    return (x + p["one"]) @ p["out"]

  params = tree(tokens=(7, 4), table=(9, 4), one=(4,), out=(4, 2))
  ids = jnp.arange(10).reshape(2, 5) % 7
  for lookup, kind in [
    (lambda t, _: t[:5], "positions@0"),
    (lambda t, _: t[jnp.arange(5)], "positions@0"),
    (lambda t, _: t[jnp.arange(5)][None], "positions@0"),
    (lambda t, ids: t[ids], "lookup@0"),
  ]:
    facts = read(lambda p, ids, lookup=lookup: model(p, ids, lookup), params, ids)
    assert facts["table"].uses == (kind,), kind
    assert facts["one"].uses == ("elementwise@0",)
    assert [facts[name].layer for name in ("tokens", "table", "one")] == [None] * 3
  params = tree(w=(4, 3), places=(5, 3), b=(3,), v=(3, 2))
  learned = read(lambda p, x: (x @ p["w"] + p["places"] + p["b"]) @ p["v"], params, rand((2, 5, 4)))
  assert (learned["places"].uses, learned["b"].uses) == (("positions@0",), ("bias@0",))


def test_what_was_read_before_a_failure_is_kept(monkeypatch):
  """One equation inside a loop in a jitted function; all uses before and after it are there."""
  monkeypatch.setattr(reader, "safety_net", True)
  monkeypatch.setitem(model.RULES, "cumsum", lambda *_: 1 / 0)

  @jax.jit
  def step(x, w):
    return jnp.cumsum(jnp.tanh(x @ w), 0), None

  apply = lambda p, x: lax.scan(step, x @ p["in"], p["w"])[0] @ p["out"]
  found, depth = layers(apply, tree(**{"in": (4, 4)}, w=(3, 4, 4), out=(4, 2)), X)
  assert found == {"in": ("in", 0, (0,), ()), "w": ("w", [1, 2, 3], (1,), (0,)), "out": ("out", 4, (0,), ())}
  assert depth == 5


def test_long_loops_over_time_are_read_once(monkeypatch):
  """A table that time indexes makes no layers; a stack of 100 scanned layers takes ten times one of 10."""
  counts, equation = [], Reader.equation

  def counted(self, eqn, ins):
    counts[-1] += 1
    return equation(self, eqn, ins)

  monkeypatch.setattr(Reader, "equation", counted)

  def rnn(p, xs):
    step = lambda h, t: (jnp.tanh(xs[t] @ p["w"] + h @ p["u"] + p["places"][t]), None)
    return lax.scan(step, jnp.zeros(3), jnp.arange(len(xs)))[0] @ p["out"]

  for length in (10, 1000):
    counts.append(0)
    facts = read(rnn, tree(w=(4, 3), u=(3, 3), places=(length, 3), out=(3, 2)), rand((length, 4)))
    assert [np.max(facts[name].depth) for name in ("w", "u", "places", "out")] == [0, 0, 0, 1]
    assert facts["places"].stacked_axes == (0,)
  assert counts[0] == counts[1]
  counts.clear()
  for layers in (10, 100):
    counts.append(0)
    read(lambda p, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0], {"w": rand((layers, 4, 4))}, X)
  assert counts[1] <= 10 * counts[0]
