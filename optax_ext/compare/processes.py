"""A comparison split over processes: each does all runs of its share of the optimizers, in a folder of its own.

They need not know of each other, and may run on different machines. A call without a share gathers the folders and does
what is left: where one grid was extended, all others try as many rates. Then it reports.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def check_process(process: Any, out: Any) -> None:
  """Raises `ValueError` unless it is (k, n), with whole numbers and 1 ≤ k ≤ n, and there is a folder for its runs."""
  whole = isinstance(process, tuple) and len(process) == 2 and all(type(number) is int for number in process)
  if not whole or not 1 <= process[0] <= process[1]:
    raise ValueError(f"process must be (k, n), the k-th of n from 1 on, as (1, 2), but was {process!r}.")
  if out is None:
    raise ValueError("process needs out, the folder that the processes have in common.")


def share(process: tuple[int, int], optimizers: Mapping[str, T]) -> dict[str, T]:
  """Every n-th optimizer, from number k on, for the process (k, n); those of all processes are all optimizers.

  Raises:
    ValueError: nothing is left for it.
  """
  number, processes = process
  names = list(optimizers)[number - 1 :: processes]
  if not names:
    raise ValueError(
      f"process {number} of {processes} has nothing to do: optimizers are shared, and there are {len(optimizers)}."
    )
  return {name: optimizers[name] for name in names}


def part(folder: pathlib.Path, process: tuple[int, int]) -> pathlib.Path:
  """The folder of a process in that of the comparison."""
  number, processes = process
  return folder / f"process-{number}-of-{processes}"


def absent(found: Sequence[pathlib.Path]) -> list[str]:
  """The names of folders that are missing beside those found."""
  counts = sorted({int(path.name.rsplit("-", 1)[1]) for path in found})
  wanted = [part(pathlib.Path(), (number + 1, count)).name for count in counts for number in range(count)]
  return [name for name in wanted if name not in {path.name for path in found}]


def parts(folder: pathlib.Path) -> list[pathlib.Path]:
  """The folders of all processes, there or copied there, whatever their number."""
  return sorted(path for path in folder.glob("process-[0-9]*-of-[0-9]*") if path.is_dir())
