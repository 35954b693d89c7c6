#!/usr/bin/env bash
# Installs what the tests need into .venv, then runs ruff, mypy and pytest (arguments go to pytest).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy &
types=$!
# Three processes, a thread each: with more threads they took half as much CPU time again. There are
# more of them than cores, since some tests wait for other processes.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
status=0
.venv/bin/python -m pytest -n 3 --dist worksteal "$@" || status=$?
wait "$types" || status=$?
exit "$status"
