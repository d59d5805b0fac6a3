"""Whether a job is started again, as lines of bash for the launchers that decide it themselves.

A process ends with 0 (done), 2 (bad configuration or input: the next start would end alike), 75
(told to stop, has saved) or anything else (a failure). Of several processes one 2 refuses the job,
then one failure makes it failed, then one 75 stopped.
"""

import shlex

DECIDE = r"""
# verdict CODE...: what the exit codes of all processes say together
verdict() {
  local code failed= stopped=
  for code in "$@"; do
    case $code in
      0) ;;
      2) echo refused; return ;;
      75) stopped=1 ;;
      *) failed=1 ;;
    esac
  done
  if [[ $failed ]]; then echo failed; elif [[ $stopped ]]; then echo stopped; else echo done; fi
}

# again CODE...: returns 0 if the job should be started again, else exits;
# failures in a row are counted in $launch/failures
again() {
  local outcome; outcome=$(verdict "$@")
  echo "launcher: exit codes $*: $outcome" >&2
  case $outcome in
    done) rm -f "$launch/failures"; exit 0 ;;
    refused) echo "launcher: bad configuration or input, not started again" >&2; exit 2 ;;
    stopped) rm -f "$launch/failures" ;;
    failed)
      echo "$(date -u +%FT%TZ) $*" >> "$launch/failures"
      if (( $(wc -l < "$launch/failures") > retries )); then
        echo "launcher: failed more than $retries times in a row" >&2
        exit 1
      fi ;;
  esac
}
"""


def exports(environment: dict[str, str]) -> str:
  """`export NAME=VALUE` lines."""
  lines = []
  for name, value in environment.items():
    lines.append(f"export {name}={shlex.quote(value)}")
  return "\n".join(lines)
