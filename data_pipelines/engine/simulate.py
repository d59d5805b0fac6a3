"""Scripted annotators that work through the HTTP API, with a stated noise.

Each compares candidates by a score and rates the winner by it. The score is known truth where a
file gives it (mesh digest -> 0..1), else a number drawn from the digest, on which all agree. A
candidate is preferred where its score plus normal noise is higher; differences below TIE are
"equal".

What is acknowledged is written to a log before anything else happens, so that log and database can
be compared afterwards: nothing acknowledged may be missing, nothing may be there twice.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import random
import threading
import time
from typing import Any, NamedTuple
import uuid

import httpx2

from data_pipelines.engine import tokens
from sam3d_jax.errors import InputError, JobFailed

STAGES = ("shape", "texture", "pose", "comparison")  # what a script can decide
TIE = 0.02
RETRY_SECONDS = (0.05, 2.0)  # between two tries, from the first to the longest
TIMEOUT = 30.0  # seconds of one request
# An answer that says that this task is lost to this annotator, or has moved on.
LOST = (404, 409, 422)


@dataclasses.dataclass(frozen=True)
class Script:
  """noise: standard deviation of a score as an annotator sees it. scores: mesh digest -> 0..1.
  patience: seconds that an annotator waits for a server that does not answer. think: mean seconds
  between two decisions of an annotator, drawn from an exponential. looks: whether annotators load
  the meshes that they see, each once, as the page does.
  """

  url: str
  annotators: int
  decisions: int
  seed: int = 0
  noise: float = 0.1
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
  token: str = ""
  patience: float = 120.0
  think: float = 0.0
  looks: bool = False

  def __post_init__(self):
    if self.annotators < 1 or self.decisions < 1:
      raise InputError("--annotators and --decisions must be positive")


class Outcome(NamedTuple):
  """What a run came to. seconds: of each decision, from sending it to its acknowledgement."""

  acknowledged: int
  seconds: list[float]


class Log:
  """One JSON line for each acknowledged decision, on disk before the next one is made."""

  def __init__(self, path: pathlib.Path | None, wanted: int):
    self._file = None if path is None else path.open("a")
    self._lock = threading.Lock()
    self._left = wanted
    self.seconds: list[float] = []

  @property
  def acknowledged(self) -> int:
    return len(self.seconds)

  def take(self) -> bool:
    """Reserves one decision; False if all are taken."""
    with self._lock:
      if self._left == 0:
        return False
      self._left -= 1
      return True

  def give_back(self) -> None:
    """A reserved decision that was not made."""
    with self._lock:
      self._left += 1

  def add(self, line: Mapping[str, Any], seconds: float) -> None:
    with self._lock:
      self.seconds.append(seconds)
      if self._file is not None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

  def close(self) -> None:
    if self._file is not None:
      self._file.close()


def run(
  script: Script, path: pathlib.Path | None, told: Callable[[int], None] = lambda done: None
) -> Outcome:
  """Runs the annotators until enough decisions are acknowledged, or nothing is left to decide.

  told: called with the decisions so far. Raises JobFailed where the server does not answer.
  """
  log = Log(path, script.decisions)
  failures: list[BaseException] = []

  def work(number: int) -> None:
    try:
      Simulated(script, number, log).work()
    except BaseException as error:  # of a thread: told where they are joined
      failures.append(error)

  threads = [
    threading.Thread(target=work, args=(n,), daemon=True) for n in range(script.annotators)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    while thread.is_alive():
      thread.join(0.5)
      told(log.acknowledged)
  log.close()
  if failures:
    raise failures[0]
  return Outcome(log.acknowledged, log.seconds)


class Simulated:
  """One scripted annotator."""

  def __init__(self, script: Script, number: int, log: Log):
    self.script, self.log = script, log
    self.seen_files: set[str] = set()
    self.rng = random.Random(f"{script.seed} {number}")
    headers = {"x-annotator": f"simulated-{script.seed}-{number}"}
    if script.token:
      headers = {"authorization": f"Bearer {script.token}"}
    else:
      # a server of this user on this machine
      headers[tokens.HEADER] = tokens.found(httpx2.URL(script.url).port)
    self.client = httpx2.Client(base_url=script.url, headers=headers, timeout=TIMEOUT)

  def work(self) -> None:
    """Decides until all decisions are taken or no task is left."""
    while self.log.take():
      task = self._send("GET", "/api/next", params={"stages": ",".join(STAGES)})
      if task is None or task["task"] is None:
        self.log.give_back()
        return
      if self.script.looks:
        self._look(task["view"])
      if self.script.think:
        time.sleep(self.rng.expovariate(1 / self.script.think))
      kind, payload = self.decision(task)
      key = str(uuid.uuid4())
      body = {"key": key, "epoch": task["epoch"], "kind": kind, "payload": payload}
      sent = time.monotonic()
      taken = self._send("POST", f"/api/tasks/{task['task']}/decisions", json=body)
      if taken is None:
        self.log.give_back()
        continue
      line = {"key": key, "task": task["task"], "kind": kind, "annotator": self.name}
      self.log.add(line, time.monotonic() - sent)

  def _look(self, view: Mapping[str, Any]) -> None:
    """Loads the meshes that are shown and were not seen before."""
    for side in ("left", "right", "winner"):
      digest = view.get(side, {}).get("mesh")
      if digest and digest not in self.seen_files:
        self.seen_files.add(digest)
        self.client.get(f"/api/files/{digest}").raise_for_status()

  @property
  def name(self) -> str:
    return self.client.headers.get("x-annotator", "")

  def decision(self, task: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(kind, payload) of what this annotator decides about a task."""
    view = task["view"]
    if task["stage"] == "pose":
      proposed = view["pose"] or {}
      pose = {
        "rotation": proposed.get("rotation", [1, 0, 0, 0]),
        "translation": proposed.get("translation", [0, 0, 1]),
        "scale": proposed.get("scale", 1.0),
      }
      if isinstance(pose["scale"], list):
        pose["scale"] = pose["scale"][0]
      return "pose", pose
    if "left" in view:
      left, right = view["left"], view["right"]
      lead = self.seen(left["mesh"]) - self.seen(right["mesh"])
      answer = "left" if lead > 0 else "right"
      if abs(lead) < TIE:
        answer = "equal"
      kind = "vote" if task["stage"] == "comparison" else "choice"
      return kind, {"left": left["id"], "right": right["id"], "answer": answer}
    winner = view["winner"]
    value = view["rating_max"] * min(max(self.seen(winner["mesh"]), 0.0), 1.0)
    return "rating", {"winner": winner["id"], "value": round(value, 1)}

  def seen(self, digest: str) -> float:
    """The score of a mesh as this annotator sees it now."""
    score = self.script.scores.get(digest)
    if score is None:
      score = random.Random(digest).random()
    return score + self.rng.gauss(0.0, self.script.noise)

  def _send(self, method: str, path: str, **request) -> dict[str, Any] | None:
    """The answer; None where the task is lost. The same request again while nobody answers."""
    first, longest = RETRY_SECONDS
    pause, since = first, time.monotonic()
    while True:
      try:
        response = self.client.request(method, path, **request)
        if response.status_code < 500:
          break
        reason = response.text
      except httpx2.TransportError as error:
        reason = str(error)
      if time.monotonic() - since > self.script.patience:
        raise JobFailed(f"{self.script.url}: no answer in {self.script.patience:g} s: {reason}")
      time.sleep(pause)
      pause = min(2 * pause, longest)

    if response.status_code == 401:
      # a server that was started again has another token
      token = tokens.found(httpx2.URL(self.script.url).port)
      if token and token != self.client.headers.get(tokens.HEADER):
        self.client.headers[tokens.HEADER] = token
        return self._send(method, path, **request)
    if response.status_code in LOST:
      return None
    if response.status_code >= 400:
      detail = response.json().get("detail", response.text)
      raise InputError(f"{self.script.url}{path}: {detail}")
    return response.json()
