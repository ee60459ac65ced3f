"""What the benchmarks write: Markdown files under benchmarks/results/speed, with date and versions."""

import datetime
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

import jax
import optax

import optax_ext

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "speed"


def heading(title: str, *facts: str) -> str:
  """A title, and below it by which command, when and with which versions the figures were made."""
  command = " ".join(["python benchmarks/speed/" + pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
  versions = [f"{m.__name__} {m.__version__}" for m in (jax, optax, optax_ext)] + [
    f"Python {platform.python_version()}"
  ]
  return f"# {title}\n\n{', '.join([f'`{command}`', str(datetime.date.today()), *versions, *facts])}."


def this_machine() -> str:
  """The processor, and how busy it is."""
  return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table; all columns but the first are aligned to the right."""
  lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, *sections: str, folder: pathlib.Path = RESULTS) -> pathlib.Path:
  """Prints the sections, and writes them to a file of the results."""
  text = "\n\n".join(sections) + "\n"
  print(text)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(text)
  return folder / name
