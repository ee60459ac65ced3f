"""A folder served on localhost, looked at in headless Chromium (Debian's packages `chromium` and `chromium-driver`)."""

import contextlib
import functools
import http.server
import shutil
import tempfile
import threading

from selenium import webdriver

QUIET = (  # no call to a host but localhost
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-quic",
  "--disable-sync",
  "--no-first-run",
)


class Handler(http.server.SimpleHTTPRequestHandler):
  def log_message(self, format, *args):
    """Say nothing for each file."""


@contextlib.contextmanager
def serve(folder):
  """The address at which the folder's files can be read."""
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}"
  finally:
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def chromium(width=1280, height=900):
  """A driver of a fresh Chromium without a window, which keeps its console's messages; below 500 a phone's."""
  profile = tempfile.mkdtemp()
  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which("chromium") or "chromium"
  flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *QUIET)
  for flag in (*flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver"))
  try:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    yield driver
  finally:
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def complaints(driver):
  """What the console has said since the last call, errors and warnings."""
  return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def broken_pictures(driver):
  """The addresses of the pictures that did not load."""
  script = "return [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"
  return driver.execute_script(script)
