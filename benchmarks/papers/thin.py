"""Thins the raw results to what the report reads.

    python benchmarks/papers/thin.py [--results FOLDER]

Of each finished comparison the reporting runs stay, at their first, best and last evaluation, with the training loss
and the metric that decides; `runs.csv` has a row for every tuning run, too. The test at equal training loss needs every
evaluation of its runs. The pictures that no page shows go. A thinned folder still makes the same report, and no
comparison can go on in it: tuning would begin anew.
"""

import argparse
import dataclasses
import json
import pathlib

from laboratory import RESULTS
from pages import Pages

from optax_ext.compare.run import Result

WHOLE = "nd_adam/plain"  # read at equal training loss
UNSHOWN = ("curves.png", "intervals.png")


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
  folder = parser.parse_args(arguments).results
  pages = Pages(folder, folder)
  for path in sorted(folder.glob("*/*/finished.jsonl")):
    name = path.parent.relative_to(folder).as_posix()
    if not (pages.complete(name) or pages.published(name)):
      print(f"{name} has not run to its end: left as it is")
      continue
    before, experiment = path.stat().st_size, path.read_text("utf-8").partition("\n")[0]
    lines = [line for line in pages.lines(name) if line["key"].endswith("|report")]
    for line in lines:
      line["result"] = dataclasses.asdict(thinned(Result(**line["result"]), 2 if name != WHOLE else None))
    path.write_text("\n".join([experiment, *(json.dumps(line, separators=(",", ":")) for line in lines), ""]), "utf-8")
    print(f"{name}: {before:,} bytes, now {path.stat().st_size:,}")
    for picture in UNSHOWN:
      (path.parent / picture).unlink(missing_ok=True)


def thinned(result: Result, points: int | None) -> Result:
  """A run at some of its evaluations, without the curves that the report does not read."""
  decides = [name for name in result.curves if name != "scale" and not name.endswith("/loss")]
  unread = {"scale", "test/loss", "validation/loss"} if decides else {"scale"}
  curves = {name: values for name, values in result.curves.items() if name not in unread}
  result = dataclasses.replace(result, curves=curves)
  return result.thinned(points) if points else result


if __name__ == "__main__":
  main()
