"""Commands as pages show them: found, put together, and their placeholders filled in."""

import ast
from collections.abc import Iterator
import dataclasses
import itertools
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))
# the commands, whose docstrings say how they are called
LAUNCH = [*sorted((ROOT / "launch").glob("*.py")), ROOT / "launch" / "cluster" / "command.py"]

# What words in capitals stand for. A word that is not here is a misprint, or belongs here.
PLACEHOLDERS = {
  "CONFIG": "configs/data/iso_3do.py",
  "FILE": "configs/pretrain_geometry.py",
  # data
  "MESH": "mesh.glb",
  "MESHES": "meshes",
  "SCENES": "scenes",
  "PHOTOS": "photos",
  "ANNOTATIONS": "annotations",
  "ITEMS": "items",
  "PAIRS": "pairs",
  "PAIRS_LATENTS": "pairs_latents",
  "TARS": "tars",
  "OUTPUT_DIR": "toolkit",
  "DATA": "data",
  "DIR": "folder",
  "DIR_LATENTS": "latents",
  "LATENTS": "latents",
  "ISO": "iso",
  "FO": "fo",
  "OSR": "osr",
  "OSA": "osa",
  "VIEWS": "views",
  "MITL": "mitl",
  "ART": "art",
  "ENGINE": "engine",
  "RECGEN": "recgen",
  "TRELLIS": "trellis",
  "REPLICA": "replica",
  # models
  "VAE": "vae",
  "RUN": "run",
  "RUNS": "runs",
  "GEOMETRY": "geometry",
  "RELEASE": "release",
  "PRETRAINED": "pretrained",
  "MIDTRAINED_FO": "midtrained_fo",
  "MIDTRAINED_OS": "midtrained_os",
  "FINETUNED": "finetuned",
  "ALIGNED": "aligned",
  "A": "one",
  "B": "another",
  "G": "geometry",
  "V": "vae",
  "CHECKPOINT": "run",
  "TEXTURE_RUN": "texture",
  "SLAT_VAE_RUN": "slat_vae",
  "MESH_RUN": "mesh_decoder",
  "QUICKSTART_WORKDIR": "quickstart_run",
  # photos and numbers
  "PHOTO": "photo.jpg",
  "MASK": "mask.png",
  "N": "3",
  "VALUE": "1",
  # results
  "OUT": "out",
  "ROOT": "root",
  "NAME": "name",
  "SCORES": "scores",
  "OURS": "ours",
  "THEIRS": "theirs",
  # of other machines
  "HOST": "host",
  "P": "project",
  "R": "region",
  "IMAGE_WITH_THIS_PACKAGE": "image",
  "LOOPBACK": "LOOPBACK",
}
# What stands where a page writes "...": needed, and not what the page is about.
LEFT_OUT = {
  "launch.build_data": {
    "--config": "configs/data/iso_3do.py",
    "--config.source": "meshes",
    "--config.out": "data",
  },
  "launch.pretrain": {"--config": "configs/pretrain_geometry.py", "--workdir": "run"},
  "launch.sample": {"--checkpoint": "run", "--image": "p.jpg", "--mask": "m.png", "--out": "o"},
}


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of a page. whole: it can be typed as it stands; else some of its flags are named."""

  page: str
  line: int
  text: str
  whole: bool

  @property
  def where(self) -> str:
    return f"{self.page}:{self.line}: {self.text}"


def commands(path: pathlib.Path) -> list[Command]:
  """Every command of a page, or of the docstring of a configuration or a command."""
  text = path.read_text()
  if path.suffix == ".py":
    # as it stands: a whole text that is indented would lose its indentation
    text = ast.get_docstring(ast.parse(text), clean=False) or ""
  page = path.relative_to(ROOT).as_posix()
  found = []
  for line, block in blocks(text):
    found.append(Command(page, line, block, whole=True))
  for line, code in spans(text):
    ours = re.match(r"(launch\.\w+|sam3d-\w+) .*--", code)
    # a program's name alone is no command
    name_alone = code.startswith("python -m launch.") and "--" not in code
    if ours:
      found.append(Command(page, line, code, whole=False))
    elif is_command(code) and not name_alone:
      found.append(Command(page, line, code, whole=True))
  return found


def blocks(text: str) -> Iterator[tuple[int, str]]:
  """(line, command) of fenced and of indented blocks, continued lines joined."""
  fence = None
  begun, line_of = "", 0
  for number, line in enumerate(text.splitlines(), start=1):
    if line.startswith("```"):
      fence = line[3:] if fence is None else None
      continue
    indented = fence is None and line.startswith("    ")
    shell = fence in ("", "bash")
    if not (indented or shell):
      continue

    # what ends with a backslash goes on
    if not begun:
      line_of = number
    begun = f"{begun} {line.strip()}".strip()
    if begun.endswith("\\"):
      begun = begun[:-1].rstrip()
      continue
    said, begun = begun, ""
    # A block for the shell holds nothing else; others also show output and layouts.
    only_commands = fence == "bash" and said and not said.startswith("#")
    if only_commands or is_command(said):
      yield line_of, said


def spans(text: str) -> Iterator[tuple[int, str]]:
  """(line, code) of what stands between backticks in the running text."""
  plain = []
  fenced = False
  for line in text.splitlines():
    fence = line.startswith("```")
    fenced = fenced != fence
    shown = fenced or fence or line.startswith("    ")
    plain.append("" if shown else line)
  joined = "\n".join(plain)
  for match in re.finditer(r"`([^`]+)`", joined):
    line = joined.count("\n", 0, match.start()) + 1
    yield line, " ".join(match[1].split())


def is_command(text: str) -> bool:
  """Whether a line is typed into a shell."""
  first, *rest = without_variables(text.split()) or [""]
  if re.fullmatch(r"(\S*/)?(python|pip)", first):
    return True
  return first in ("make", "tensorboard", "sbatch") and bool(rest)


def without_variables(words: list[str]) -> list[str]:
  """The words behind `NAME=value`."""
  is_variable = re.compile(r"[A-Z][A-Z0-9_]*=").match
  return list(itertools.dropwhile(is_variable, words))


def variants(text: str) -> list[list[str]]:
  """The words of a command, once for each choice that it leaves: `[--a | --b]` is two commands."""
  parts = re.split(r"\[(-[^\]]*)\]", text)
  choices = []
  for index, part in enumerate(parts):
    in_brackets = index % 2 == 1
    # "[--mask MASK ...]" may be given several times
    options = re.split(r"\s*\\?\|\s*", part.removesuffix(" ...")) if in_brackets else [part]
    choices.append(options)
  commands = []
  for chosen in itertools.product(*choices):
    words = shlex.split(" ".join(chosen), comments=True)
    commands.append(without_variables(words))
  return commands


def filled(words: list[str]) -> list[str]:
  """The words with their placeholders filled in. Raises KeyError for one that is not known."""
  return [re.sub(r"(?<![\w.])[A-Z][A-Z_]*(?![\w'=])", _meaning, word) for word in words]


def _meaning(match: re.Match) -> str:
  return PLACEHOLDERS[match[0]]


def completed(module: str, words: list[str]) -> list[str]:
  """A command with what its page left out as "..."."""
  if "..." not in words:
    return words
  given = {word.partition("=")[0] for word in words}
  whole = [word for word in words if word != "..."]
  for flag, value in LEFT_OUT[module].items():
    if flag not in given:
      whole.insert(0, f"{flag}={value}")
  return whole
