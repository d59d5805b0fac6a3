"""Serves the annotation app of a project of the data engine.

    python -m launch.annotate --project ENGINE --port 8008
    python -m launch.annotate --project ENGINE --port 8008 --db postgresql://user@host/name

It listens on the loopback address and prints an address with a token, with which whoever works at
the machine gets in. Behind a proxy, or for other machines, give --host and one of the ways in: join
links (made by a lead's token), bearer tokens, or the user header of a proxy with its secret. The
API is described at /openapi.json.
"""

import argparse
import dataclasses
import pathlib
import socket

from launch.console import cli
from launch.console.flags import dry_run_flag
from sam3d_jax.errors import InputError

SECRET = "secret"  # file of the project that signs links and cookies
PORT = 8008


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  return cli.run_command(run, description=__doc__, flags=flags, config="none", argv=argv)


def flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--project", required=True, type=pathlib.Path, metavar="DIR")
  parser.add_argument("--port", type=int, default=PORT, help="(%(default)s)")
  parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
  parser.add_argument("--db", default="", metavar="URL", help="postgresql://… in place of SQLite")
  parser.add_argument(
    "--allow_host",
    action="append",
    default=[],
    metavar="NAME[:PORT]",
    help="name under which browsers reach it, as behind a proxy",
  )
  parser.add_argument("--proxy_header", default="", help="header in which a proxy names the user")
  parser.add_argument(
    "--proxy_secret_file",
    default="",
    metavar="FILE",
    help="what the proxy sends as X-Proxy-Secret",
  )
  parser.add_argument(
    "--segmenter",
    default="",
    metavar="CMD",
    help="'CMD {image} {points} {out}': makes a mask of clicks on a photo",
  )
  dry_run_flag(parser, "check the project and the address")


def run(args: argparse.Namespace) -> None:
  """Serves until it is stopped."""
  # The app loads FastAPI, which --help does without.
  from data_pipelines.engine import project, tokens
  from data_pipelines.engine.web import access, app, segment

  # a look at the tables leaves files beside them, which a dry run does not
  look = project.unchecked if args.dry_run else project.read
  engine = look(args.project, args.db)
  way_in = access.Access(
    # a dry run makes no files
    secret="" if args.dry_run else tokens.kept_secret(args.project / SECRET),
    hosts=host_names(args),
    local="",
    proxy_header=args.proxy_header.lower(),
    proxy_secret=read_proxy_secret(args),
  )
  segmenter = segment.parse(args.segmenter)
  check_free(args.host, args.port)
  if args.dry_run:
    print(f"would serve {args.project} at http://{args.host}:{args.port}")
    return

  import uvicorn

  address = f"http://{args.host}:{args.port}"
  if access.is_loopback(args.host) and not args.proxy_header:
    way_in = dataclasses.replace(way_in, local=tokens.make(args.port))
    address += f"/enter?token={way_in.local}"
  print(f"project {args.project}: {address}  (Ctrl-C ends it)", flush=True)
  # One process: SQLite takes one writer; more servers share a PostgreSQL.
  uvicorn.run(
    app.create_app(engine, way_in, segmenter),
    host=args.host,
    port=args.port,
    log_level="warning",
    server_header=False,
    proxy_headers=False,
  )
  engine.close()


def host_names(args: argparse.Namespace) -> tuple[str, ...]:
  """Names, with ports, under which requests may call."""
  own = [args.host]
  if args.host in ("127.0.0.1", "localhost", "::1"):
    own = ["127.0.0.1", "localhost", "[::1]"]
  return (*(f"{name}:{args.port}" for name in own), *args.allow_host)


def read_proxy_secret(args: argparse.Namespace) -> str:
  """The proxy's secret. Raises InputError for a header without one."""
  if not args.proxy_header:
    return ""
  if not args.proxy_secret_file:
    raise InputError(
      "--proxy_header needs --proxy_secret_file: without it anybody could name any user"
    )
  try:
    return pathlib.Path(args.proxy_secret_file).read_text().strip()
  except OSError as error:
    raise InputError(f"--proxy_secret_file {args.proxy_secret_file}: {error.strerror}") from error


def check_free(host: str, port: int) -> None:
  """Raises InputError for an address that cannot be listened at."""
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind((host, port))
    except (OSError, OverflowError) as error:
      raise InputError(f"--host {host} --port {port}: {error}: name another one") from error


if __name__ == "__main__":
  raise SystemExit(main())
