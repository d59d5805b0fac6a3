"""The page that is served is the one whose source stands beside it."""

import hashlib
import re

from data_pipelines.engine.web import app

PAGE = app.STATIC.with_name("page")
SOURCES = (".js", ".css", ".html", ".json", ".txt")
# a name of XML, no address that anybody goes to
NAMESPACE = "http://www.w3.org/1999/xhtml"


def test_the_bundle_was_made_of_these_sources():
  """`npm ci && npm run build` in the page's folder writes the digests that are compared here."""
  lines = []
  for path in PAGE.rglob("*"):
    if path.suffix in SOURCES and "node_modules" not in path.parts:
      digest = hashlib.sha256(path.read_bytes()).hexdigest()
      lines.append(f"{digest}  {path.relative_to(PAGE).as_posix()}")
  written = (app.STATIC / "sources.sha256").read_text().splitlines()
  assert sorted(written) == sorted(lines)


def test_the_bundle_names_no_other_server():
  for path in app.STATIC.glob("*.js"):
    addresses = re.findall(r"https?://[\w./-]+", path.read_text())
    assert set(addresses) <= {NAMESPACE}, path.name
