"""Digests of the programs of a problem and its optimizers, taken before compilation.

A folder of results holds the digests, so that it is continued with the same model and the same optimizers alone. Every
number in a program counts, a decay rate that shows after a thousand steps too; names and comments do not.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping

FILE = "programs.json"
BEFORE = "behaviour.json"  # of earlier versions, which replayed steps
PLATFORM = ("cpu",)  # for which programs are written, so that a folder can move to another machine


@dataclasses.dataclass(frozen=True)
class Traced:
  """What the problem's programs say about it.

  Attributes:
    digest: Of its initialisation, loss, gradient and metrics.
    operations: Floating-point operations of the gradient of one batch.
    convolves: Whether there are convolutions in it.
    bytes: Of the parameters.
  """

  digest: str
  operations: float
  convolves: bool
  bytes: int


def digest(*texts: str) -> str:
  """A short digest of texts."""
  return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def check_programs(folder: pathlib.Path, programs: Mapping[str, str], ran: Collection[str]) -> None:
  """Raises unless the optimizers that `ran` in `folder` did so with these programs.

  Args:
    folder: Of the results.
    programs: By optimizer, the digest of the problem and of the optimizer.
    ran: Names of the optimizers that have runs there.

  Raises:
    ValueError: the model, its loss or metrics, or an optimizer has changed, or an earlier version made the folder.
  """
  if ran and not (folder / FILE).exists():
    why = (
      "an earlier version of optax_ext made, which did not note their programs"
      if (folder / BEFORE).exists()
      else f"cannot be told apart from others, since {FILE} is missing"
    )
    raise ValueError(f"{str(folder)!r} holds runs that {why}: choose another folder, or delete this one.")
  known = _noted(folder, ran)
  for name, now in programs.items():
    if known.get(name, now) != now:
      raise ValueError(
        f"{str(folder)!r} holds runs of {name!r} that another program made: the model, its loss, its metrics or the "
        "optimizer has changed since. Choose another folder, or delete this one."
      )


def note_programs(folder: pathlib.Path, programs: Mapping[str, str], ran: Collection[str]) -> None:
  """Notes the programs beside those of the optimizers that `ran`."""
  path = folder / FILE
  whole = path.with_suffix(".new")
  whole.write_text(json.dumps(_noted(folder, ran) | dict(programs), indent=1) + "\n", "utf-8")
  whole.replace(path)


def _noted(folder: pathlib.Path, ran: Collection[str]) -> dict[str, str]:
  path = folder / FILE
  noted: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
  return {name: of for name, of in noted.items() if name in ran}
