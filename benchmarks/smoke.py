"""What must work where jax and optax alone are installed. `benchmarks/package.py` runs it in new environments."""

import importlib.metadata
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

before = set(sys.modules)
import optax_ext  # noqa: E402

added = {name.partition(".")[0] for name in set(sys.modules) - before} - {"optax_ext"}
assert not added, f"import optax_ext imports {added}"
assert "flax" not in sys.modules
folder = pathlib.Path(optax_ext.__file__).parent
assert "site-packages" in folder.parts, f"optax_ext is not the one that was installed: {folder}"
assert (folder / "py.typed").exists()
assert importlib.metadata.version("optax_ext") == optax_ext.__version__


def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  return ((jnp.tanh(x @ params["in"]) @ params["out"] - x[:, :1]) ** 2).mean()


x = jax.random.normal(jax.random.key(0), (64, 8))
start = {"in": jax.random.normal(jax.random.key(1), (8, 16)), "out": jnp.full((16, 1), 0.25)}
structure = optax_ext.structure_from_model(loss, start, x)
assert [facts.depth for facts in structure.leaves()] == [0, 1]
axes = {"in": (0,), "out": None}
start["in"] = optax_ext.normalize_vectors(start, axes)["in"]
for tx in (
  optax_ext.exadam(1e-2),
  optax_ext.adamnx(1e-2),
  optax_ext.caadam(1e-2, structure=structure),
  optax_ext.nd_adam(1e-3, axes=axes),
):
  params, state = start, tx.init(start)

  @jax.jit
  def step(params, state, tx=tx):
    updates, state = tx.update(jax.grad(loss)(params, x), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(20):
    params, state = step(params, state)
  assert loss(params, x) < 0.8 * loss(start, x), (loss(params, x), loss(start, x))
print(f"optax_ext {optax_ext.__version__} works on Python {sys.version.split()[0]} with jax {jax.__version__}")
