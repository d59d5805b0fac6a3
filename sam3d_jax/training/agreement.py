"""What the processes of a job tell each other before anyone goes on: texts, and how each has fared.

A host whose disk fails, or shows another folder, must not take another road than the others: they
would meet at different collectives, or train on different states. So each step that can fail on one
host alone ends with `settle`, after which all go on or all raise.

Every process calls the functions of this module alike; in a job of one process they do nothing.
"""

from collections.abc import Callable
import json
from typing import Any, TypeVar

import jax
from jax._src import distributed

from sam3d_jax.errors import InputError, JobFailed
from sam3d_jax.files import blame
from sam3d_jax.training.checksums import CorruptCheckpoint

# how a host has fared, the gravest last: damage is worked around only where nothing else is wrong
FINE, DAMAGED, REFUSED, FAILED = "fine", "damaged", "refused", "failed"

PATIENCE_SECONDS = 1800.0  # that processes wait for each other's texts

Value = TypeVar("Value")

_rounds = 0  # of exchanges so far, the same in every process


def exchange(text: str) -> list[str]:
  """One text from every process, by process index. Every process must call it.

  They travel through the job's coordinator, not through devices: a host may be minutes behind the
  others (it waits for a lock, or for its disk), which no collective would wait for. Raises
  JobFailed if one does not answer within PATIENCE_SECONDS.
  """
  count, index = jax.process_count(), jax.process_index()
  if count == 1:
    return [text]
  global _rounds
  _rounds += 1
  client = distributed.global_state.client
  patience = int(PATIENCE_SECONDS * 1000)
  place = f"sam3d_jax/exchange/{_rounds}"

  # The first process collects what the others say and tells it to all; equal texts go once.
  try:
    if index != 0:
      client.key_value_set(f"{place}/{index}", text)
      told = client.blocking_key_value_get(f"{place}/all", patience)
    else:
      said = [text]
      for host in range(1, count):
        said.append(client.blocking_key_value_get(f"{place}/{host}", patience))
      different = list(dict.fromkeys(said))
      told = json.dumps({"texts": different, "of": [different.index(one) for one in said]})
      client.key_value_set(f"{place}/all", told)
  except RuntimeError as error:
    raise JobFailed(
      f"a process of this job did not answer, or has ended; its log says why ({blame.said(error)})"
    ) from error
  answer = json.loads(told)
  return [answer["texts"][number] for number in answer["of"]]


def of_first(value: Any) -> Any:
  """What the first process holds; as JSON on the way, so tuples become lists."""
  if jax.process_count() == 1:
    return value
  mine = json.dumps(value) if jax.process_index() == 0 else ""
  return json.loads(exchange(mine)[0])


def settle(error: Exception | None, found: str = "") -> None:
  """Tells the others how this process has fared, and raises in all of them if any of them failed.

  error: what was raised here. found: what was read, in a few words, which must be equal. Raises the
  own error where there is one. The others raise CorruptCheckpoint if nothing but damage was met,
  else JobFailed naming the host.
  """
  if jax.process_count() == 1:
    if error is not None:
      raise error
    return
  # An error that all know of already is not told again: the others are further on.
  if getattr(error, "is_settled", False):
    raise error

  told = {"how": _how(error), "said": "", "found": found}
  if error is not None:
    told["said"] = blame.said(error) if _how(error) == FAILED else str(error)
  answers = [json.loads(answer) for answer in exchange(json.dumps(told))]
  outcome = _outcome(answers, error)
  if outcome is not None:
    outcome.is_settled = True
    raise outcome from error


def _how(error: Exception | None) -> str:
  if error is None:
    return FINE
  if isinstance(error, CorruptCheckpoint):
    return DAMAGED
  if isinstance(error, InputError):
    return REFUSED
  return FAILED


def _outcome(answers: list[dict[str, str]], error: Exception | None) -> Exception | None:
  """What this process raises, None if all are fine."""
  by_how: dict[str, list[int]] = {}
  for host, answer in enumerate(answers):
    by_how.setdefault(answer["how"], []).append(host)

  # A failure anywhere fails the job; what all refuse alike stays a refusal.
  for how in (FAILED, REFUSED):
    hosts = by_how.get(how, [])
    if not hosts:
      continue
    if how == REFUSED and len(hosts) == len(answers):
      return error
    if error is not None and how == FAILED and _how(error) == FAILED:
      return error
    host = hosts[0]
    return JobFailed(f"host {host} cannot go on, so none does: {answers[host]['said']}")

  # Nothing but damage: all try another step.
  if DAMAGED in by_how:
    host = by_how[DAMAGED][0]
    return error or CorruptCheckpoint(f"host {host} found: {answers[host]['said']}")

  # All have read something, and it has to be the same.
  first = answers[0]["found"]
  for host, answer in enumerate(answers):
    if answer["found"] != first:
      return JobFailed(
        f"host {host} reads {answer['found']}, host 0 reads {first}: give all of them one folder "
        "on a disk that they share"
      )
  return None


def together(read: Callable[[], Value], name: Callable[[Value], str] | None = None) -> Value:
  """What `read()` gives, once it has succeeded everywhere. name: of what was read, which has to be
  the same.

  Raises as `settle` does.
  """
  error, value, found = None, None, ""
  try:
    value = read()
    if name is not None:
      found = name(value)
  except Exception as raised:
    error = raised
  settle(error, found)
  return value
