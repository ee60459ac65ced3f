"""Finished runs on disk, one JSON line each, so that interrupted work goes on where it stopped."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext.compare.problem import Problem
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.run import Result, Task
from optax_ext.compare.streams import first_batch, is_stream, opened

FILE = "finished.jsonl"


class Store:
  """Results of finished runs, by optimizer, trial, seed and phase.

  Args:
    folder: Of the file with the finished runs; `None` keeps results in memory alone.
    experiment: What all runs have in common; from `fingerprint`.
    points: How many evaluations of each run are kept, at least; `None` for all.

  Raises:
    ValueError: the folder cannot be written to, or holds runs of a different experiment.
  """

  def __init__(self, folder: pathlib.Path | None, experiment: str, points: int | None = None):
    self.results: dict[str, Result] = {}
    self.points = points
    self.path = folder / FILE if folder else None
    if folder is None or self.path is None:
      return
    check_folder(folder)
    complete, interrupted = _lines(self.path)
    if not complete:
      self.path.write_text(json.dumps({"experiment": experiment}) + "\n", "utf-8")
    elif interrupted:
      self.path.write_text(complete, "utf-8")
    self.results = read(folder, experiment)

  def get(self, optimizer: str, task: Task, phase: str) -> Result | None:
    """The result of a finished run of a phase: "report", "tune", or "dropped" for one that ended before the others."""
    return self.results.get(_key(optimizer, task, phase))

  def optimizers(self) -> set[str]:
    """Those that have finished runs."""
    return set(map(optimizer_of, self.results))

  def add(self, optimizer: str, results: Sequence[Result], phase: str) -> None:
    """Notes finished runs."""
    self._note({_key(optimizer, Task(result.trial, result.seed), phase): result for result in results})

  def absorb(self, results: Mapping[str, Result], optimizers: Collection[str]) -> None:
    """Notes runs from another folder: those of some optimizers that are not here yet."""
    self._note({key: of for key, of in results.items() if key not in self.results and optimizer_of(key) in optimizers})

  def _note(self, results: Mapping[str, Result]) -> None:
    lines = []
    for key, result in results.items():
      result = result.thinned(self.points) if self.points else result
      self.results[key] = result
      lines.append(json.dumps({"key": key, "result": dataclasses.asdict(result)}) + "\n")
    if self.path:
      with writing(self.path.parent), self.path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def read(folder: pathlib.Path, experiment: str) -> dict[str, Result]:
  """The finished runs in a folder, by their keys. Changes nothing there.

  Raises:
    ValueError: they are of another experiment.
  """
  path = folder / FILE
  lines = [json.loads(line) for line in _lines(path)[0].splitlines()]
  if lines and lines[0] != {"experiment": experiment}:
    raise ValueError(
      f"{str(path)!r} holds runs of another experiment (another problem, data, protocol, or version of jax or "
      "optax), so that they cannot be continued: choose another folder, or delete this one."
    )
  return {line["key"]: Result(**line["result"]) for line in lines[1:]}


def optimizer_of(key: str) -> str:
  """Whose run it is."""
  return key.rsplit("|", 3)[0]


def _lines(path: pathlib.Path) -> tuple[str, bool]:
  """The complete lines of a file, and whether there is one more whose writing was interrupted."""
  text = path.read_text("utf-8") if path.exists() else ""
  complete = text[: text.rfind("\n") + 1]
  return complete, complete != text


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Raises a sentence where what is inside cannot write to `folder`, as on a full disk."""
  try:
    yield
  except OSError as error:
    raise ValueError(
      f"The output folder {str(folder)!r} cannot be written to: {error.strerror}. What was finished before is in it; "
      "make room and start again, and the comparison goes on from there."
    ) from error


def check_folder(folder: pathlib.Path) -> None:
  """Makes the folder; raises a sentence where nothing can be written to it."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise ValueError(f"The output folder {str(folder)!r} cannot be written to: {error.strerror}.") from error


def fingerprint(problem: Problem, protocol: Protocol) -> str:
  """A digest of what all runs have in common: data, sizes, protocol, versions. Code is not looked into.

  Of a schedule that is a function a thousand of its values stand for it; of a loader its length and its first batch.
  """
  digest = hashlib.sha256()
  streams = [part for part in problem.data if is_stream(part)]
  digest.update("".join(f"{len(opened(part, 0, 'data'))} batches" for part in streams).encode())
  for leaf in jax.tree.leaves([first_batch(part, 0) if is_stream(part) else part for part in problem.data]):
    array = np.ascontiguousarray(leaf)
    digest.update(f"{array.shape}{array.dtype}".encode())
    digest.update(array.tobytes())
  schedule = protocol.schedule
  if callable(schedule):
    counts = jnp.arange(0, protocol.steps, max(1, protocol.steps // 1000))
    schedule = np.asarray(jax.vmap(schedule)(counts)).tolist()
  common: list[Any] = [problem.name, problem.batch_size, problem.metric, problem.maximize]
  common += [repr(dataclasses.replace(protocol, schedule="constant")), schedule]
  common += [jax.__version__, optax.__version__]
  digest.update(json.dumps(common).encode())
  return digest.hexdigest()[:16]


def _key(optimizer: str, task: Task, phase: str) -> str:
  trial = ",".join(f"{name}={value!r}" for name, value in sorted(task.trial.items()))
  return f"{optimizer}|{trial}|seed={task.seed}|{phase}"
