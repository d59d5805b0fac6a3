"""The processes of a job meet before JAX joins them.

JAX's own joining ends in an abort without a message where a process does not come. So each of them
first tells process 0, over a plain connection to the coordinator's address, that it is there. Once
all are, each hears so and the address is free for JAX. If one is missing when the time is over, all
that came hear which, and end with words.

    process 1 .. n-1  →  {"index": 1, "count": n}
    process 0         →  {"missing": []}  or  {"missing": [2, 3]}  or  {"refused": "why"}
"""

from collections.abc import Callable
import contextlib
import json
import selectors
import socket
import time

from sam3d_jax.errors import JobFailed

MEET_SECONDS = 300.0  # that processes wait for each other
TELL_SECONDS = 15.0  # of waiting before it is said for whom
PAUSE_SECONDS = 0.5  # between tries to reach process 0, or to listen
LONGEST_LINE = 4096  # bytes; what sends more is no process of ours
SHOWN = 8  # missing processes that are named
ANSWER_SECONDS = 10.0  # beyond the patience: process 0 may have begun to wait later

Tell = Callable[[str], None]


def meet(
  coordinator: str, count: int, index: int, *, bind: str | None = None, tell: Tell = print
) -> None:
  """Returns when all processes of the job are there.

  coordinator: HOST:PORT of process 0. bind: where it listens, if that is another address. Raises
  JobFailed naming the processes that did not come, or why this one is not let in.
  """
  if index == 0:
    _receive(bind or coordinator, count, tell)
  else:
    _come(coordinator, count, index, tell)


def _receive(bind: str, count: int, tell: Tell) -> None:
  """Process 0 waits for the others and answers all of them."""
  # One thread for all of them: of thousands most only wait, and a stranger must not hold them up.
  begin = time.monotonic()
  deadline = begin + MEET_SECONDS
  there: dict[int, socket.socket] = {}
  lines: dict[socket.socket, bytes] = {}  # of those that have not said who they are
  told = False

  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(bind, deadline))
    selector = stack.enter_context(selectors.DefaultSelector())
    server.setblocking(False)
    selector.register(server, selectors.EVENT_READ)

    def drop(connection: socket.socket) -> None:
      selector.unregister(connection)
      lines.pop(connection, None)
      for index in [index for index, other in there.items() if other is connection]:
        del there[index]
      connection.close()

    while len(there) < count - 1 and time.monotonic() < deadline:
      for key, _ in selector.select(PAUSE_SECONDS):
        # Somebody new.
        connection = key.fileobj
        if connection is server:
          connection, _ = server.accept()
          connection.setblocking(False)
          selector.register(connection, selectors.EVENT_READ)
          stack.callback(connection.close)
          lines[connection] = b""
          continue

        # Whoever closes its connection has ended, or is somebody else.
        data = _received(connection)
        line = lines.get(connection, b"") + data
        if not data or len(line) > LONGEST_LINE:
          drop(connection)
          continue
        # A line may come in pieces.
        lines[connection] = line
        if not line.endswith(b"\n"):
          continue
        refusal = _let_in(line, count, there, connection)
        if refusal:
          _answer(connection, {"refused": refusal})
          drop(connection)

      # Whoever looks at the log of a job that does not begin learns why.
      missing = [other for other in range(1, count) if other not in there]
      if missing and not told and time.monotonic() - begin > TELL_SECONDS:
        told = True
        tell(f"waiting for {_named(missing)} of {count} at {bind}")

    # All go on, or all end with the same words.
    missing = [other for other in range(1, count) if other not in there]
    for connection in there.values():
      _answer(connection, {"missing": missing})
  if missing:
    raise JobFailed(_failure(bind, 0, count, missing))


def _let_in(
  line: bytes, count: int, there: dict[int, socket.socket], connection: socket.socket
) -> str:
  """Notes who has come; why it is not let in, '' if it is."""
  try:
    said = json.loads(line)
    index, of = int(said["index"]), int(said["count"])
  except (ValueError, KeyError, TypeError):
    return "it does not say which process it is"
  if of != count:
    return f"this job has {count} processes, not {of}: all are to be started with one command"
  if not 0 < index < count:
    return f"process {index} is not one of the {count} (they count from 0)"
  if index in there:
    return f"process {index} has come already: was the job started twice?"
  there[index] = connection
  return ""


