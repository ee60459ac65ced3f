"""Reads from a parameter's name whether it is a weight, a bias, a norm's scale or an embedding."""

import re
from typing import NamedTuple

WORDS = {
  "norm": r"scale|gamma|beta|offset|weight_g",  # weight_g: the lengths of torch's weight normalisation
  "weight": r"weights?|kernels?",
  "bias": r"bias|biases",
  "average": r"mean|var|variance|average",
  "embedding": r"embed|emb|embeddings?|encodings?|wte|wpe",
  "token": r"tokens?",
}
LETTERS = {"w": "weight", "b": "bias"}
WRAPPERS = {"value", "array", "data_array", "args", "raw_value"}

_WORD = re.compile("|".join(f"(?P<{kind}>(?<![^_])(?:{words})(?=[_0-9]|$))" for kind, words in WORDS.items()))
_LETTER = re.compile(r"[wb](?=[_0-9]|$)")
_EMBEDDING = re.compile(rf"(.*_)?({WORDS['embedding']})(_tokens)?(_?[0-9]+)?")
_AVERAGES = re.compile(r"(.*_)?ema")


class Name(NamedTuple):
  """A leaf's name, read.

  Attributes:
    module: The path of what the leaf stands in.
    kind: One of `WORDS`, or `None` where the name says nothing.
    word: The word that says so, in lower case; the whole name if none does.
    marks: What stands before and after the word: `("in_proj_", "")` of `in_proj_weight`, `("", "1")` of `b1`.
    wrapped: The wrappers below the name, `"args/1"` of `weight/args/1`.
  """

  module: str
  kind: str | None
  word: str
  marks: tuple[str, str]
  wrapped: str


def read_name(path: str) -> Name:
  """Reads the last meaningful name of a path. A dot separates as a slash does: `0.weight` of torch.

  >>> read_name("encoder/in_proj_weight")
  Name(module='encoder', kind='weight', word='weight', marks=('in_proj_', ''), wrapped='')
  >>> read_name("0.weight/args/1")[:3], read_name("layers/0")[:3]
  (('0', 'weight', 'weight'), ('layers', None, '0'))
  """
  parts = re.split(r"[/.]", path)
  end = len(parts)
  while end > 1 and (parts[end - 1].isdecimal() or parts[end - 1] in WRAPPERS):
    end -= 1
  kind, word, marks = _read(parts[end - 1])
  if end < len(parts) and (kind not in ("weight", "bias", "embedding") or len(word) == 1):
    end = len(parts)  # a list or a module of any name, not a wrapped parameter
    kind, word, marks = _read(parts[-1])
  parent = parts[end - 2].lower() if end > 1 else ""
  if word == "weight" and _EMBEDDING.fullmatch(parent):
    kind = "embedding"
  if _AVERAGES.fullmatch(parent):
    kind = "average"
  return Name("/".join(parts[: end - 1]), kind, word, marks, "/".join(parts[end:]))


def _read(name: str) -> tuple[str | None, str, tuple[str, str]]:
  """Kind, word and marks of one name. Its last word decides: `kernel_scale` is a scale."""
  name = name.lower()
  found = [*_WORD.finditer(name)][-1:] or [match for match in [_LETTER.match(name)] if match]
  if not found:
    return None, name, (name, "")
  word = found[0].group()
  return found[0].lastgroup or LETTERS[word], word, (name[: found[0].start()], name[found[0].end() :])
