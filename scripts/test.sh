#!/usr/bin/env bash
# Installs what the tests need into .venv, then runs ruff, mypy and pytest (arguments go to pytest).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes, a thread each: with more threads they took half as much CPU time again.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
