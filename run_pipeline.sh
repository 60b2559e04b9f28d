#!/usr/bin/env bash
# Run a pipeline under a lock, with a log and a deadline; make its Python environment first if need be.
# Usage: ./run_pipeline.sh --help
#
# Who holds what while a pipeline runs:
#   this shell   the lock; traps signals; decides the exit code
#   the guard    the lock too, and one end of a pipe: when this shell dies, even by kill -9, it kills
#                the pipeline; it is also the clock of --timeout
#   luigi        its own process group, neither the lock nor the pipe: what outlives it blocks nobody
# shellcheck disable=SC2317  # functions that `start` and traps call by name are reached
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
  3 nodes were lost    4 EC2 has too few instances now    5 over quota    6 not allowed, or the login is over
  7 EC2 does not take the request as it stands
USAGE
}

readonly STATE=.workflows
readonly KEEP_LOGS=30
readonly NOTIFY_S=60
readonly NO_LOCK=73 NO_OUTPUT=74  # exit codes: EX_CANTCREAT and EX_IOERR of sysexits.h
readonly TAKEN=75  # status of `lock` if somebody else keeps it
readonly GRACE_S=${WORKFLOWS_GRACE:-30}  # between TERM and KILL
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

# ---------------------------------------------------------------- arguments

module=workflows.tasks
task=MergeCounts
timeout=${WORKFLOWS_TIMEOUT:-}
setup_only=
fleet=${WORKFLOWS_FLEET:-}
keep_fleet=
notify=${WORKFLOWS_NOTIFY:-}
to=
luigi_args=()

need_value() { [[ $2 -ge 2 ]] || die 2 "$1 needs a value; see ./run_pipeline.sh --help"; }

parse_arguments() {
  while (($#)); do
    case $1 in
      --help | -h) usage; exit 0 ;;
      --setup) setup_only=.venv ;;
      --setup-dev) setup_only=.venv-dev ;;
      --keep-fleet) keep_fleet=yes ;;
      --fleet)
        need_value "$1" $#
        fleet=$2
        luigi_args+=("$1" "$2")
        shift
        ;;
      --fleet=*) fleet=${1#*=}; luigi_args+=("$1") ;;
      --task | --module | --timeout | --notify | --to)
        need_value "$1" $#
        [[ $1 != --to || -n $2 ]] || die 2 "--to needs the name of a file"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --task=* | --module=* | --timeout=* | --notify=* | --to=*)
        local option=${1%%=*}
        [[ $1 != --to= ]] || die 2 "--to needs the name of a file"
        printf -v "${option#--}" %s "${1#*=}"
        ;;
      --) shift; luigi_args+=("$@"); break ;;
      *) luigi_args+=("$1") ;;
    esac
    shift
  done
  [[ $task =~ ^[A-Za-z_][A-Za-z0-9_.]*$ ]] || die 2 "--task '$task' is not the name of a task"
  case $fleet in
    ec2:*) fleet=${fleet#ec2:} ;;
    *) fleet= ;;
  esac
  [[ $module =~ ^[A-Za-z_][A-Za-z0-9_.]*$ ]] || die 2 "--module '$module' is not the name of a module"
}

# 90, 90s, 30m, 2h, 1d -> seconds in $timeout; nothing and 0 mean no limit.
parse_timeout() {
  [[ -n $timeout ]] || timeout=0
  [[ $timeout =~ ^([0-9]{1,9})([smhd]?)$ ]] ||
    die 2 "--timeout '$timeout' is not a duration; write 90, 90s, 30m, 2h or 1d"
  local number=$((10#${BASH_REMATCH[1]})) unit=1
  case ${BASH_REMATCH[2]} in
    m) unit=60 ;;
    h) unit=3600 ;;
    d) unit=86400 ;;
  esac
  timeout=$((number * unit))
}

