"""README and the pages of docs/: every public name has an entry in the API, code runs, links lead somewhere."""

import importlib
import re

import pytest
from support import ROOT, blocks, links

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [page for page in PAGES if page.relative_to(DOCS).parts[0] not in ("gallery", "measurements")]
WRITTEN = [ROOT / "README.md", *PAGES]
MODULES = ["optax_ext", "optax_ext.compare", "optax_ext.linen", "optax_ext.nnx"]
ENTRY = re.compile(r"^\.\. (?:(currentmodule)|auto(?:class|data|function)):: (\S+)$", re.MULTILINE)


def documented():
  """The names that have an entry on a page of docs/api, in full."""
  for page in (DOCS / "api").glob("*.md"):
    module = None
    for is_module, name in ENTRY.findall(page.read_text(encoding="utf-8")):
      if is_module:
        module = name
      else:
        yield f"{module}.{name}"


def public(name):
  """The public names of a module, in full: those of `__all__`, else the classes that are defined in the module."""
  module = importlib.import_module(name)
  listed = getattr(module, "__all__", None)
  own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
  return {f"{name}.{key}" for key in (own if listed is None else listed) if not key.startswith("_")}


def test_every_public_name_has_one_entry_in_the_api():
  entries = list(documented())
  assert sorted(entries) == sorted(set().union(*map(public, MODULES)))


def of_page(page):
  return page.relative_to(ROOT).as_posix()


CODE = [page for page in WRITTEN if blocks(page, "python")]


@pytest.mark.pages
@pytest.mark.parametrize("page", CODE, ids=of_page)
def test_python_blocks_run(page, capsys, monkeypatch, tmp_path):
  """In one namespace a page, in a folder where a block may write; what stands in text blocks is printed."""
  monkeypatch.chdir(tmp_path)
  names = {"__name__": "page"}
  for block in blocks(page, "python"):
    exec(block, names)
  printed = re.sub(" +$", "", capsys.readouterr().out, flags=re.MULTILINE)
  for text in blocks(page, "text"):
    assert text in printed


@pytest.mark.parametrize("page", WRITTEN, ids=of_page)
def test_links_lead_to_files_and_headings(page):
  for target, heading in links(page):
    assert target.exists(), target
    if heading:
      assert heading in headings(target), f"{target} has no heading #{heading}"


def headings(page):
  """Anchors of a page's headings, as GitHub and MyST make them."""
  found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
