"""Every command in every page is one: its program, flags, configuration and overrides exist, and
what costs nothing is run as it is written.
"""

from collections.abc import Sequence
import contextlib
import importlib
import io
import pathlib
import re
import shlex
import tomllib

import pytest

from launch import engine, ladder, make_examples
from launch.console import cli
from tests.support import documented, documented_inputs
from tests.support.documented import ROOT, Command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# programs of others: not looked into
OTHERS = ("tensorboard", "sbatch", "kubectl", "ssh", "docker")
# packages that pages install beside ours
PACKAGES = ("tensorboard",)


def pages(paths: list[pathlib.Path]) -> list:
  return [pytest.param(path, id=path.name) for path in paths if documented.commands(path)]


@pytest.fixture
def parse_only(monkeypatch):
  """Commands parse their flags and load their configuration, and stop there."""
  whole = cli.run_command

  def parsed(run, **settings):
    return whole(lambda args: None, **settings)

  monkeypatch.setattr(cli, "run_command", parsed)


@pytest.mark.parametrize("page", pages(documented.PAGES + documented.CONFIGS + documented.LAUNCH))
def test_every_command_of_a_page_can_be_typed(page, parse_only):
  problems = []
  for command in documented.commands(page):
    check = problem_of if command.whole else problem_of_mention
    problem = check(command)
    if problem:
      problems.append(f"{command.where}\n  {problem}")
  assert not problems, "\n".join(problems)


def problem_of(command: Command) -> str:
  """What is wrong with a command, '' if nothing is."""
  for words in documented.variants(command.text):
    try:
      words = documented.filled(words)
    except KeyError as unknown:
      return f"what does {unknown} stand for? (tests/support/documented.py: PLACEHOLDERS)"
    problem = problem_of_words(words)
    if problem:
      return problem
  return ""


def problem_of_words(words: list[str]) -> str:
  program, *rest = words
  name = program.rpartition("/")[2]
  if name == "python":
    return problem_of_python(rest)
  if name == "pip":
    return problem_of_pip(rest)
  if name == "make":
    unknown = [word for word in rest if "=" not in word and word not in TARGETS]
    return f"make has no target {unknown}" if unknown else ""
  if name.startswith("sam3d-"):
    return problem_of_ours(PROJECT["scripts"][name].partition(":")[0], rest)
  if name in OTHERS or (ROOT / program).is_file():
    return ""
  return f"{name} is neither ours nor known (OTHERS in {__file__})"


def problem_of_python(words: list[str]) -> str:
  """Of `python -m MODULE ...`."""
  flag, module, *rest = words
  if flag != "-m":
    return "" if (ROOT / flag).is_file() else f"{flag} does not exist"
  if module == "venv":
    # what follows `&&` is a command of its own
    return problem_of_words(rest[rest.index("&&") + 1 :]) if "&&" in rest else ""
  if module == "pytest":
    return problem_of_paths(rest)
  if module.startswith("launch."):
    return problem_of_ours(module, rest)
  return problem_of_script(module, rest)


def problem_of_paths(words: list[str]) -> str:
  """Of the files that a command names."""
  missing = [word for word in words if "/" in word and not (ROOT / word).exists()]
  return f"{missing} do not exist" if missing else ""


def problem_of_script(module: str, words: list[str]) -> str:
  """Of a program without a parser that could be asked: its flags stand in its text."""
  file = ROOT / (module.replace(".", "/") + ".py")
  if not file.is_file():
    return f"there is no module {module}"
  source = file.read_text()
  flags = [word.partition("=")[0] for word in words if word.startswith("--")]
  unknown = [flag for flag in flags if f'"{flag}"' not in source]
  return f"{module} has no {unknown}" if unknown else ""


def problem_of_pip(words: list[str]) -> str:
  """Of `pip install ...`: the files and extras are there."""
  install, *what = words
  assert install == "install"
  for word in what:
    extras = re.fullmatch(r"\.\[(\w+)\]", word)
    if extras and extras[1] not in PROJECT["optional-dependencies"]:
      return f"there is no extra {extras[1]}"
    if word.endswith(".txt") and not (ROOT / word).is_file():
      return f"{word} does not exist"
    known = extras or word.endswith(".txt") or word in (".", "-r", "-c", *PACKAGES)
    if not known:
      return f"{word} is neither a file nor an extra"
  return ""


def problem_of_ours(module: str, words: list[str]) -> str:
  """Of one of our commands, parsed by itself."""
  try:
    main = main_of(module)
  except ImportError as error:
    return str(error)
  said = io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
    try:
      code = main(documented.completed(module, words))
    except SystemExit as ended:
      code = ended.code
  return said.getvalue().strip() if code else ""


