#!/usr/bin/env bash
# Sets up an environment once, then runs the main job, on a machine with nothing but Python 3.10 or newer:
#
#   ./launch.sh                    train on the embedded handwritten digits (about a minute), then show the report
#   ./launch.sh KEY=VALUE ...      the same with settings of your own, as in: python -m ldp_search.run KEY=VALUE ...
#   ./launch.sh test [ARGS ...]    the tests; ARGS go to pytest, as in -m slow: the long ones, which are left out otherwise
#
# LDP_VENV=FOLDER    where the environment lies (default: .venv beside this file)
# PYTHON=PROGRAM     the Python that the environment is made with (default: the first fit one found)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
venv="${LDP_VENV:-$root/.venv}"
case "$venv" in /*) ;; *) venv="$PWD/$venv" ;; esac

say() { printf '[launch] %s\n' "$*" >&2; }

fail() {
  say "$1"
  shift
  for line in "$@"; do say "  $line"; done
  exit 1
}

# OpenMP's idle threads spin by default. Where several processes share few cores (data workers, two ranks, a container
# with a share of the machine), the spinning ones take the cores from those that compute, and training slows down many
# times.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
    # Asked rather than looked up: a name on the PATH may be a stub that starts nothing.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.10 or newer is needed; found: $(python3 --version 2>/dev/null || echo 'no python3 at all')." \
    "Install it (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python; any system:" \
    "https://www.python.org/downloads), or name one that is there: PYTHON=/path/to/python3.12 ./launch.sh"
}

make_venv() {
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
  # An environment made without pip, or one whose making was interrupted, only needs its pip.
  "$venv/bin/python" -m ensurepip >/dev/null 2>&1 && return
  if [ "$venv" != "$root/.venv" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
    fail "LDP_VENV=$venv holds something, but no working environment." "Remove it yourself, or name another folder."
  fi
  local python version
  python="$(find_python)"
  version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  "$python" -c 'import venv, ensurepip' 2>/dev/null || fail \
    "Python $version is here, but without its 'venv' module, which makes environments." \
    "Debian, Ubuntu: sudo apt install python$version-venv    then run this again." \
    "Or name another Python: PYTHON=/path/to/python3 ./launch.sh"
  say "Making an environment with Python $version in $venv"
  "$python" -m venv --clear "$venv"
}

# What pip is at, by its output so far. Its last step says nothing while it unpacks for minutes: there the disk tells.
progress() {
  local now
  now="$(grep -E '^ *(Collecting|Downloading|Processing|Installing)' "$1" | tail -n 1)" || true
  case "$now" in
    *"Installing collected packages: "*)
      # shellcheck disable=SC2086 (the names, a word each)
      set -- ${now#*: }
      printf 'unpacking %s packages, %s MB on disk so far\n' $# "$(du -sm "$venv" 2>/dev/null | cut -f 1)"
      ;;
    *) sed -E 's#^ *##; s#[^ ]*/##' <<<"$now" | cut -c 1-90 ;; # a file's name and size, without where it comes from
  esac
}

# Runs a command with its output in a file, a line of progress every 15 seconds, and the output's end if it fails. The
# command runs in the background because bash would otherwise answer Ctrl-C or a termination only when it has ended.
quietly() {
  local log="$1" seconds=0 pid status=0
  shift
  "$@" >"$log" 2>&1 &
  pid=$!
  trap 'kill "$pid" 2>/dev/null || true; say "Stopped. Run the same command again to go on."; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % 15)) -eq 0 ]; then
      say "  $seconds s: $(progress "$log")"
    fi
  done
  wait "$pid" || status=$?
  trap - INT TERM
  [ "$status" -eq 0 ] && return
  tail -n 25 "$log" >&2
  fail "The installation failed (the end of its output is above, all of it in $log)." \
    "Most often the network or a full disk is the reason: the packages come from PyPI and take up to 6 GB." \
    "Then run the same command again."
}

# What was installed is written down, with the folder (an in-place installation points to it) and the whole of
# pyproject.toml, so that nothing is done twice and no change is missed.
state() { printf '%s\n' "$root$1" && cat "$root/pyproject.toml"; }

is_installed() {
  local stamp="$venv/.ldp_search$1"
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(state "$1")" ] && "$venv/bin/python" -c '' 2>/dev/null
}

install() {
  local extras="$1"
  is_installed "$extras" && return
  make_venv
  say "Installing ldp_search$extras and what it needs; some minutes the first time (up to 6 GB, most of it PyTorch)"
  if [ "$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    say "  No NVIDIA GPU here? A start with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu needs 2 GB only."
  fi
  quietly "$venv/pip.log" "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    -e "$root$extras"
  state "$extras" >"$venv/.ldp_search$extras"
  say "Installed"
}

if [ "${1:-}" = test ]; then
  shift
  install "[test]"
  cd "$root"
  say "Running the tests: pytest $*"
  exec "$venv/bin/python" -m pytest "$@"
fi

is_installed "[test]" || install ""
case " $* " in
  *" task="* | *" --help "* | *" -h "* | *" --list "*) ;;
  *) set -- task=digits "$@" ;;
esac
say "Running: python -m ldp_search.run $*"
exec "$venv/bin/python" -m ldp_search.run "$@"
