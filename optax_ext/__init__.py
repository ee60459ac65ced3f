"""Adam's successors, taken apart into optax transformations."""

from optax_ext.alias import adamnx, caadam, exadam, nd_adam
from optax_ext.convert import convert_moments
from optax_ext.debias import Debias, Moments, cross_moment, nesterov, standard
from optax_ext.fused import update_and_apply
from optax_ext.moments import Ratio, Square, accelerated_ratio, adam_ratio, elementwise, scale_by_moments
from optax_ext.paths import label_paths, path_string
from optax_ext.quantize import QuantizedState, quantize_state
from optax_ext.rounding import Stochastic, stochastic
from optax_ext.schedules import (
  Gain,
  adafactor_gain,
  adam_gain,
  adamnx_gain,
  adax_gain,
  constant_gain,
  log_step_size,
)
from optax_ext.sharding import state_shardings
from optax_ext.softmax import l2_logits
from optax_ext.storage import cast_updates
from optax_ext.structure import (
  Additive,
  ByDepth,
  LeafFacts,
  Multiplicative,
  Rule,
  Structure,
  decay_mask,
  scale_by_structure,
  structure_from_model,
  structure_from_params,
)
from optax_ext.vectors import (
  Axes,
  normalize_vectors,
  per_vector,
  project_out_params,
  renormalize_params,
  vector_mask,
)

__version__ = "0.1.0"

__all__ = [
    # alias: whole optimizers
    "adamnx", "caadam", "exadam", "nd_adam",
    # moments
    "Ratio", "Square", "accelerated_ratio", "adam_ratio", "elementwise", "scale_by_moments",
    # debias
    "Debias", "Moments", "cross_moment", "nesterov", "standard",
    # schedules
    "Gain", "adafactor_gain", "adam_gain", "adamnx_gain", "adax_gain", "constant_gain", "log_step_size",
    # structure
    "Additive", "ByDepth", "LeafFacts", "Multiplicative", "Rule", "Structure", "decay_mask", "scale_by_structure",
    "structure_from_model", "structure_from_params",
    # vectors
    "Axes", "normalize_vectors", "per_vector", "project_out_params", "renormalize_params", "vector_mask",
    # softmax
    "l2_logits",
    # convert, sharding: a run on several machines, and from one optimizer to another
    "convert_moments", "state_shardings",
    # rounding, quantize, fused: less memory, and less of it moved
    "QuantizedState", "Stochastic", "quantize_state", "stochastic", "update_and_apply",
    # paths, storage
    "cast_updates", "label_paths", "path_string",
]  # fmt: skip
