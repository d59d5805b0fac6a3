"""The documents name files, commands, tests and flags that exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
FOLDERS = "sam3d_jax|data_pipelines|launch|configs|tests|docs"


def names(pages: list[pathlib.Path]) -> list:
  return [pytest.param(page, id=page.name) for page in pages]


@pytest.mark.parametrize("page", names(PAGES))
def test_every_file_and_module_that_a_page_names_exists(page):
  text = page.read_text()
  files = set(re.findall(rf"\b(?:{FOLDERS})/[\w/]+\.(?:py|md|json|png)\b", text))
  missing = [name for name in files if not (ROOT / name).is_file()]

  # a module is a file, or a package that can be run
  modules = set(re.findall(rf"python -m ((?:{FOLDERS})(?:\.\w+)+)", text))
  for module in modules:
    path = ROOT / module.replace(".", "/")
    if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
      missing.append(module)
  assert missing == []


@pytest.mark.parametrize("page", names(PAGES))
def test_every_link_of_a_page_leads_somewhere(page):
  broken = []
  for target, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text()):
    file = page.parent / target if target else page
    if not file.exists():
      broken.append(target)
    elif anchor and anchor not in anchors(file):
      broken.append(target + anchor)
  assert broken == []


def anchors(page: pathlib.Path) -> set[str]:
  """The anchors of a page's headings, as GitHub makes them."""
  found = set()
  for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
    words = re.sub(r"[^\w\- ]", "", heading).strip().lower()
    found.add("#" + words.replace(" ", "-"))
  return found


def test_every_test_that_a_page_names_exists():
  defined = set()
  for path in (ROOT / "tests").rglob("*_test.py"):
    for name in re.findall(r"def (test_\w+)", path.read_text()):
      defined.add((path.stem, name))
  everywhere = {name for _, name in defined}

  # pages name them with their file or without
  missing = []
  for page in PAGES:
    text = page.read_text()
    for file, name in re.findall(r"`(?:[\w/]*/)?(\w+_test)(?:\.py)?::(test_\w+)`", text):
      if (file, name) not in defined:
        missing.append(f"{file}::{name}")
    for name in re.findall(r"`(test_\w+)`", text):
      if name not in everywhere:
        missing.append(name)
  assert missing == []


def test_every_page_is_in_the_index():
  index = (ROOT / "docs" / "index.md").read_text()
  names = {page.name for page in (ROOT / "docs").glob("*.md")}
  pages = names - {"index.md"}
  assert {page for page in pages if f"({page})" not in index} == set()


def test_the_architecture_names_every_room():
  page = (ROOT / "docs" / "architecture.md").read_text()
  rooms = set()
  for package in ("sam3d_jax", "data_pipelines", "launch"):
    for marker in (ROOT / package).rglob("__init__.py"):
      rooms.add(marker.parent.relative_to(ROOT).as_posix())
  assert {room for room in rooms if f"`{room}`" not in page} == set()
  named = set(re.findall(r"`((?:sam3d_jax|data_pipelines|launch)/[\w/]+)`", page))
  assert {room for room in named if not (ROOT / room).is_dir()} == set()
