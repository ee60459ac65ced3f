"""Layer-wise learning-rate decay for fine-tuning: the nearer a block is to the input, the smaller its steps."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from optax_ext._common.arguments import check_expression, check_number
from optax_ext._common.paths import listed
from optax_ext._network.facts import LeafFacts
from optax_ext._network.rules import Multipliable
from optax_ext._network.structure import Structure, check_is_structure

NUMBER = re.compile(r"\d+(?=[/.]|$)")  # ends a part of a path: the 3 of "blocks/3/norm", "Block_3/norm" and "w3"


@dataclasses.dataclass(frozen=True)
class LayerDecay(Multipliable):
  r"""Layer-wise learning-rate decay, for fine-tuning: each block takes smaller steps than the block after it.

      S = ξ^{N+1−i},     i = 0 before the first block,  k in the k-th of N blocks,  N+1 after the last block

  Patch embedding, token embeddings, class token and positions come before the first block. The final norm and the head
  come after the last. Nothing has to be declared, because a trace shows the blocks:

  - *By path*: modules whose paths differ in one number alone (`blocks/0`, `Block_3`, `h/11`), if they share a weight of
    the same name and shape. The outermost such number counts. Modules that end at the same depth stand side by side,
    like the heads of several tasks, and are no blocks.
  - *By scan*: each iteration over stacked layers is a block. S is an array along the scanned axes.

  A leaf between two blocks belongs to the block before it. Blocks are ordered by their last products: an encoder's
  blocks come before a decoder's. Look at the blocks before training, with `print(structure.table(rule))`: two equal
  layers in a head, for example, are taken for blocks. If you mean other blocks, name them with `blocks`.

  BEiT and MAE scale weight decay, too: put the rule after the decay, as in `optax.chain(optax.adamw(1e-3),
  scale_by_structure(LayerDecay(0.75), structure))`. `caadam` leaves its weight decay unscaled.

  Args:
    rate: ξ in (0, 1]; usually 0.65 to 0.9.
    blocks: A regular expression that finds the blocks instead. Leaves in whose paths it matches the same text are one
      block: `r"stages/\d+/blocks/\d+"`. To join the blocks of two towers, match the number alone: `r"(?<=blocks/)\d+"`.
      Each iteration of a scan stays a block.

  Raises:
    TypeError, ValueError: `rate` is not a number in (0, 1]; `blocks` is neither a string nor `None`; in use, when the
      structure is not traced, when it has no blocks, or when `blocks` is found in no path.

  Example:
    >>> import jax.numpy as jnp
    >>> from optax_ext import structure_from_model
    >>> def net(p, x):
    ...   x = x @ p["embed"]
    ...   for block in p["blocks"]:
    ...     x = x + jnp.tanh(x @ block["w"] + block["b"])
    ...   return (x * p["norm"]) @ p["head"]
    >>> block = {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}
    >>> params = {"embed": jnp.ones((4, 8)), "blocks": [block] * 3, "norm": jnp.ones(8), "head": jnp.ones((8, 2))}
    >>> structure = structure_from_model(net, params, jnp.ones((1, 4)))
    >>> rule = LayerDecay(0.5)
    >>> scales, reasons = rule.scales(structure), rule.reasons(structure)
    >>> print(scales["embed"], [block["w"] for block in scales["blocks"]], scales["norm"], scales["head"])
    0.0625 [0.125, 0.25, 0.5] 1.0 1.0
    >>> print(reasons["embed"], reasons["blocks/1/b"], reasons["norm"], sep=", ")
    before the blocks, block 2 of 3, after the blocks

  References:
    Bao et al., `BEiT <https://arxiv.org/abs/2106.08254>`_, 2021; He et al., `Masked autoencoders
    <https://arxiv.org/abs/2111.06377>`_, 2021, Appendix A
  """

  rate: Any
  blocks: str | None = None

  def __post_init__(self) -> None:
    check_number("rate", self.rate, "(0, 1]")
    if self.blocks is not None:
      check_expression("blocks", self.blocks)

  def scales(self, structure: Structure) -> Any:
    """Numbers, and arrays along the scanned axes of stacked layers."""
    number, n = block_numbers(structure, self.blocks)

    def scale(facts: LeafFacts) -> Any:
      i = number[facts.path]
      if isinstance(i, np.ndarray):
        i = i.reshape([size if axis in facts.scanned_axes else 1 for axis, size in enumerate(facts.shape)])
      return self.rate ** (n + 1 - i)

    return jax.tree.map(scale, structure.facts)

  def reasons(self, structure: Structure) -> dict[str, str]:
    """Path of a leaf -> where it stands among the blocks, in a few words."""
    number, n = block_numbers(structure, self.blocks)
    return {path: _words(int(np.min(i)), int(np.max(i)), n) for path, i in number.items()}


def _words(first: int, last: int, n: int) -> str:
  if first < last:
    return f"blocks {first} to {last} of {n}"
  return {0: "before the blocks", n + 1: "after the blocks"}.get(first, f"block {first} of {n}")


def block_numbers(structure: Structure, blocks: str | None = None) -> tuple[dict[str, Any], int]:
  """Path of a leaf -> i, from 0 to N+1, an array along scanned axes; and N, the number of blocks.

  The last products of the blocks cut depth into N parts. A leaf outside counts the blocks that begin before it.

  Raises:
    TypeError: the structure is no `Structure`.
    ValueError: it is not traced, or has no blocks.
  """
  check_is_structure("structure", structure)
  if not structure.traced():
    raise ValueError("LayerDecay needs a structure from structure_from_model: names do not tell the order of blocks.")
  leaves = structure.leaves()
  block_of = _blocks(leaves, blocks)
  products = defaultdict(list)  # depths in each block; arrays in the blocks of a scan
  for facts in leaves:
    if facts.path in block_of and _is_weight(facts):
      products[block_of[facts.path]].append(facts.depth)
  if not products:
    raise ValueError(
      "LayerDecay finds no blocks, neither layers in a scan nor modules whose paths differ in one number alone and "
      'that share a weight of one shape: name them by a regular expression, as blocks=r"stages/\\d+/blocks/\\d+".'
    )
  last = {block: np.maximum.reduce(depths) for block, depths in products.items()}
  ends = np.unique(np.concatenate([np.ravel(depth) for depth in last.values()]))
  begins = ends.copy()
  for block, depths in products.items():
    np.minimum.at(begins, np.searchsorted(ends, last[block]), np.minimum.reduce(depths))
  begins[1:] = np.maximum(begins[1:], ends[:-1] + 1)  # what a block reads from elsewhere (a context) may come earlier

  def number(facts: LeafFacts) -> Any:
    if block_of.get(facts.path) in last:
      return 1 + np.searchsorted(ends, last[block_of[facts.path]])
    before = facts.depth + (facts.layer is None) * np.sign(facts.depth)  # a norm follows the product of its depth
    return np.where(before > ends[-1], len(ends) + 1, np.searchsorted(begins, before))

  return {facts.path: i if np.ndim(i := number(facts)) else int(i) for facts in leaves}, len(ends)


def _blocks(leaves: Sequence[LeafFacts], expression: str | None) -> dict[str, Any]:
  """Path of a leaf in a block -> name of the block, one for all iterations of a scan, with the shape of depth."""
  name = {**_by_path(leaves), **_by_scan(leaves)} if expression is None else _by_expression(expression, leaves)
  of = {facts.path: name.get(facts.path, name.get(facts.layer or "")) for facts in leaves}  # a bias is its weight's
  return {facts.path: (of[facts.path], np.shape(facts.depth)) for facts in leaves if of[facts.path] is not None}


def _is_weight(facts: LeafFacts) -> bool:
  return "product" in facts.ways()


def _by_expression(expression: str, leaves: Sequence[LeafFacts]) -> dict[str, Any]:
  """Path of a leaf -> the text that an expression matches in it."""
  found = {facts.path: match[0] for facts in leaves if (match := re.search(expression, facts.path))}
  if not found:
    paths = listed(facts.path for facts in leaves)
    raise ValueError(
      f"blocks={expression!r} is found in no path of the structure, whose leaves are {paths}: correct it."
    )
  return found


def _by_path(leaves: Sequence[LeafFacts]) -> dict[str, Any]:
  """Path of a leaf that is not scanned -> path of the outermost block around it."""
  plain = [facts for facts in leaves if not np.ndim(facts.depth)]
  families = defaultdict(lambda: defaultdict(list))  # "blocks/" -> "blocks/3" -> leaves
  for facts in plain:
    for module in _modules(facts.path):
      families[module.rstrip("0123456789")][module].append(facts)
  blocks = {block for modules in families.values() for block in _alike(modules)}
  around = {facts.path: [module for module in _modules(facts.path) if module in blocks] for facts in plain}
  return {path: of[0] for path, of in around.items() if of}


def _modules(path: str) -> list[str]:
  """The numbered modules around a leaf, from the outermost."""
  return [path[: found.end()] for found in NUMBER.finditer(path)]


def _alike(modules: dict[str, list[LeafFacts]]) -> list[str]:
  """The modules that share a weight's name and shape with another of them, if all end at different depths."""
  weights = {
    module: {(facts.path.removeprefix(module), facts.shape): int(facts.depth) for facts in of if _is_weight(facts)}
    for module, of in modules.items()
  }
  times = Counter(weight for of in weights.values() for weight in of)
  alike = [module for module, of in weights.items() if any(times[weight] > 1 for weight in of)]
  return alike if len({max(weights[module].values()) for module in alike}) == len(alike) else []


def _by_scan(leaves: Sequence[LeafFacts]) -> dict[str, Any]:
  """Path of a scanned leaf -> depth of the last product in its scan, which tells one scan from another.

  Going back from that product, all weights less than an iteration before it are of its scan. A weight with the same
  depth in each iteration reads what is known before the scan (a context), and is of the scan that ends next.
  """
  scanned = sorted((facts for facts in leaves if np.ndim(facts.depth)), key=lambda facts: -np.max(facts.depth))
  scans = defaultdict(list)  # shape of depth -> depth of the last product, and of that product an iteration before
  for facts in filter(_is_weight, scanned):
    of, depths = scans[np.shape(facts.depth)], np.unique(facts.depth)
    if len(depths) > 1 and (not of or depths[-1] <= of[-1][1]):
      of.append((depths[-1], depths[-2]))
  ends = {
    facts.path: [end for end, _ in scans[np.shape(facts.depth)] if end >= np.max(facts.depth)] for facts in scanned
  }
  return {path: min(after) for path, after in ends.items() if after}
