#!/usr/bin/env bash
# Make this project's Python environment if need be; then `workflows cron` runs a pipeline in it.
# Usage: ./run_pipeline.sh --help
# shellcheck disable=SC2317  # functions that traps and variables call by name are reached
set -uo pipefail

usage() {
  cat <<'USAGE'
usage: ./run_pipeline.sh [options] [arguments for luigi]

Runs `luigi --module workflows.tasks MergeCounts` with this project's luigi.cfg. The result goes to
stdout at the end, progress to stderr, a log to .workflows/logs/ (the last 30 are kept). The first run makes
.venv from requirements.txt. Paths among the arguments for luigi are relative to the project's directory.

  --task NAME         run this task instead of MergeCounts
  --module MODULE     find it in this module instead of workflows.tasks
  --fleet ec2:NAME    bring this fleet up first, and down afterwards, also after a failure; other fleets are
                      passed on as they are
  --keep-fleet        leave the fleet up; its nodes end themselves when nobody uses them
  --to FILE           write the result to FILE, which is replaced whole, and only by a run that succeeded and
                      printed a result; after anything else FILE is what it was
  --timeout DURATION  stop the run after e.g. 90, 90s, 30m, 2h, 1d (also $WORKFLOWS_TIMEOUT)
  --notify COMMAND    run this by bash once the run is over, however it ended (also $WORKFLOWS_NOTIFY): the end of
                      the log on its stdin; $WORKFLOWS_EXIT, _TASK, _SECONDS and _LOG say the rest
  --setup             make .venv and stop; --setup-dev makes .venv-dev, which make test uses
  --help              print this; --help-all is passed on and prints luigi's own options
  --                  pass everything after it on to luigi

environment:
  PYTHON             the interpreter to make .venv with
  WORKFLOWS_TIMEOUT  as --timeout
  WORKFLOWS_FLEET    as --fleet
  WORKFLOWS_NOTIFY   as --notify
  WORKFLOWS_GRACE    seconds between TERM and KILL when a run is stopped (30)
  LUIGI_CONFIG_PATH  read after this project's luigi.cfg, so its values win

exit codes: luigi's own ([retcode] in luigi.cfg: 0 done, 30 a task failed, ...), and
  1 no environment, or a fleet that may still be up    2 usage    10 this pipeline is already running
  73 the lock or the log cannot be written    74 the run succeeded, but its result could not be written
  124 timeout    129, 130, 143 ended by SIGHUP, Ctrl-C, SIGTERM
with --fleet ec2:NAME, if the fleet did not come up; only 3 and 4 pass by waiting:
  3 nodes were lost    4 EC2 has too few instances now    5 over quota    6 not allowed, or the login has expired
  7 EC2 does not take the request as it stands
USAGE
}

readonly STATE=.workflows
readonly NO_LOCK=73  # exit code: EX_CANTCREAT of sysexits.h
readonly TAKEN=75    # status of `lock` if somebody else keeps it
readonly PIP_VERSION=26.3
readonly PIP_WHEEL=https://files.pythonhosted.org/packages/07/25/ee8c38ae72d66b844ce8eb9711ba905dba21ca1a8a0c960057c41cd23337/pip-26.3-py3-none-any.whl
readonly PIP_SHA256=f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13

say() { printf 'run_pipeline.sh: %s\n' "$*" >&2; }
die() {
  local code=$1
  shift
  say "$@"
  exit "$code"
}

# Which environment to make, and whether that is all; the other words are for `workflows cron`.
env=.venv
setup_only=
read_arguments() {
  while (($#)); do
    case $1 in
      --help | -h) usage; exit 0 ;;
      --setup) env=.venv setup_only=yes ;;
      --setup-dev) env=.venv-dev setup_only=yes ;;
      --task | --module | --fleet | --timeout | --notify | --to) (($# == 1)) || shift ;;
      --) break ;;
    esac
    shift
  done
}

# ---------------------------------------------------------------- the lock of the environment