def main_of(module: str):
  """The `main` of a command, which may be a package."""
  with contextlib.suppress(ImportError):
    return importlib.import_module(f"{module}.command").main
  return importlib.import_module(module).main


def problem_of_mention(command: Command) -> str:
  """Of a command that is only named with some flags: it exists, and has them."""
  name, *words = shlex.split(command.text.replace("\\|", "|"))
  module = name
  if name.startswith("sam3d-"):
    module = PROJECT["scripts"][name].partition(":")[0]
  try:
    known = flags_of(module)
  except (ImportError, KeyError):
    return f"there is no {name}"
  flags = [re.match(r"\[?(--\w+)", word) for word in words]
  given = {flag[1] for flag in flags if flag and not flag[1].startswith("--config")}
  missing = given - known
  return f"{name} has no {sorted(missing)}" if missing else ""


def flags_of(module: str, kind: str = "") -> set[str]:
  """Every flag that a command's help names. kind: its first word, for one that has several."""
  argv = [kind, "--help"] if kind else ["--help"]
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    main_of(module)(argv)
  return set(re.findall(r"--\w+", said.getvalue()))


def test_a_wrong_command_is_found(parse_only, tmp_path, monkeypatch):
  monkeypatch.setattr(documented, "ROOT", tmp_path)
  page = tmp_path / "page.md"
  page.write_text(
    "```bash\n"
    "python -m launch.sample --out OUT --no_such_flag\n"
    "python -m launch.pretrain --config configs/pretrain_geometry.py --workdir RUN \\\n"
    "    --config.optim.lrr=1    # misspelt\n"
    "python -m launch.inspect --data WHAT\n"
    "frobnicate\n"
    "```\n"
    "Or `launch.sample --no_such_flag`, and `make nothing`.\n"
    "\n"
    "    pip install -r requirements-nothing.txt\n"
    "    python -m launch.nothing\n"
    "    this is no command\n"
  )
  problems = {}
  for command in documented.commands(page):
    check = problem_of if command.whole else problem_of_mention
    problems[command.line] = check(command)
  assert set(problems) == {2, 3, 5, 6, 8, 10, 11}
  assert all(problems.values()), problems
  assert "the nearest key is 'optim.lr'" in problems[3]
  assert "stand for" in problems[5]


def test_choices_in_brackets_are_commands_of_their_own():
  text = "OMP_NUM_THREADS=1 python -m x [--a DIR \\| --b] --c  # why [not]"
  assert documented.variants(text) == [
    ["python", "-m", "x", "--a", "DIR", "--c"],
    ["python", "-m", "x", "--b", "--c"],
  ]


# -- run as they are written ---------------------------------------------------------------------


def run(module: str, words: list[str]) -> None:
  code = main_of(module)(words)
  assert code == 0, shlex.join(["python", "-m", module, *words])


def code_of(page: str, language: str) -> list[str]:
  """The blocks of a page in a language."""
  text = (ROOT / "docs" / page).read_text()
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def ours(module: str, pages: Sequence[pathlib.Path] = ()) -> list[list[str]]:
  """The flags of every whole command of a module, in all pages and configurations or in some."""
  found = []
  for page in pages or documented.PAGES + documented.CONFIGS:
    for command in documented.commands(page):
      if not command.whole:
        continue
      for words in documented.variants(command.text):
        if words[1:3] == ["-m", module]:
          whole = documented.completed(module, words[3:])
          found.append(documented.filled(whole))
  return found


TRAINING = ("launch.pretrain", "launch.sft", "launch.dpo", "launch.distill", "launch.train_vae")
# Weights of full size, which nobody has here; a dry run would look for them.
NOT_AT_HAND = ("--config.init_from", "--config.eval.decoder")


