"""`Optimizer`: a function from the learning rate to an optax transformation, and where to look for the best rate."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.arguments import shown
from optax_ext.compare.fingerprint import PLATFORM, digest
from optax_ext.compare.grid import Range
from optax_ext.compare.protocol import Shape


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer of a comparison: a name, and a function from the learning rate to an optax transformation.

  Attributes:
    name: Names it in tables and files.
    make: `make(learning_rate, **settings) -> optax.GradientTransformation`. It is called while tracing: the learning
      rate is a traced number, or a schedule where the protocol has one; what it is must not change the state's
      structure. With a plateau the rate changes from step to step, so an optimizer that keeps it in its state does not
      see that.
    centre: The middle of the grid of learning rates: a usual rate of Adam, corrected by the known effective step.
    space: Ranges of the settings that track B draws, beside the learning rate.
    baselines: Names of the optimizers that it is compared with.
    prepare: Changes the initial parameters, as `normalize_vectors` does for ND-Adam.
    evaluated: `evaluated(opt_state, params)` gives the parameters that are measured, where these are not those that are
      trained, as `optax.contrib.schedule_free_eval_params`.
    note: A remark for the reports.
  """

  name: str
  make: Callable[..., optax.GradientTransformation]
  centre: float = 1e-3
  space: Mapping[str, Range] = dataclasses.field(default_factory=dict)
  baselines: tuple[str, ...] = ()
  prepare: Callable[[Any], Any] | None = None
  evaluated: Callable[[Any, Any], Any] | None = None
  note: str = ""

  def __post_init__(self) -> None:
    if not isinstance(self.name, str):
      raise TypeError(f"name must be a string, but was {shown(self.name)}.")
    if not callable(self.make):
      raise TypeError(
        f"The optimizer {self.name!r} must be a function of the learning rate, such as optax.adam, which is called "
        f"with each rate that is tried, but was {shown(self.make)}."
      )

  def build(
    self, trial: Mapping[str, Any], scale: Any = 1.0, shape: Any = None
  ) -> optax.GradientTransformationExtraArgs:
    """The optimizer of one trial, its learning rate times `scale` and, where there is one, times the schedule."""
    settings = dict(trial)
    rate = settings.pop("learning_rate") * scale
    learning_rate = rate if shape is None else lambda count: rate * shape(count)
    return optax.with_extra_args_support(self.make(learning_rate, **settings))


def check_optimizers(
  optimizers: Iterable[Optimizer], params: Any, shape: Shape | None = None, settings: bool = False
) -> dict[str, str]:
  """Digests of the optimizers' programs, by name. Compiles and computes nothing.

  Args:
    optimizers: Which.
    params: The parameters; shapes and dtypes do.
    shape: The schedule of the protocol.
    settings: Whether settings beside the learning rate are drawn, too.

  Returns:
    What each optimizer's start and first step are.

  Raises:
    TypeError, ValueError: which optimizer cannot be built or does not update parameters like `params`, and why.
  """
  digests = {}
  for optimizer in optimizers:
    drawn = {name: space.low for name, space in optimizer.space.items()} if settings else {}
    try:
      traced = jax.jit(functools.partial(_once, optimizer, shape)).trace({"learning_rate": 1e-3} | drawn, params)
      digests[optimizer.name] = digest(traced.lower(lowering_platforms=PLATFORM).as_text())
    except Exception as error:
      reason = str(error).strip().partition("\n")[0]
      raise TypeError(
        f"The optimizer {optimizer.name!r} could not be built from a traced learning rate and update the problem's "
        f"parameters: {type(error).__name__}: {reason}"
      ) from error
    new, state, new_state, _ = traced.out_info
    if jax.tree.structure(state) != jax.tree.structure(new_state):
      raise ValueError(f"The state of the optimizer {optimizer.name!r} changes its structure at the first step.")
    for what, before, after in [("parameters", params, new), ("state", state, new_state)]:
      if jax.tree.map(jnp.shape, before) != jax.tree.map(jnp.shape, after):
        raise ValueError(f"The optimizer {optimizer.name!r} changes the shapes of its {what} at the first step.")
  return digests


def _once(optimizer: Optimizer, shape: Shape | None, trial: Mapping[str, jax.Array], params: Any) -> Any:
  """One step whose gradient is the parameters: new parameters, state before and after, what is measured."""
  rate = trial["learning_rate"]
  tx = optimizer.build(trial, 1.0, shape)
  params = optimizer.prepare(params) if optimizer.prepare else params
  state = tx.init(params)
  value_fn = lambda params: 0.5 * optax.tree.norm(params, squared=True)
  updates, new_state = tx.update(params, state, params, value=rate, grad=params, value_fn=value_fn)
  new = optax.apply_updates(params, updates)
  return new, state, new_state, optimizer.evaluated(new_state, new) if optimizer.evaluated else ()
