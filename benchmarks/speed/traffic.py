"""What a compiled program does, read from its text: bytes moved to and from device memory, collectives, donation.

A scheduled instruction (a fusion, most often) reads its operands from device memory and writes its results there; what
happens inside stays on chip. So its traffic is the size of both, each counted once; of an operand that is only cut, the
size of the cuts. XLA itself gives that figure for TPUs, `cost_analysis()["bytes accessed"]`, and none for GPUs; the
tests hold the two together where both exist.
"""

import collections
import math
import re

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16} | {
  f"{kind}{bits}": bits for kind in "sufc" for bits in (8, 16, 32, 64)
}
NO_TRAFFIC = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")


def bytes_moved(text: str) -> int:
  """Bytes that one run of a compiled program reads from and writes to device memory.

  Args:
    text: `compiled.as_text()`.

  Raises:
    NotImplementedError: the program has a loop, a branch or an asynchronous operation, which would need more than this.
  """
  programs, entry = _parse(text)

  def moved(name: str) -> int:
    sizes: dict[str, int] = {}
    total = 0
    for result, shape, operation, rest in programs[name]:
      sizes[result] = _size(shape)
      if operation in NO_TRAFFIC:
        continue
      if operation == "call":
        total += moved(_called(rest))
      elif operation in ("while", "conditional") or operation.endswith(("-start", "-done", "-update")):
        raise NotImplementedError(f"The traffic of {operation!r} cannot be read off a program: %{result} = {shape}.")
      else:
        cuts = _cuts(programs[_called(rest)]) if operation == "fusion" else {}
        total += sizes[result]
        total += sum(min(sizes[name], cuts.get(i, sizes[name])) for i, name in enumerate(_operands(rest)))
    return total

  return moved(entry)


def collectives(text: str) -> dict[str, int]:
  """How many collective operations of each kind a compiled program has, asynchronous ones included.

  One that XLA spreads over several fusions stands in each of them, with the same channel.
  """
  found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\((?:.*?channel_id=(\d+))?", text)
  distinct = [kind for i, (kind, channel) in enumerate(found) if not channel or (kind, channel) not in found[:i]]
  return dict(sorted(collections.Counter(distinct).items()))


def reused_bytes(text: str) -> int:
  """Bytes of those arguments of a compiled program that lend their memory to a result, as donated ones should."""
  head = text.split("\n", 1)[0]
  layout = re.search(r"entry_computation_layout=\{\((.*?)\)->", head)
  sizes = [_bytes(*array) for array in _ARRAY.findall(layout[1] if layout else "")]
  return sum(sizes[int(i)] for i in re.findall(r"\((\d+), \{[\d, ]*\}, m(?:ay|ust)-alias\)", head))


def _parse(text: str) -> tuple[dict[str, list[tuple[str, str, str, str]]], str]:
  """The computations of a program, by name, each a list of (result, shape, operation, the rest); the entry's name."""
  programs: dict[str, list[tuple[str, str, str, str]]] = {}
  entry = current = ""
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = head[2]
      programs[current] = []
      entry = current if head[1] else entry
    elif programs and (instruction := _INSTRUCTION.match(line)):
      programs[current].append((instruction[1], instruction[2], instruction[3], instruction[4]))
  return programs, entry


def _operands(rest: str) -> list[str]:
  return re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])


def _called(rest: str) -> str:
  return re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", rest)[0]


def _cuts(fused: list[tuple[str, str, str, str]]) -> dict[int, int]:
  """Bytes of all cuts of those parameters of a fused computation that are used for nothing else, by number."""
  number, cut, whole = {}, collections.Counter(), set()
  for result, shape, operation, rest in fused:
    if operation == "parameter":
      number[result] = int(rest.split(")")[0])
      continue
    used = [number[operand] for operand in _operands(rest) if operand in number]
    if operation == "bitcast" and used:
      number[result] = used[0]
    elif operation in ("slice", "dynamic-slice") and used:
      cut[used[0]] += _size(shape)
      whole |= set(used[1:])
    else:
      whole |= set(used)
  return {i: size for i, size in cut.items() if i not in whole}


def _size(shape: str) -> int:
  """Bytes of an array, or of all in a tuple."""
  return sum(_bytes(*array) for array in _ARRAY.findall(shape))


def _bytes(dtype: str, dims: str, layout: str) -> int:
  """Bytes of an array in device memory: memory space 0, which no layout mentions."""
  return 0 if "S(" in layout else BITS[dtype] * math.prod(int(dim) for dim in dims.split(",") if dim) // 8