@pytest.mark.parametrize("module", TRAINING)
def test_the_training_commands_of_the_pages_print_a_plan(module, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  plans = {}
  for words in ours(module):
    words = [word for word in words if word.partition("=")[0] not in NOT_AT_HAND]
    if "--devices" not in words:
      # what is small is meant for one
      small = any(word.endswith((":tiny", ":fake")) for word in words)
      words += ["--devices", "1" if small else "8"]
    if "--dry_run" not in words:
      words.append("--dry_run")
    plans.setdefault(shlex.join(words), words)
  assert plans
  for words in plans.values():
    run(module, words)
    assert "parameters" in capsys.readouterr().out
  assert list(tmp_path.iterdir()) == []


# What cannot be run dry here, and why.
ELSEWHERE = {
  r"configs/data/(recgen|trellis).py": "data that others have rendered",
  r"--executor beam": "an environment of its own",
  r"--viewer": "a package that tests do not need",
  r"--bop ": "a data set of others",
  r"--lpips ": "weights of others",
  r"--samples ": "samples of a whole split",
  r"--merge_lora ": "a run with adapters, which tests of the export have",
  r"--votes ": "test_the_votes_of_the_page_are_votes",
  r"--from \S+\.(ckpt|pth)": "weights of full size",
  r"--torch": "PyTorch, which not every environment has",
}
READING = (
  "launch.build_data",
  "launch.validate_data",
  "launch.encode_latents",
  "launch.sample",
  "launch.render",
  "launch.evaluate",
  "launch.import_torch",
  "launch.export_torch",
  "launch.inspect",
  "launch.make_examples",
  "launch.benchmark",
  "launch.aot",
  "launch.plan",
  "launch.engine",
  "launch.annotate",
)
CHAINS = ("launch.quickstart", "launch.ladder", "launch.sweep")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> pathlib.Path:
  """What the commands read."""
  folder = tmp_path_factory.mktemp("inputs")
  documented_inputs.write(folder)
  return folder


@pytest.mark.parametrize("module", READING)
def test_what_the_pages_do_with_data_and_weights_is_done_dry(
  module, inputs, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  if module == "launch.export_torch":
    pytest.importorskip("torch")
  done = 0
  for words in ours(module):
    text = shlex.join(words) + " "
    if any(re.search(pattern, text) for pattern in ELSEWHERE):
      continue
    words = documented_inputs.given(module, words, inputs, tmp_path)
    run(module, [*words, "--dry_run"])
    done += 1
  assert done
  assert list(tmp_path.iterdir()) == []


def test_what_is_not_run_here_is_still_in_the_pages():
  texts = [shlex.join(words) + " " for module in READING for words in ours(module)]
  for pattern in ELSEWHERE:
    assert any(re.search(pattern, text) for text in texts), pattern


@pytest.mark.parametrize("module", CHAINS)
def test_chains_and_sweeps_of_the_pages_print_their_commands(module, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  # what the quickstart leaves
  for model in ("vae", "geometry"):
    (tmp_path / "quickstart_run" / model / "checkpoints" / "1").mkdir(parents=True)
  # what a page has its reader write
  (sweep,) = code_of("tutorial_sweep.md", "python")
  (tmp_path / "my_sweep.py").write_text(sweep)
  commands = ours(module)
  assert commands
  for words in commands:
    once = [word for word in words if word != "--dry_run"]
    run(module, [*once, "--dry_run"])
    # they are commands too
    printed = re.findall(r"python -m (launch\.\w+) ", capsys.readouterr().out)
    assert printed


@pytest.mark.parametrize("page", ["operations.md", "tutorial_pods.md"])
def test_the_job_file_of_a_page_is_rendered_by_its_command(page, tmp_path, monkeypatch):
  (job,) = code_of(page, "yaml")
  (tmp_path / "job.yaml").write_text(job)
  monkeypatch.chdir(tmp_path)
  for words in ours("launch.cluster", [ROOT / "docs" / page]):
    run("launch.cluster", words)
  written = {path.name for path in (tmp_path / "job").iterdir()}
  assert {"slurm.sh", "jobset.yaml"} <= written


def test_the_votes_of_the_page_are_votes(tmp_path, monkeypatch):
  text = (ROOT / "docs" / "evaluation.md").read_text()
  rows = re.findall(r"^    (\w+,\w+,\w+)$", text, re.MULTILINE)
  file = tmp_path / f"{documented.PLACEHOLDERS['FILE']}.csv"
  file.parent.mkdir(parents=True)
  file.write_text("\n".join(rows) + "\n")
  monkeypatch.chdir(tmp_path)
  asked = [words for words in ours("launch.evaluate") if "--votes" in words]
  (words,) = [words for words in asked if str(file.relative_to(tmp_path)) in words]
  run("launch.evaluate", words)
  assert (tmp_path / documented.PLACEHOLDERS["DIR"] / "votes.json").is_file()


def test_every_command_that_a_page_shows_is_run_by_one_of_these_tests():
  shown = set()
  for page in documented.PAGES + documented.CONFIGS:
    for command in documented.commands(page):
      shown |= set(re.findall(r"python -m (launch\.\w+)", command.text))
  assert shown == {*TRAINING, *READING, *CHAINS, "launch.cluster"}


def test_every_command_takes_dry_run_as_the_pages_say():
  # a command of several kinds has flags for each
  kinds = {
    "launch.make_examples": [*make_examples.KINDS, "benchmark"],
    "launch.ladder": ["", *ladder.OWN_STEPS],
    "launch.engine": [*engine.ACTIONS],
  }
  without = []
  for entry in PROJECT["scripts"].values():
    module = entry.partition(":")[0].removesuffix(".command")
    for kind in kinds.get(module, [""]):
      if "--dry_run" not in flags_of(module, kind):
        without.append(f"{module} {kind}")
  assert without == []