# Descriptor 8: shared by runs, which keep it to their end, and exclusive to who makes the environment.
open_lock() {
  local why
  why=$({ mkdir -p "$STATE/lock" "$STATE/logs" && : >>"$STATE/lock/$env"; } 2>&1) ||
    die "$NO_LOCK" "cannot write $PWD/$STATE/lock/$env: ${why##*: }; nothing was run. Make that possible," \
      "then type this again"
  exec 8>>"$STATE/lock/$env"
}

# lock SECONDS [shared]: TAKEN if somebody else keeps it that long.
lock() {
  local code
  if type -P flock >/dev/null; then
    flock --conflict-exit-code "$TAKEN" "--${2:-exclusive}" --wait "$1" 8
  else  # the lock belongs to the open file, so it stays ours when this Python has ended
    "$(find_python)" - "$TAKEN" "$@" <<'PYTHON'
import fcntl, sys, time
taken, seconds, *shared = sys.argv[1:]
deadline = time.monotonic() + float(seconds)
while True:
    try:
        fcntl.flock(8, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        if time.monotonic() >= deadline:
            sys.exit(int(taken))
        time.sleep(0.05)
PYTHON
  fi
  code=$?
  ((code == 0 || code == TAKEN)) ||
    die "$NO_LOCK" "cannot lock $PWD/$STATE/lock/$env: its file system has no locks, or flock is broken; nothing was run"
  return "$code"
}

# ---------------------------------------------------------------- the Python environment

readonly IN_RANGE='import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

# The interpreter to make an environment with. /usr/bin before $PATH: a pyenv shim costs 50 ms a start.
find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    "$PYTHON" -c "$IN_RANGE" 2>/dev/null && { printf '%s' "$PYTHON"; return; }
    say "PYTHON=$PYTHON is not a Python from 3.10 to 3.13; unset it, or name another"
    return 1
  fi
  local name candidate
  for name in /usr/bin/python3.{13,12,11,10} /usr/bin/python3 python3.{13,12,11,10} python3; do
    candidate=$(type -P "$name") || continue
    "$candidate" -c "$IN_RANGE" 2>/dev/null && { printf '%s' "$candidate"; return; }
  done
  say "no Python from 3.10 to 3.13 found; install one (Debian: apt-get install python3)," \
    "or name it: PYTHON=/path/to/python3.12 ./run_pipeline.sh"
  return 1
}

pins_of() { if [[ $1 == .venv-dev ]]; then echo requirements-dev.txt; else echo requirements.txt; fi; }

# What an environment was made from. It is compared, not hashed: cmp costs less than any digest.
fingerprint() {
  printf 'directory %s\npython %s\nasked for %s\n' "$PWD" "$(readlink -f "$1/bin/python")" "$2"
  cat requirements.txt pyproject.toml
  [[ $1 == .venv ]] || cat requirements-dev.txt
}

