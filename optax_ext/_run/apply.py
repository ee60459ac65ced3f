"""`update_and_apply`: update and apply in one call, so that a kernel can write the new parameters itself.

`optax.apply_updates` reads every parameter once more, to add an update that a kernel has just written to memory. A
kernel that holds gradient, moments and parameter on chip can compute the new parameter there. `update_and_apply` asks
for the new parameter with the extra argument `return_applied=True`. An optimizer with a kernel answers, leaf by leaf,
with `Applied(new parameter)` in place of the update.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.applied import applied
from optax_ext._common.arguments import check_transformation


def update_and_apply(
  tx: optax.GradientTransformation, grads: optax.Updates, state: Any, params: optax.Params, **extra_args: Any
) -> tuple[Any, Any]:
  """Updates and applies in one call: `tx.update` and `optax.apply_updates`, in one pass where `tx` has a kernel for it.

  Nothing may change the update after a kernel. `optax.chain` (with the kernel's optimizer as the last link), `masked`,
  `partition` and `inject_hyperparams` do not. `optax.MultiSteps` takes the plain step. Other wrappers that compute with
  updates (`apply_if_finite`) raise: use `tx.update` with them.

  Args:
    tx: Any optax transformation.
    grads: The gradients, a tree like `params`.
    state: The state of `tx`.
    params: The parameters. Donate them and the state to `jax.jit`, so that they are updated in place.
    extra_args: Passed on to `tx.update`.

  Returns:
    The new parameters, in the dtypes of the old, and the new state. A parameter stays where its gradient is `None`.

  Raises:
    TypeError: `tx` is no transformation; something computes with the update of a leaf whose kernel has applied it.
    ValueError: `params` is `None`.

  Example:
    >>> import jax.numpy as jnp
    >>> tx, params = optax.sgd(0.1), jnp.array([1.0, 2.0])
    >>> params, state = update_and_apply(tx, 2 * params, tx.init(params), params)
    >>> print(params)
    [0.8 1.6]
  """
  check_transformation("tx", tx)
  if params is None and grads is not None:
    raise ValueError("update_and_apply needs the parameters: update_and_apply(tx, grads, state, params).")
  asked = {"return_applied": True} if isinstance(tx, optax.GradientTransformationExtraArgs) else {}
  try:
    updates, new_state = tx.update(grads, state, params, **extra_args | asked)
  except (TypeError, ValueError, AttributeError) as error:
    if not asked or _raises(tx.update, grads, state, params, **extra_args):
      raise
    raise TypeError(
      "split_weights or a kernel has applied an update already, but a later link or wrapper computes with it: put the "
      "optimizer last in its chain. `tx.update` with `optax.apply_updates` uses no kernel."
    ) from error
  return applied(params, updates, _moved), new_state


def _moved(param: Any, update: Any) -> Any:
  """`optax.apply_updates` of one leaf.

  A sum of two bfloat16 numbers is taken in float32, and is the same to the bit. XLA for TPUs fuses it with 8-bit codes
  into one pass over memory, which it does not with a sum in bfloat16. `reduce_precision` rounds the update, since XLA
  leaves out a cast to bfloat16 and back.
  """
  if not all(getattr(leaf, "dtype", None) == jnp.bfloat16 for leaf in (param, update)):
    return optax.apply_updates(param, update)
  step = jax.lax.reduce_precision(jnp.asarray(update, jnp.float32), exponent_bits=8, mantissa_bits=7)
  return (jnp.asarray(param, jnp.float32) + step).astype(jnp.bfloat16)


def _raises(update: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
  """Whether a step fails without a kernel, too, so that no `Applied` is to blame."""
  try:
    update(*args, **kwargs)
  except Exception:
    return True
  return False