# Refuse a --to that cannot be replaced, before hours of work. Like a redirection it is relative to where
# the user is, and a link is followed.
check_to() {
  [[ -n $to ]] || return 0
  local file
  file=$(readlink -f -- "$to") || die 2 "--to $to: there is no such directory"
  to=$file
  [[ ! -e $to || -f $to ]] || die 2 "--to $to is not a regular file"
  [[ -w ${to%/*}/ ]] || die 2 "--to $to: ${to%/*}/ cannot be written to"
}

# Bash may have opened this script as a descriptor that was closed.
is_open() { [[ -e /dev/fd/$1 && ! /dev/fd/$1 -ef ${BASH_SOURCE[0]} ]]; }

# A stdout or stderr that is closed would be the next file that is opened. One that cannot be written to
# fails as a closed one does.
reserve_streams() {
  is_open 2 || exec 2>/dev/null
  ! is_open 1 || return 0
  [[ -n $to$setup_only ]] ||
    die 2 "stdout is closed, so the result would be lost; add --to FILE, or >/dev/null if you do not want it"
  exec 1</dev/null
}

# ---------------------------------------------------------------- locks

# Open files of this shell: 6 what luigi prints, kept until the end; 7 the pipe to the guard; 8 the lock of
# the environment, shared by runs and exclusive to its maker; 9 the lock of the pipeline.

# add FILE TEXT: add text to a file of the state directory; exit, saying why, if that cannot be done.
add() {
  local why
  why=$({ printf %s "$2" >>"$1"; } 2>&1) && return
  die "$NO_LOCK" "cannot write $PWD/$1: ${why##*: }; nothing was run. Make that possible, then type this again"
}

# lock FD SECONDS [shared]: lock an open file; TAKEN if somebody else keeps it that long.
lock() {
  if type -P flock >/dev/null; then
    flock --conflict-exit-code "$TAKEN" "--${3:-exclusive}" --wait "$2" "$1"
  else  # the lock belongs to the open file, so it stays ours when this Python has ended
    "$(find_python)" - "$TAKEN" "$@" <<'PYTHON'
import fcntl, sys, time
taken, *sys.argv[1:] = sys.argv[1:]
deadline = time.monotonic() + float(sys.argv[2])
mode = fcntl.LOCK_SH if sys.argv[3:] else fcntl.LOCK_EX
while True:
    try:
        fcntl.flock(int(sys.argv[1]), mode | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        if time.monotonic() >= deadline:
            sys.exit(int(taken))
        time.sleep(0.05)
PYTHON
  fi
}

# The pid written in a lock file, once it is one that lives: its writer may be about to write.
holder() {
  local pid='' _
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    pid=$(<"$1")
    [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null && break
    sleep 0.05
  done
  printf '%s' "${pid:-unknown}"
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

# The requirements that an environment was made from. It is compared, not hashed: cmp costs less than any digest.
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
  local env=$1 log=$STATE/logs/setup$1.log python
  exec </dev/null 9>&-
  lock 8 0 || say "waiting until nobody uses or makes $env (up to 15 minutes)"
  lock 8 900 || die 1 "$env is out of date and still used by another run; type this again when that is done"
  if ! is_ready "$env"; then  # else somebody made it while we waited
    python=$(find_python) || exit 1
    say "making $env from $(pins_of "$env") with $python (once, about a minute)"
    make_environment "$env" "$python" >"$log" 2>&1 || {
      tail -n 5 "$log" >&2
      die 1 "could not make $env; all of it: $log. The first run needs the network, or a mirror in pip's" \
        "configuration; then type ./run_pipeline.sh again"
    }
  fi
  lock 8 0 shared
}

# ensure_environment ENV: leave it ready, and locked against a rebuild during a run.
ensure_environment() {
  add "$STATE/lock/$1" ''
  exec 8>>"$STATE/lock/$1"
  if lock 8 0 shared && is_ready "$1"; then return; fi
  start renew_environment "$1"
  wait_for_child
  ((status == 0)) || exit "$status"
}

# ---------------------------------------------------------------- processes

child=    # leader of the process group to stop
status=0  # how the child ended, or what a signal or the timeout decided
verdict=  # that decision

# start FUNCTION...: run it in a process group of its own; it closes what it must not keep.
start() {
  set -m
  "$@" &
  child=$!
  set +m
}

# Is anything of a process group alive? Zombies are not: in a container nobody may collect them.
is_alive() {
  kill -0 -- "-$1" 2>/dev/null || return 1
  [[ -r /proc/self/stat ]] || return 0
  local file line state group
  for file in /proc/[0-9]*/stat; do
    { read -r line <"$file"; } 2>/dev/null || continue
    read -r state _ group _ <<<"${line##*) }"
    [[ $group == "$1" && $state != Z ]] && return 0
  done
  return 1
}

# end_group GROUP: TERM, up to GRACE_S seconds, KILL.
end_group() {
  is_alive "$1" || return 0
  kill -TERM -- "-$1" 2>/dev/null
  local deadline=$((SECONDS + GRACE_S))
  while is_alive "$1"; do
    if ((SECONDS >= deadline)); then
      kill -KILL -- "-$1" 2>/dev/null
      return
    fi
    sleep 0.05
  done
}

# A signal decides the exit code and so ends the wait; a second one does not let the pipeline finish.
on_signal() {
  [[ -z $verdict || -z $child ]] || kill -KILL -- "-$child" 2>/dev/null
  verdict=${verdict:-$1}
}

wait_for_child() {
  while :; do
    wait "$child" 2>/dev/null
    status=$?
    [[ -z $verdict ]] || break
    # Above 128 the wait may only have been interrupted.
    if ((status <= 128)) || ! kill -0 "$child" 2>/dev/null; then break; fi
  done
  end_group "$child"
  wait "$child" 2>/dev/null
  child=
  status=${verdict:-$status}
}

# The guard reads a pipe of which this shell has the other end: first the group to watch, then "done".
# The end of the pipe means that this shell is gone without having said so.
guard() {
  local group word='' limit=() code=0
  trap '' INT TERM HUP
  read -r group || return 0
  ((timeout == 0)) || limit=(-t "$timeout")
  read -r "${limit[@]}" word || code=$?
  if ((code > 128)); then  # time is up
    kill -USR1 "$$"
    read -r word
  fi
  [[ $word == 'done' ]] || kill -KILL -- "-$group"
}

# ---------------------------------------------------------------- the run

take_lock() {
  local file=$STATE/lock/$module.$task
  add "$file" $'\n'  # not only opened: the disk may be full
  exec 9>>"$file"
  # Half a second, since the guard of a run killed just now may still be killing the rest of it.
  lock 9 0.5
  case $? in
    0) ;;
    "$TAKEN") die 10 "$task is already running as pid $(holder "$file"); this run does nothing" ;;
    *) die "$NO_LOCK" "cannot lock $PWD/$file: its file system has no locks, or flock is broken; nothing was run" ;;
  esac
  echo "$$" >"$file"
}

