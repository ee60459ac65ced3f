"""Progress of a comparison: a live line in a terminal, else lines for a log, with the time that remains."""

import sys
import time
from typing import Any


class Progress:
  """Says what a comparison is doing, and when it will be done.

  In a terminal, where rich is installed, that is a live line; else a line for each phase of each optimizer, with the
  time since the start. Both go to the standard error stream.

  Args:
    show: Whether to say anything.
    optimizers: How many there are.
    steps: Expected training steps over all runs. Extended grids add to them, early stopping takes away.
    file: Where lines go; by default the standard error stream.
  """

  def __init__(self, show: bool, optimizers: int, steps: int, file: Any = None):
    self.optimizers, self.steps, self.done, self.begin = optimizers, steps, 0, time.perf_counter()
    self.file = (file or sys.stderr) if show else None
    self.bar = _bar(self.file) if self.file and self.file.isatty() else None
    self.task = self.bar.add_task("checking", total=steps, left="") if self.bar else None
    self.compiled: dict[str, float] = {}  # optimizer -> seconds to its first results
    self.working = (0, 0.0)  # steps after these, and their seconds
    self.doing = "checking"
    self.name, self.said, self.mark, self.since = "", False, self.begin, self.begin

  def __enter__(self) -> "Progress":
    if self.bar:
      self.bar.start()
    return self

  def __exit__(self, *error: Any) -> None:
    if self.bar:
      self.bar.stop()

  def say(self, text: str) -> None:
    """A line, with the time since the start."""
    seconds = int(time.perf_counter() - self.begin)
    line = f"[{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}] {text}"
    if self.bar:
      self.bar.console.print(line, highlight=False, markup=False)
    elif self.file:
      print(line, file=self.file, flush=True)

  def phase(self, index: int, name: str, what: str, runs: int, missing: int) -> None:
    """Optimizer `index` (from 0) starts some runs, of which all but `missing` are in the folder."""
    self.name, self.mark = name, time.perf_counter()
    self.since = self.mark
    new = missing and name not in self.compiled
    self.doing = f"{what} {name}, optimizer {index + 1} of {self.optimizers}"
    self._live(description=self.doing + ", compiling" * bool(new))
    found = f", {runs - missing} of them in the folder" if missing < runs else ""
    if not self.bar:
      place = f"{index + 1} of {self.optimizers}"
      self.say(f"{what} {name} ({place}): {counted(runs, 'run')}{found}{'; compiling' * bool(new)}")

  def end(self) -> None:
    """The runs of a phase are done."""
    if not self.bar and self.done:
      self.say(f"{self.name}: done after {duration(time.perf_counter() - self.mark)}{self.left('; ')}")

  def add(self, steps: int) -> None:
    """Some steps are done, over all runs. The first of an optimizer come after compilation."""
    now = time.perf_counter()
    self.done += steps
    if self.name not in self.compiled:
      self.compiled[self.name] = now - self.mark
      self.say(f"{self.name}: compiled, and the first {steps:,} steps done, after {duration(now - self.mark)}")
    else:
      self.working = self.working[0] + steps, self.working[1] + now - self.since
      if not self.said:
        self.said = True
        self.say(f"about {duration(self.remaining())} for the {self.steps - self.done:,} steps to come")
    self.since = now
    self._live(advance=steps, left=self.left(), description=self.doing)

  def more(self, steps: int) -> None:
    """More (or fewer) steps are to be done than was thought."""
    self.steps = max(0, self.steps + steps)
    self._live(total=self.steps)

  def remaining(self) -> float:
    """Seconds that the steps to come will take, and the compilation of optimizers to come."""
    steps, seconds = self.working
    to_compile = max(0, self.optimizers - len(self.compiled))
    each = sum(self.compiled.values()) / len(self.compiled) if self.compiled else 0.0
    return to_compile * each + (seconds / steps if steps else 0.0) * max(0, self.steps - self.done)

  def left(self, before: str = "") -> str:
    """What remains, in words after `before`; nothing as long as nobody knows."""
    known = self.working[0] and self.done < self.steps
    return f"{before}about {duration(self.remaining())} left" if known else ""

  def _live(self, **changes: Any) -> None:
    if self.bar:
      self.bar.update(self.task, **changes)


def duration(seconds: float) -> str:
  """Seconds in words: "8 seconds", "14 minutes", "2 hours 10 minutes"."""
  if seconds < 90:
    return counted(round(seconds), "second")
  minutes = round(seconds / 60)
  hours, rest = divmod(minutes, 60)
  return " ".join(counted(number, unit) for number, unit in ((hours, "hour"), (rest, "minute")) if number)


def counted(number: int, what: str) -> str:
  """As "1 run" or "3 runs"."""
  return f"{number:,} {what}{'s' if number != 1 else ''}"


def _bar(file: Any) -> Any:
  try:
    import rich.console
    import rich.progress as rich_progress
  except ImportError:
    return None
  return rich_progress.Progress(
    rich_progress.TextColumn("{task.description}"),
    rich_progress.BarColumn(),
    rich_progress.TaskProgressColumn(),
    rich_progress.TextColumn("{task.fields[left]}"),
    console=rich.console.Console(file=file),
  )
