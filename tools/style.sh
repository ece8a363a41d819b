#!/usr/bin/env bash
# Format and lint with ruff (ruff.toml): the files that are named, or every notebook, tool and module.
# Modules are made from notebooks, so of them only faults are looked for, not layout.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

status=0
files=("$@")
[ ${#files[@]} -gt 0 ] || files=(nbs tools)
ruff format --check "${files[@]}" || status=1
ruff check "${files[@]}" || status=1
if [ $# -eq 0 ]; then
  # B905: zip(strict=) everywhere is more noise than help.
  ruff check --select F,E7,A,B --ignore B905 face_future || status=1
fi
exit $status
