"""What is going on, in one live line: which optimizer, doing what, how much is done, how long it will take."""

import functools
from typing import Any


class Progress:
  """A live line where rich is installed and `show` is true; nothing otherwise.

  Args:
    show: Whether to show it.
    optimizers: How many there are.
    steps: Expected training steps over all runs. Extended grids add to them, early stopping takes away.
  """

  def __init__(self, show: bool, optimizers: int, steps: int):
    self.optimizers, self.steps, self.bar = optimizers, steps, self._bar() if show else None
    task = self.bar.add_task("checking", total=steps, state="") if self.bar else None
    self.update = functools.partial(self.bar.update, task) if self.bar else lambda **_: None

  def __enter__(self) -> "Progress":
    if self.bar:
      self.bar.start()
    return self

  def __exit__(self, *error: Any) -> None:
    if self.bar:
      self.bar.stop()

  def phase(self, index: int, name: str, what: str) -> None:
    """Optimizer `index` (from 0) starts something; until its first steps are done, it may be compiling."""
    self.update(description=f"{what} {name}, optimizer {index + 1} of {self.optimizers}", state="compiling")

  def add(self, steps: int) -> None:
    """Some steps are done, over all runs."""
    self.update(advance=steps, state="running")

  def more(self, steps: int) -> None:
    """More (or fewer) steps are to be done than was thought."""
    self.steps = max(0, self.steps + steps)
    self.update(total=self.steps)

  @staticmethod
  def _bar() -> Any:
    try:
      import rich.progress as rich
    except ImportError:
      return None
    return rich.Progress(
      rich.TextColumn("{task.description}"),
      rich.BarColumn(),
      rich.TaskProgressColumn(),
      rich.TextColumn("{task.fields[state]}, time left"),
      rich.TimeRemainingColumn(),
    )
