#!/usr/bin/env bash
# Build the package, install its wheel into a fresh environment, and use it from an empty folder:
# what a user of the release will do. Needs the network (pip) and `build`, which [dev] brings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${1:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf build dist
"$python" -m build --outdir dist .   # the sdist, and from that the wheel

"$python" -m venv "$work/venv"
bin=$work/venv/bin
[ -d "$bin" ] || bin=$work/venv/Scripts
"$bin/python" -m pip install --quiet dist/*.whl
cp -r data/sample "$work/sample"
cd "$work"

"$bin/python" - "$root" <<'PYTHON'
import sys
from configparser import ConfigParser
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import face_future

root = Path(sys.argv[1])
config = ConfigParser(delimiters=['='])
config.read(root / 'settings.ini', encoding='utf-8')
release = config['DEFAULT']['version']
here = Path(face_future.__file__).parent
assert root not in here.parents, f'{here} is not the installed package'
assert version('face_future') == face_future.__version__ == release, release
assert find_spec('torch') is None, 'predicting and serving must not need PyTorch'
tracked = {f.name for f in (root / 'face_future' / 'weights').iterdir()}
assert tracked == {f.name for f in (here / 'weights').iterdir()}, 'weights are missing'
modules = {f.name for f in (root / 'face_future').glob('*.py')}
differ = modules ^ {f.name for f in here.glob('*.py')}
assert not differ, f'only here, or only in the wheel: {", ".join(sorted(differ))}'
print(f'face_future {release} is imported from its wheel, without PyTorch.')
PYTHON
"$bin/face_future" predict sample --out predictions
for name in submission.json submission_confidence.json predictions.csv faces.csv; do
  [ -s "predictions/$name" ] || { echo "predict wrote no $name" >&2; exit 1; }
done
"$bin/python" -c 'from face_future.api import app; print("The service imports:", app.title)'
echo "$(cd "$root" && ls dist/*.whl) is fit to be released."