is_ready() {
  local env=$1 asked=${PYTHON:-} line
  [[ -f $env/.made-from && -x $env/bin/python ]] || return 1
  if [[ -z $asked ]]; then  # no wish: any interpreter the last one wished for will do
    { read -r line && read -r line && IFS= read -r line; } <"$env/.made-from" || return 1
    asked=${line#asked for }
  fi
  fingerprint "$env" "$asked" | cmp -s - "$env/.made-from"
}

# Ways to have pip for an environment, best first; each leaves its command in the array `pip`.
pip_by_ensurepip() {
  "$2" -m venv "$1" && "$1/bin/python" -m pip --version && pip=("$1/bin/python" -m pip)
}
pip_of_the_system() {
  "$2" -m venv --without-pip "$1" && "$2" -m pip --python "$1/bin/python" --version &&
    pip=("$2" -m pip --python "$1/bin/python")
}
pip_from_the_index() {
  local wheel=$1/pip-$PIP_VERSION-py3-none-any.whl
  "$2" -m venv --without-pip "$1" && "$2" - "$PIP_WHEEL" "$PIP_SHA256" "$wheel" <<'PYTHON' || return 1
import hashlib, sys, urllib.request
url, sha256, path = sys.argv[1:]
content = urllib.request.urlopen(url, timeout=60).read()
if hashlib.sha256(content).hexdigest() != sha256:
    sys.exit(f"{url} is not the pip this project pins (sha256 {sha256})")
with open(path, "wb") as wheel:
    wheel.write(content)
PYTHON
  pip=("$1/bin/python" "$wheel/pip")
}

# make_environment ENV PYTHON
make_environment() {
  local env=$1 way pip=()
  for way in pip_by_ensurepip pip_of_the_system pip_from_the_index; do
    rm -rf "$env"
    echo "== $way, with $2"
    "$way" "$env" "$2" && break
    pip=()
  done
  ((${#pip[@]})) || return 1
  pip+=(--disable-pip-version-check --no-input)
  "${pip[@]}" install -r "$(pins_of "$env")" &&
    "${pip[@]}" install --no-deps -e . &&
    # As pip does; else each start would, where Python may not write. Whatever it says, the rest works.
    { "$env/bin/python" -m compileall -q -x /scripts/ workflows || true; } &&
    fingerprint "$env" "${PYTHON:-}" >"$env/.made-from.new" &&
    mv "$env/.made-from.new" "$env/.made-from"  # last: a set-up that was killed has none, and is redone
}

# The child that makes the environment. pip inherits the lock, so nobody else starts while one still runs.
renew_environment() {
  local log=$STATE/logs/setup$env.log python
  exec </dev/null
  lock 0 || say "waiting until nobody uses or makes $env (up to 15 minutes)"
  lock 900 || die 1 "$env is out of date and still used by another run; type this again when that is done"
  if ! is_ready "$env"; then  # else somebody made it while we waited
    python=$(find_python) || exit 1
    say "making $env from $(pins_of "$env") with $python (once, about a minute)"
    make_environment "$env" "$python" >"$log" 2>&1 || {
      tail -n 5 "$log" >&2
      die 1 "could not make $env; all of it: $log. The first run needs the network, or a mirror in pip's" \
        "configuration; then type ./run_pipeline.sh again"
    }
  fi
  lock 0 shared
}

# stop CODE: end the child that makes the environment. Half of one is made again by the next run.
stop() {
  local _
  trap '' INT TERM HUP
  [[ -n $child ]] || exit "$1"
  kill -TERM -- "-$child" 2>/dev/null
  for _ in {1..100}; do
    kill -0 -- "-$child" 2>/dev/null || exit "$1"
    sleep 0.05
  done
  kill -KILL -- "-$child" 2>/dev/null
  exit "$1"
}

# Leave the environment ready, and locked so that no other run rebuilds it.
ensure_environment() {
  if lock 0 shared && is_ready "$env"; then return; fi
  set -m
  renew_environment &
  child=$!
  set +m
  wait "$child" || exit
}

# Bash may have opened this script as a descriptor that was closed.
is_open() { [[ -e /dev/fd/$1 && ! /dev/fd/$1 -ef ${BASH_SOURCE[0]} ]]; }

main() {
  local self called_from=$PWD child=
  trap 'stop 130' INT  # Bash itself goes on if a command that it waits for survives the signal
  trap 'stop 143' TERM
  trap 'stop 129' HUP
  read_arguments "$@"
  # A stdout or stderr that is closed would be the next file that is opened.
  is_open 2 || exec 2>/dev/null
  is_open 1 || exec 1</dev/null
  self=$(readlink -f -- "${BASH_SOURCE[0]}")
  cd -- "${self%/*}" || exit 1
  open_lock
  ensure_environment
  [[ -z $setup_only ]] || exit 0
  # Python cannot be interrupted while it starts: signals wait until the verb asks for them, if env can do that.
  local hold=(env '--block-signal=INT,TERM,HUP')
  "${hold[@]}" true 2>/dev/null || hold=()
  WORKFLOWS_CALLED_FROM=$called_from exec "${hold[@]}" .venv/bin/python -m workflows cron "$@"
}

main "$@"
