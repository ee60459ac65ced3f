"""The built site in headless Chromium: no complaint, no broken picture, a search, nothing wider than a phone.

`OPTAX_EXT_SITE` names the folder of a site that is built already; without it the site is built here.
"""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest
from support import ROOT

pytestmark = pytest.mark.browser

PAGES = [
  "index",
  "getting_started",
  "which_optimizer",
  "comparing",
  "results",
  "reading_networks",
  "memory",
  "api/optimizers",
  "api/structure",
  "gallery/tutorials/fine_tune_nnx",
  "gallery/tutorials/compare",
  "gallery/examples/structure",
  "measurements/report",
]

# Not innerWidth: a phone zooms out until a page that is too wide fits.
FITS = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  folder = os.environ.get("OPTAX_EXT_SITE")
  if not folder:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", folder]
    subprocess.run(command, check=True)
  return pathlib.Path(folder)


@pytest.fixture(scope="module")
def address(site):
  from browser import serve

  with serve(site) as address:
    yield address


@pytest.fixture(scope="module", params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def driver(request):
  from browser import chromium

  with chromium(*request.param) as driver:
    yield driver


@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole_and_fits(driver, address, page):
  from browser import broken_pictures, complaints

  complaints(driver)  # of the page before
  driver.get(f"{address}/{page}.html")
  driver.execute_script("for (const image of document.images) image.loading = 'eager'")
  driver.set_script_timeout(30)
  driver.execute_async_script("Promise.allSettled([...document.images].map(i => i.decode())).then(arguments[0])")
  assert driver.find_element("css selector", "article h1").text
  assert not broken_pictures(driver)
  assert not complaints(driver)
  assert driver.execute_script(FITS), "wider than the screen"


def test_every_page_fits_a_phone(site, address):
  from browser import chromium

  pages = [path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts]
  too_wide = []
  with chromium(390, 844) as driver:
    for page in pages:
      driver.get(f"{address}/{page}")
      if not driver.execute_script(FITS):
        too_wide.append(page)
  assert not too_wide


@pytest.mark.parametrize(("words", "page"), [("cross_moment", "api/moments.html"), ("layer decay", "fine_tun")])
def test_search_finds(driver, address, words, page):
  from browser import complaints
  from selenium.webdriver.support.wait import WebDriverWait

  complaints(driver)
  driver.get(f"{address}/search.html?q={words.replace(' ', '+')}")
  shown = lambda driver: [a.get_attribute("href") for a in driver.find_elements("css selector", "#search-results a")]
  found = WebDriverWait(driver, 20).until(lambda driver: [link for link in shown(driver) if page in link])
  driver.get(found[0])
  opened = lambda driver: [main.text.lower() for main in driver.find_elements("css selector", "main")]
  assert words.split("_")[0] in WebDriverWait(driver, 20).until(opened)[0]
  assert not complaints(driver)


@pytest.mark.parametrize("tutorial", sorted((ROOT / "docs" / "tutorials").glob("*.py")), ids=lambda path: path.stem)
def test_a_tutorial_is_offered_as_a_notebook(site, tutorial):
  """Of the same code, which ran when the site was built."""
  (notebook,) = site.glob(f"_downloads/*/{tutorial.stem}.ipynb")
  cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
  code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
  script = ast.parse(tutorial.read_text(encoding="utf-8"))
  script.body.pop(0)  # the docstring, a cell of text
  assert ast.dump(ast.parse(code)) == ast.dump(script)
