"""Facts as a table and as a picture."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_ext._common.tables import aligned
from optax_ext._network.facts import LeafFacts

Scales = Mapping[str, Any] | None  # from a leaf's path


def table(
  leaves: Sequence[LeafFacts], num_layers: int, scales: Scales = None, reasons: Mapping[str, str] | None = None
) -> str:
  """One line a leaf, with its scale and the reason for the scale if there are any."""
  traced, noted = any(facts.uses for facts in leaves), any(facts.note for facts in leaves)
  head = ["path", "shape", "layer", "depth", "connections", "contracting", "stacked"]
  rows = [
    head + ["macs", "uses"] * traced + ["scale"] * (scales is not None) + ["reason"] * bool(reasons) + ["note"] * noted
  ]
  for facts in leaves:
    layer = "itself" if facts.layer == facts.path else facts.layer or "-"
    row = [facts.path, facts.shape, layer, _brief(facts.depth), facts.connections]
    row += [facts.contracting_axes, facts.stacked_axes]
    row += [facts.macs, _brief_uses(facts.uses)] if traced else []
    row += [] if scales is None else [_brief(scales[facts.path])]
    row += [reasons[facts.path]] if reasons else []
    rows.append([str(cell) for cell in row] + [facts.note] * noted)
  return "\n".join([*aligned(rows), f"{num_layers} layer{'' if num_layers == 1 else 's'} deep"])


def plot(leaves: Sequence[LeafFacts], num_layers: int, scales: Scales, path: Any) -> None:
  """Layers along depth, with their connections, and below them their scales if there are any."""
  from matplotlib.figure import Figure  # without pyplot: no window, and nothing global changes

  layers = [facts for facts in leaves if facts.layer == facts.path]
  figure = Figure(figsize=(9, 3.2 if scales is None else 5.6), layout="constrained")
  axes = figure.subplots(1 if scales is None else 2, 1, sharex=True, squeeze=False)[:, 0]
  families: dict[str, list[LeafFacts]] = {}
  for facts in layers:  # one colour for all layers whose names differ in numbers alone
    families.setdefault(re.sub(r"\d+", "*", facts.path), []).append(facts)
  for number, (name, members) in enumerate(families.items()):
    style = {"marker": "osD^vP*X"[number % 8], "color": f"C{number % 10}", "linestyle": "none", "alpha": 0.75}
    depth = np.concatenate([np.ravel(facts.depth) for facts in members])
    counts = np.concatenate([np.full(np.size(facts.depth), facts.connections) for facts in members])
    axes[0].plot(depth, counts, label=name, **style)
    if scales is not None:
      axes[1].plot(depth, np.concatenate([_along_depth(scales[facts.path], facts) for facts in members]), **style)
  if layers:
    axes[0].set_yscale("log")
  axes[0].set_ylabel("connections")
  if scales is not None:
    axes[1].set_ylabel("step scale S")
    axes[1].axhline(1, color="0.8", zorder=0)
  axes[-1].set_xlabel(f"depth: products before the layer ({num_layers} layers deep)")
  axes[-1].xaxis.get_major_locator().set_params(integer=True)
  for ax in axes:
    ax.grid(alpha=0.3)
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
  figure.savefig(path, dpi=150)


def _along_depth(scale: Any, facts: LeafFacts) -> np.ndarray:
  """A leaf's scale for each of the layers in it."""
  if np.ndim(scale):
    scale = np.mean(scale, axis=tuple(axis for axis in range(np.ndim(scale)) if axis not in facts.scanned_axes))
  return np.broadcast_to(scale, np.shape(facts.depth)).ravel()


def _brief_uses(uses: tuple[str, ...]) -> str:
  return " ".join(uses) if len(uses) < 4 else f"{uses[0]} {uses[1]} and {len(uses) - 2} more"


def _brief(value: Any) -> str:
  """A number to four digits; an array by its ends, in order from least to most unless it falls."""
  if isinstance(value, str) or np.ndim(value) == 0:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
  flat = np.ravel(value)
  flat = flat if np.all(np.diff(flat) <= 0) else np.sort(flat)
  return f"{_brief(flat[0])}..{_brief(flat[-1])}"
