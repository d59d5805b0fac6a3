"""Runs a dataset build: a list of shard jobs, each a pure function of its specification.

A job writes one shard and nothing else, so any executor gives the same bytes: local processes
(here) or Apache Beam (beam_executor.py). The folder of a build holds, beside its shards:

    build.json        the configuration and its digest, lineage, counts;
                      written before the first shard
    reports/*.json    one a shard: records, refused inputs, rejected draws;
                      on disk before its shard, so a shard that exists is finished
    quarantine.jsonl  every refused input: path, reason, detail
    parts/            of shards that are not finished: the inputs dealt with so far (unfinished.py)

A build that was killed continues when it is started again, within a shard too; finished shards are
never touched.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import os
import pathlib
import sys
from typing import Any

from data_pipelines.build import limited, processes, unfinished
from data_pipelines.format import records, schema
from sam3d_jax.errors import InputError, JobFailed, Preempted, Refused
from sam3d_jax.files import atomic, blame, locks, texts

REPORTS = "reports"
DIFFERENCES_SHOWN = 4  # of the configurations of two builds
LOOK_SECONDS = 0.5  # between looks at how far the worker processes are

Report = dict[str, Any]  # of a shard, as JSON


@dataclasses.dataclass(frozen=True)
class Quarantined:
  """An input that became no example."""

  path: str
  reason: str  # machine-readable, counted
  detail: str
  # whether it counts towards the budget; False: in order, but not what the recipe wants
  fault: bool = True


@contextlib.contextmanager
def contained(reason: str = "unreadable") -> Iterator[None]:
  """One bad input ends no build: whatever reading it raises becomes a Refused with this reason.

  Memory that is not there, and what nests too deeply, are refusals too. Refused and what a command
  ends with (InputError, JobFailed, Preempted) stay what they are, and so do a failing disk and a
  lack of permission: the input is not to blame.
  """
  try:
    yield
  except (Refused, InputError, JobFailed, Preempted):
    raise
  except MemoryError as error:
    raise Refused(limited.TOO_LARGE, f"there is not enough memory for it ({error})") from error
  except Exception as error:
    if not blame.is_of_the_file(error):
      raise
    raise Refused(reason, blame.said(error)) from error


class Refusals:
  """What a shard turned down. Called with a Quarantined it notes a bad input.

  notes: whatever else a builder wants in the shard's report. before: inputs that an earlier run
  dealt with. through: called after each input with how many are dealt with. by_input: whether the
  builder goes through its inputs with `each`. limits: of what `read` reads.
  """

  def __init__(
    self,
    through: Callable[[int], None] = lambda inputs: None,
    limits: limited.Limits = limited.NONE,
  ):
    self.inputs: list[Quarantined] = []
    self.draws: Counter[str] = Counter()
    self.notes: dict[str, Any] = {}
    self.before = 0
    self.by_input = False
    self.through = through
    self.limits = limits

  def read(self, function: Callable, *args: Any, foreign: bool = True, what: str = "unreadable"):
    """What `function(*args)` makes of an input, in a worker with limits of memory and time.

    Args:
      function: of a module, found there by its name; what it takes and returns is pickled.
      args: of the function.
      foreign: False: what was made here, such as procedural objects, is read in this process.
      what: the reason of the refusal if the function raises anything else than one.

    Raises:
      Refused: whatever goes wrong, see `contained`.
    """
    limits = self.limits if foreign else limited.NONE
    with contained(what):
      return limited.call(limits, function, *args)

  def absorb(self, report: Report) -> None:
    """Adds what another one has noted, which reports it as JSON."""
    for bad in report["refused"]:
      self(Quarantined(**bad))
    self.draws.update(report["draws"])

  def __call__(self, bad: Quarantined) -> None:
    # one that is met again after a kill is not listed twice
    if bad not in self.inputs:
      self.inputs.append(bad)

  def each(self, inputs: Iterable[Any]) -> Iterator[Any]:
    """The inputs of a shard, one after the other, but those that an earlier run dealt with.

    A builder that goes through its inputs with this is seen to make progress, and goes on within a
    shard. What it makes of an input may depend on that input and the shard's specification only.
    """
    self.by_input = True
    for number, item in enumerate(inputs):
      if number < self.before:
        continue
      yield item
      self.through(number + 1)

  def report(self) -> Report:
    """All of it as JSON."""
    refused = [dataclasses.asdict(bad) for bad in self.inputs]
    draws = dict(sorted(self.draws.items()))
    return {"refused": refused, "draws": draws, **self.notes}

  def resume(self, before: int, report: Report) -> None:
    """Goes on behind so many inputs, of which an earlier run gave this report."""
    notes = dict(report)
    self.inputs = [Quarantined(**bad) for bad in notes.pop("refused")]
    self.draws = Counter(notes.pop("draws"))
    self.notes = notes
    self.before = before

  def draw(self, reason: str) -> None:
    """Counts a random draw that broke a threshold of the builder; the input itself is sound."""
    self.draws[reason] += 1


@dataclasses.dataclass(frozen=True)
class ShardJob:
  """One shard: its place in the dataset and what it is made of (`spec` must pickle)."""

  split: str
  index: int
  count: int  # shards of the split
  inputs: int  # how many inputs the shard consumes, for progress and budget
  spec: Any = dataclasses.field(compare=False)  # a job is known by its place

  @property
  def place(self) -> str:
    """As files are named after it."""
    return f"{self.split}-{self.index:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True)
class Plan:
  """A dataset to build. `make(spec, refuse)` yields the examples of a shard, calls
  `refuse(Quarantined)` for bad inputs and `refuse.draw(reason)` for random draws that break a
  threshold.

  `identity` is everything that the bytes of the shards depend on, as JSON: configuration, inputs.
  `lineage` is what made them: versions of our code and of packages.
  """

  name: str
  jobs: tuple[ShardJob, ...]
  make: Callable[[Any, Refusals], Iterator[schema.Example]]
  identity: dict[str, Any]
  lineage: dict[str, Any]
  kind: str = "example"
  description: str = ""
  # inputs that no job owns and every one may draw from, such as photos; they can be refused too
  drawn_from: int = 0
  # what whoever starts the build should know before anything is written
  warnings: tuple[str, ...] = ()
  # what reading one input may take; no part of the identity, as it changes no byte of an input that
  # can be read
  limits: limited.Limits = limited.NONE

  @property
  def whole_identity(self) -> dict[str, Any]:
    """What the bytes depend on, the packages that make them among it."""
    if not self.lineage:
      return self.identity
    return {"versions": self.lineage, **self.identity}

  @property
  def digest(self) -> str:
    """Name of the bytes that the plan makes."""
    text = json.dumps(self.whole_identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]

  @property
  def inputs(self) -> int:
    return sum(job.inputs for job in self.jobs)

  @property
  def all_inputs(self) -> int:
    """What the quarantine budget is a fraction of."""
    return self.inputs + self.drawn_from


@dataclasses.dataclass(frozen=True)
class BuildResult:
  """What a finished build holds."""

  records: dict[str, int]  # split -> number of examples
  inputs: int
  refused: dict[str, int]  # reason -> number of inputs
  # reason -> number of rejected random draws
  draws: dict[str, int] = dataclasses.field(default_factory=dict)


# Runs jobs of a plan into a folder and yields each with its report as it ends.
Executor = Callable[[Plan, pathlib.Path, list[ShardJob]], Iterator[tuple[ShardJob, Report]]]


def build(
  plan: Plan,
  out: str | os.PathLike,
  *,
  quarantine_budget: float,
  workers: int = 1,
  execute: Executor | None = None,
  progress: Callable[[int, dict[str, int]], None] | None = None,
) -> BuildResult:
  """Builds or continues a dataset. Interrupted, it leaves whole shards only.

  Args:
    plan: what to build.
    out: the dataset's folder.
    quarantine_budget: fraction of the inputs that may be refused.
    workers: processes; 1: in this process, 0: one a core.
    execute: what runs the jobs in place of processes of this machine.
    progress: called as inputs are dealt with, with their number since the last call and all
      refused by finished shards, by reason; after every shard where `execute` runs them.

  Raises:
    InputError: `out` cannot be written or belongs to another build, or too many inputs are refused.
    JobFailed: a worker died, another process builds there, or the disk of a build that was begun is
      full or gone.
  """
  out = pathlib.Path(out)
  with _explaining_os_errors(out), locks.hold(out, f"a build of {plan.name}"):
    _claim(plan, out)
    _remove_partial(out)
    reports = {job: finished_report(plan, out, job) for job in plan.jobs}
    refused = _refused_by_reason(reports.values())

    # the shards that are left, and how many of their inputs are dealt with
    left = [job for job in plan.jobs if reports[job] is None]
    through = {job: unfinished.inputs_of(_parts_folder(out, job)) for job in left}

    def tell(job: ShardJob, inputs: int) -> None:
      fresh = max(0, inputs - through[job])
      through[job] += fresh
      if progress:
        progress(fresh, dict(refused))

    try:
      if execute is not None:
        running = execute(plan, out, left)
      else:
        running = _run_locally(plan, out, left, workers, tell)
      with contextlib.closing(running):
        for job, report in running:
          locks.check(out)
          reports[job] = report
          refused = _refused_by_reason(reports.values())
          tell(job, job.inputs)
          faults = _refused_by_reason(reports.values(), faults=True)
          if faults.total() > quarantine_budget * plan.all_inputs:
            break
    except locks.Lost:
      # What is half written there is somebody else's.
      raise
    except BaseException:
      _tidy(out, reports)
      raise
    _tidy(out, reports)
    faults = _refused_by_reason(reports.values(), faults=True)
    _check_budget(plan, out, faults, quarantine_budget)

    # what they hold together
    lengths, draws = Counter(), Counter()
    for job, report in reports.items():
      lengths[job.split] += report["records"]
      draws.update(report["draws"])
    if not lengths.total():
      raise InputError(
        f"none of {plan.inputs} inputs became an example ({_most_common(refused)}); see "
        f"{out / records.QUARANTINE_FILE}"
      )
    counts = {
      "records": lengths,
      "inputs": plan.inputs,
      "refused": dict(sorted(refused.items())),
      "rejected_draws": dict(sorted(draws.items())),
    }
    _write_build_file(plan, out, counts)
    # Last: its presence declares the dataset whole.
    records.write_metadata(out, name=plan.name, kind=plan.kind, description=plan.description)
  return BuildResult(dict(lengths), plan.inputs, dict(refused), dict(draws))


def finished_inputs(plan: Plan, out: str | os.PathLike) -> int:
  """How many inputs an earlier run of the same build has dealt with."""
  folder = pathlib.Path(out)
  inputs = 0
  for job in plan.jobs:
    if shard_path(plan.name, folder, job).exists():
      inputs += job.inputs
    else:
      inputs += unfinished.inputs_of(_parts_folder(folder, job))
  return inputs


def run_job(
  job: ShardJob,
  *,
  make,
  out: pathlib.Path,
  name: str,
  kind: str,
  tell: Callable[[int], None] = lambda inputs: None,
  limits: limited.Limits = limited.NONE,
) -> Report:
  """Makes one shard and returns its report. The only function an executor has to call; equal jobs
  write equal bytes, also where an earlier run was killed within the shard.

  tell: called with the number of inputs that are dealt with. limits: of reading one input.
  """
  report: Report = {}
  begun = unfinished.Shard(_parts_folder(out, job))

  def through(inputs: int) -> None:
    begun.through(inputs, refusals.report())
    tell(inputs)

  refusals = Refusals(through, limits)
  if begun.inputs:
    refusals.resume(begun.inputs, begun.report)

  def serialised() -> Iterator[bytes]:
    count = 0
    for record in begun.records():
      count += 1
      yield record
    for example in make(job.spec, refusals):
      record = schema.serialise(example, kind)
      if refusals.by_input:
        begun.add(record)
      count += 1
      yield record
    report["records"] = count
    report.update(refusals.report())
    # The shard is committed when this generator ends: whoever sees a shard also finds its report.
    records.write_json(_report_path(out, job), report)

  records.write_bytes(shard_path(name, out, job), serialised())
  begun.remove()
  return report


def shard_path(name: str, out: pathlib.Path, job: ShardJob) -> pathlib.Path:
  """Where the shard of a job lies."""
  return records.shard_path(out, name, job.split, job.index, job.count)


def _report_path(out: pathlib.Path, job: ShardJob) -> pathlib.Path:
  return out / REPORTS / f"{job.place}.json"


def _parts_folder(out: pathlib.Path, job: ShardJob) -> pathlib.Path:
  return out / unfinished.PARTS / job.place


def finished_report(plan: Plan, out: pathlib.Path, job: ShardJob) -> Report | None:
  """The report of a shard that stands; None if it does not."""
  return standing_report(plan.name, out, job)


def standing_report(name: str, out: pathlib.Path, job: ShardJob) -> Report | None:
  """The report of a shard that stands; None if it does not, or if its report is gone or cut off:
  then the shard is made again, to the same bytes. Raises InputError where there are no reports.
  """
  if not shard_path(name, out, job).exists():
    return None
  path = _report_path(out, job)
  # Shards without any report are of another release, or of nobody known.
  if not path.parent.exists():
    raise InputError(f"{path} is missing beside its finished shard; delete {out} and build again")
  report = texts.read_own(path, "records", "refused", "draws")
  if report is None:
    print(f"{path} is not whole beside its shard, which is made again", file=sys.stderr)
  return report


def read_own(path: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
  """What an earlier run of this build wrote. Raises InputError if it is damaged."""
  try:
    found = texts.read_json(path)
  except texts.TextError as error:
    raise InputError(f"{path} is damaged ({error}); delete {out} and build again") from error
  if not isinstance(found, dict):
    raise InputError(f"{path} is damaged (no JSON object); delete {out} and build again")
  return found


def _claim(plan: Plan, out: pathlib.Path) -> None:
  """Marks `out` as this build's. Raises InputError if it is another one's."""
  out.mkdir(parents=True, exist_ok=True)
  if not is_claimed(plan, out):
    _write_build_file(plan, out, None)


def is_claimed(plan: Plan, out: str | os.PathLike) -> bool:
  """Whether `out` is marked as this build's; writes nothing. Raises InputError if it is another
  one's.
  """
  out = pathlib.Path(out)
  path = out / records.BUILD_FILE

  # a build that was begun; what a crash has cut off before there was a shard counts as absent
  has_shards = any(out.glob("*.array_record-*"))
  found = texts.read_own(path, "digest", "identity")
  if found is None and has_shards and path.exists():
    read_own(path, out)
    raise InputError(f"{path} is damaged (it lacks keys); delete {out} and build again")
  if found is not None:
    # those from before the packages counted have them beside the rest
    there = found["identity"]
    if found.get("lineage"):
      there = {"versions": found["lineage"], **there}
    if found["digest"] == plan.digest or there == plan.whole_identity:
      return True
    difference = _difference(there, plan.whole_identity)
    raise InputError(
      f"{out} holds a build of another configuration ({difference}). Give another folder with "
      f"--config.out=DIR, go back to that configuration, or delete {out} to build anew"
    )

  # a new one
  if has_shards:
    raise InputError(
      f"{out} holds shards but no {records.BUILD_FILE}: it was not made by this command. Give "
      "another folder with --config.out=DIR"
    )
  return False


def _write_build_file(plan: Plan, out: pathlib.Path, counts: dict[str, Any] | None) -> None:
  described = {
    "name": plan.name,
    "digest": plan.digest,
    "identity": plan.whole_identity,
    "lineage": plan.lineage,
    "counts": counts,
  }
  records.write_json(out / records.BUILD_FILE, described)


def _difference(old: dict, new: dict) -> str:
  """The first few values that differ, as dotted keys."""
  there = dict(_flatten(old))
  here = dict(_flatten(new))
  differ = []
  for key in sorted(there | here):
    if there.get(key) != here.get(key):
      differ.append(key)

  # the first few of them
  shown = []
  for key in differ[:DIFFERENCES_SHOWN]:
    was = there.get(key, "absent")
    wanted = here.get(key, "absent")
    shown.append(f"{key}: {was} there, {wanted} here")
  more = len(differ) - DIFFERENCES_SHOWN
  if more > 0:
    shown.append(f"and {more} more")
  return "; ".join(shown)


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of every leaf."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _run_locally(
  plan: Plan,
  out: pathlib.Path,
  jobs: list[ShardJob],
  workers: int,
  tell: Callable[[ShardJob, int], None],
) -> Iterator[tuple[ShardJob, Report]]:
  """Runs the jobs, yielding each with its report as it ends.

  tell: called with a job and how many of its inputs are dealt with.
  """
  run = functools.partial(
    run_job,
    make=plan.make,
    out=out,
    name=plan.name,
    kind=plan.kind,
    limits=plan.limits,
  )
  workers = min(workers or os.cpu_count() or 1, len(jobs))
  if workers <= 1:
    for job in jobs:
      yield job, run(job, tell=functools.partial(tell, job))
    return

  by_place = {job.place: job for job in jobs}
  with processes.pool(workers) as pool:
    running: dict[concurrent.futures.Future, ShardJob] = {}
    queue = iter(jobs)
    try:
      # a short queue: over budget or interrupted, little is left to cancel
      for job in itertools.islice(queue, 2 * workers):
        running[pool.submit(_run_in_worker, job, run)] = job
      while running:
        done, _ = concurrent.futures.wait(
          running, LOOK_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for place, inputs in pool.told():
          tell(by_place[place], inputs)
        for future in done:
          job = running.pop(future)
          yield job, future.result()
          # one comes in for each that has ended
          following = next(queue, None)
          if following is not None:
            running[pool.submit(_run_in_worker, following, run)] = following
    except concurrent.futures.process.BrokenProcessPool as error:
      raise JobFailed(
        f"a worker process died while building {out} (usually out of memory). Finished shards are "
        "kept: run the same command again, with fewer --config.workers if memory was short"
      ) from error


def _run_in_worker(job: ShardJob, run: Callable[..., Report]) -> Report:
  """Runs a job in a worker process, which tells the building one how far it is."""

  def tell(inputs: int) -> None:
    processes.tell((job.place, inputs))

  return run(job, tell=tell)


def _tidy(out: pathlib.Path, reports: dict[ShardJob, Report | None]) -> None:
  """Leaves the folder as the next start, or a reader, wants to find it."""
  locks.check(out)
  _write_quarantine(out, reports)
  _remove_partial(out)


def _remove_partial(out: pathlib.Path) -> None:
  """Removes what writers that are gone have left half written, and parts of finished shards."""
  for folder in (out, out / REPORTS, *(out / unfinished.PARTS).glob("*")):
    atomic.remove_leftovers(folder)
  with contextlib.suppress(OSError):
    (out / unfinished.PARTS).rmdir()  # if it is empty


def _refused_by_reason(reports: Iterable[Report | None], *, faults: bool = False) -> Counter[str]:
  """Reason -> inputs that became no example; only the faulty ones if `faults`.

  An input that several shards met counts once.
  """
  is_fault = {(bad["path"], bad["reason"]): bad["fault"] for bad in _refused(reports)}
  counts = Counter()
  for (_, reason), fault in is_fault.items():
    if fault or not faults:
      counts[reason] += 1
  return counts


def _most_common(counts: Counter[str]) -> str:
  return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def _refused(reports: Iterable[Report | None]) -> Iterator[dict[str, Any]]:
  """What the shards that stand have refused."""
  for report in reports:
    if report is not None:
      yield from report["refused"]


def _write_quarantine(out: pathlib.Path, reports: dict[ShardJob, Report | None]) -> None:
  lines = {json.dumps(bad, sort_keys=True) + "\n" for bad in _refused(reports.values())}
  atomic.write_text(out / records.QUARANTINE_FILE, "".join(sorted(lines)))


def _check_budget(plan: Plan, out: pathlib.Path, faults: Counter, budget: float) -> None:
  if faults.total() <= budget * plan.all_inputs:
    return
  reasons = _most_common(faults)
  raise InputError(
    f"{faults.total()} of {plan.all_inputs} inputs were refused ({reasons}), more than "
    f"quarantine_budget = {budget:g} allows. They are listed in {out / records.QUARANTINE_FILE}. "
    "Raise --config.quarantine_budget to continue without them, or mend them and delete "
    f"{out} before building again"
  )


@contextlib.contextmanager
def _explaining_os_errors(out: pathlib.Path):
  """Turns what the file system refuses into a message that says what to do."""
  try:
    yield
  except OSError as error:
    # an input, not what is written
    if error.errno in (*blame.PERMISSION, errno.EIO) and error.filename is not None:
      named = pathlib.Path(os.fsdecode(error.filename)).absolute()
      if not named.is_relative_to(out.absolute()):
        raise blame.explained(error, named) from error
    # A build that was begun is no mistake of whoever started it: the next start may go on.
    begun = (out / records.BUILD_FILE).exists()
    failed = JobFailed if begun else InputError
    if error.errno in blame.FULL:
      raise failed(
        f"{out}: the disk is full. Free space or give another folder with --config.out=DIR; "
        "finished shards are kept and the same command continues"
      ) from error
    if error.errno in (*blame.PERMISSION, errno.ENOTDIR, errno.EEXIST):
      raise failed(
        f"{out} cannot be written ({error.strerror}). Give another folder with --config.out=DIR"
      ) from error
    if error.errno in blame.DISK or (begun and error.errno == errno.ENOENT):
      raise JobFailed(
        f"{out}: {error}: its disk is failing or not mounted; finished shards are kept and the "
        "same command continues"
      ) from error
    raise