def _come(coordinator: str, count: int, index: int, tell: Tell) -> None:
  """Any other process tells process 0 that it is there, and waits for the answer."""
  # Tried again until process 0 listens: processes come in any order.
  begin = time.monotonic()
  deadline = begin + MEET_SECONDS
  told = False
  said = "no answer"
  while time.monotonic() < deadline:
    try:
      left = deadline - time.monotonic() + ANSWER_SECONDS
      answer = _ask(coordinator, {"index": index, "count": count}, left)
    # It has not begun to listen, or ended before it had an answer: its next start listens again.
    except OSError as error:
      said = error.strerror or str(error)
      if not told and time.monotonic() - begin > TELL_SECONDS:
        told = True
        tell(f"waiting for process 0 of {count} at {coordinator} ({said})")
      time.sleep(PAUSE_SECONDS)
      continue
    # It has answered, once and for all.
    if "refused" in answer:
      raise JobFailed(f"process {index} is not let in at {coordinator}: {answer['refused']}")
    if answer["missing"]:
      raise JobFailed(_failure(coordinator, index, count, answer["missing"]))
    return
  raise JobFailed(f"{_failure(coordinator, index, count, [0])} (last: {said})")


def _ask(coordinator: str, message: dict, patience: float) -> dict:
  """The answer of process 0. Raises OSError if there is none."""
  with socket.create_connection(_address(coordinator), timeout=ANSWER_SECONDS) as connection:
    connection.settimeout(patience)
    connection.sendall(json.dumps(message).encode() + b"\n")
    line = b""
    while not line.endswith(b"\n"):
      data = connection.recv(LONGEST_LINE)
      line += data
      if not data or len(line) > 16 * LONGEST_LINE:
        raise ConnectionError("it hung up")
  try:
    return json.loads(line)
  except ValueError as error:
    raise ConnectionError("something else listens there") from error


def _listen(bind: str, deadline: float) -> socket.socket:
  """A socket that listens at HOST:PORT. Raises JobFailed if that cannot be had in time."""
  host, port = _address(bind)
  # Everywhere: also on machines without the newer protocol.
  hosts = ("::", "0.0.0.0") if host == "::" else (host,)
  while True:
    for candidate in hosts:
      try:
        return _server(candidate, port)
      except OSError as error:
        said = error
    # The process 0 of the start before may still be ending, a name may not be known yet.
    if time.monotonic() > deadline:
      raise JobFailed(
        f"process 0 cannot listen at {bind} ({said.strerror or said}): give an address of this "
        "machine and a free port with --coordinator, or JAX_COORDINATOR_BIND_ADDRESS"
      ) from said
    time.sleep(PAUSE_SECONDS)


def _server(host: str, port: int) -> socket.socket:
  """A socket that listens. Raises OSError."""
  family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
  both = host == "::" and socket.has_dualstack_ipv6()
  return socket.create_server(
    (host, port),
    family=family,
    backlog=1024,
    dualstack_ipv6=both,
  )


def _address(text: str) -> tuple[str, int]:
  host, _, port = text.rpartition(":")
  return host.strip("[]"), int(port)


def _received(connection: socket.socket) -> bytes:
  try:
    return connection.recv(LONGEST_LINE)
  except OSError:
    return b""


def _answer(connection: socket.socket, message: dict) -> None:
  # One that has gone meanwhile is missed by JAX.
  with contextlib.suppress(OSError):
    connection.setblocking(True)
    connection.settimeout(ANSWER_SECONDS)
    connection.sendall(json.dumps(message).encode() + b"\n")


def _failure(where: str, index: int, count: int, missing: list[int]) -> str:
  return (
    f"the processes of this job did not find each other at {where} (this is {index} of {count}): "
    f"{_named(missing)} did not come within {MEET_SECONDS:.0f} s; its log says why, or it cannot "
    "reach this address"
  )


def _named(indices: list[int]) -> str:
  """'process 3', 'processes 1, 2 and 9 more'."""
  shown = ", ".join(map(str, indices[:SHOWN]))
  more = len(indices) - SHOWN
  if more > 0:
    shown += f" and {more} more"
  word = "process" if len(indices) == 1 else "processes"
  return f"{word} {shown}"