log=
output=  # what luigi printed

open_log() {
  local logs started
  printf -v started '%(%Y%m%dT%H%M%S)T' -1
  add "$STATE/logs/run-$started-$$.log" ''
  log=$PWD/$STATE/logs/run-$started-$$.log
  note "luigi --module $module $task ${luigi_args[*]:-}"
  logs=("$STATE"/logs/run-*.log)
  ((${#logs[@]} <= KEEP_LOGS)) || rm -f -- "${logs[@]:0:${#logs[@]}-KEEP_LOGS}"
  # This run has the lock, so the name is its own. A process that outlived another run may hold the old file.
  output=$STATE/lock/$module.$task.out
  rm -f -- "$output"
  exec 6>"$output" || die "$NO_LOCK" "cannot write $PWD/$output; nothing was run"
}

note() { printf '%(%F %T)T run_pipeline.sh[%s] %s\n' -1 $$ "$*" >>"$log"; }

start_guard() {
  set -m
  coproc GUARD { guard; } 2>/dev/null 6>&- 8>&-
  set +m
  # shellcheck disable=SC2153  # coproc sets it
  guard_pid=$GUARD_PID
  exec 7>&"${GUARD[1]}"
  eval "exec ${GUARD[0]}<&- ${GUARD[1]}>&-"  # numbers
}

# Whether the result is there, which depends on no fleet. Where that cannot be told, it is not.
is_done() {
  local planned
  planned=$(.venv/bin/workflows plan --module "$module" "$task" "${luigi_args[@]}" --fleet local:1 \
    </dev/null 2>/dev/null 6>&- 7>&- 8>&- 9>&-) && [[ $planned == *$'\nnothing to run: '* ]]
}

# It tells the guard itself, before it becomes luigi: there is no moment when nobody watches it.
run_luigi() {
  echo "$BASHPID" >&7
  if [[ -n $fleet ]]; then
    if is_done; then
      say "the result is there already, so no node of $fleet is launched"
      luigi_args+=(--fleet local:1)
    else
      .venv/bin/workflows fleet up "$fleet" --yes </dev/null >&2 6>&- 7>&- 8>&- 9>&- || exit
    fi
  fi
  exec .venv/bin/luigi --module "$module" "$task" "${luigi_args[@]}" </dev/null >&6 6>&- 7>&- 8>&- 9>&-
}

# print_output CODE: what luigi printed to the log, then to stdout or --to; 1 if the result is lost on the way.
print_output() {
  local why=''
  cat -- "$output" >>"$log" 2>/dev/null
  if [[ -z $to ]]; then
    { why=$(cat -- "$output" 2>&1 >&3); } 3>&1 && return 0
    say "the result could not be written to stdout: ${why##*: }. It is kept: see $log"
  else
    (($1)) && return 0
    if [[ ! -s $output ]]; then
      say "$task printed no result, so $to is left as it was"
    elif why=$(replace_by_output 2>&1); then
      return 0
    else
      say "the result could not be written to $to: ${why##*: }. $to is left as it was; the result is kept: see $log"
    fi
  fi
  return 1
}

# Replace the file of --to at once and for good: a new file beside it, on the disk, then renamed.
replace_by_output() {
  local new
  new=$(mktemp -- "${to%/*}/.${to##*/}.XXXXXXXXXX") || return 1  # said, or a trap returns what was before it
  if chmod -- "$(printf '%o' $((0666 & ~8#$(umask))))" "$new" && cat -- "$output" >"$new" && sync -- "$new" &&
    mv -fT -- "$new" "$to"; then
    sync -- "${to%/*}/" || true  # not every file system can; the new name is there
  else
    rm -f -- "$new"
    return 1
  fi
}

close_log() { note "exit $1 after $SECONDS s" 2>/dev/null; }

# Whatever happened: the fleet's end, then what it has cost; on stderr and in the log. Nodes that stay end
# themselves, but later. Fails if the fleet may be up, or if stderr did not take everything.
end_fleet() {
  local words=(down "$fleet" --yes) codes
  [[ -z $keep_fleet ]] || words=(cost "$fleet")
  .venv/bin/workflows fleet "${words[@]}" </dev/null 2>&1 |
    tee --output-error=warn -a "$log" >&2
  codes=("${PIPESTATUS[@]}")
  note "workflows fleet ${words[*]}: exit ${codes[0]}"
  ((codes[0])) || return "${codes[1]}"
  say "the fleet $fleet may still be up; type: workflows fleet down $fleet"
  return 1
}

# Notify, after all else. Its failure changes nothing.
send_word() {
  tail -n 20 "$log" 2>/dev/null |
    WORKFLOWS_EXIT=$1 WORKFLOWS_TASK=$task WORKFLOWS_SECONDS=$SECONDS WORKFLOWS_LOG=$log \
      timeout -k 5 "$NOTIFY_S" bash -c "$notify" >&2 ||
    say "--notify exited $?: $notify"
}

# Why the run was ended, if it was.
say_verdict() {
  [[ -n $verdict ]] || return 0
  [[ ! -t 2 ]] || printf '\r\033[K' >&2  # the progress, which luigi had no time to clear
  if ((verdict == 124)); then
    say "stopped: $task ran longer than $timeout s (--timeout)"
  else
    say "interrupted: finished work is kept, run the same again to continue"
  fi
}

finish() {
  local code=$? ending=
  trap '' INT TERM HUP USR1 PIPE
  [[ -z $child ]] || end_group "$child" 2>/dev/null
  if [[ -n $fleet && -n $log ]]; then  # before a word is printed: a terminal may take none
    end_fleet 6>&- 7>&- 8>&- 9>&- &
    ending=$!
  fi
  [[ -z $log ]] || say_verdict
  if [[ -n $output ]]; then
    print_output "$code" || ((code)) || code=$NO_OUTPUT
    rm -f -- "$output"
  fi
  [[ -z $ending ]] || wait "$ending" || ((code)) || code=1
  {
    [[ -z ${guard_pid:-} ]] || { echo 'done' >&7; wait "$guard_pid"; }
    [[ -z $log ]] || close_log "$code"
  } 2>/dev/null
  [[ -z $log || -z $notify ]] || send_word "$code" 8>&- 9>&-
  exit "$code"
}

main() {
  local self
  parse_arguments "$@"
  parse_timeout
  check_to
  reserve_streams
  if [[ -n ${LUIGI_CONFIG_PATH:-} ]]; then
    [[ -r $LUIGI_CONFIG_PATH ]] || die 2 "LUIGI_CONFIG_PATH=$LUIGI_CONFIG_PATH cannot be read"
    LUIGI_CONFIG_PATH=$(readlink -f -- "$LUIGI_CONFIG_PATH")
  fi
  self=$(readlink -f -- "${BASH_SOURCE[0]}")
  cd -- "${self%/*}" || exit 1
  local why
  why=$(mkdir -p "$STATE/lock" "$STATE/logs" 2>&1) ||
    die "$NO_LOCK" "cannot write to $PWD/$STATE: ${why##*: }; nothing was run"

  [[ -n $setup_only ]] || take_lock
  trap finish EXIT
  trap 'on_signal 130' INT
  trap 'on_signal 143' TERM
  trap 'on_signal 129' HUP
  trap 'on_signal 124' USR1
  trap : PIPE  # or a reader of stderr that left would end this shell before the fleet
  ensure_environment "${setup_only:-.venv}"
  [[ -z $setup_only ]] || exit 0

  open_log
  export LUIGI_CONFIG_PATH=${LUIGI_CONFIG_PATH:-$PWD/luigi.cfg} WORKFLOWS_LOG=$log
  start_guard
  start run_luigi
  exec 6>&-
  wait_for_child
  exit "$status"
}

main "$@"
