"""Tables in plain text."""

from collections.abc import Callable, Sequence


def aligned(rows: Sequence[Sequence[str]], others: Callable[[str, int], str] = str.ljust) -> list[str]:
  """One line a row, in columns of equal width: the first to the left, the others as `others` says (`str.rjust`)."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  justified = lambda row: [others(cell, width) for cell, width in zip(row[1:], widths[1:], strict=True)]
  return ["  ".join([row[0].ljust(widths[0]), *justified(row)]).rstrip() for row in rows]
