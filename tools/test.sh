#!/usr/bin/env bash
# Run every notebook as a test, some letters at a time: `tools/test.sh WORKERS`, with nbdev_test in PATH.
# Each group has fresh processes, since one keeps in memory what its notebooks imported. If a process of a group ends
# without a word, as when the system runs out of memory, that is said, and the group runs once more in one process.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

workers=${1:-2}
groups=('^[^a-z]' '^[ab]' '^c' '^[d-f]' '^[g-l]' '^[m-p]' '^[q-z]')
export OMP_NUM_THREADS=1 PYTHONFAULTHANDLER=1

run() { # the names of a group as a pattern, and the number of processes
  nbdev_test --path nbs --file_re "$1" --n_workers "$2" --do_print --timing 2>&1 | tee "$said"
}

said=$(mktemp)
trap 'rm -f "$said"' EXIT
for group in "${groups[@]}"; do
  run "$group" "$workers" && continue
  grep -q BrokenProcessPool "$said" || exit 1
  echo "A process ended without a word. $(grep MemAvailable /proc/meminfo 2>/dev/null | tr -s ' '). The system's last words:"
  dmesg 2>/dev/null | tail -n 3
  echo "The notebooks $group run once more, in one process."
  run "$group" 0 || { echo "Ended with status $? (128 and more: by a signal)."; exit 1; }
done
