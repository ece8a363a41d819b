"""Shared by the scripts here: the recipe, messages, and files that appear whole or not at all.

The machine with the GPU may have PyTorch, timm, safetensors, OpenCV and NumPy only, so this file
doesn't import face_future, although its parts/files has such functions too.
"""

import csv
import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECIPE = HERE / 'faces.json'


def stop(message: str):
    "End the program with one sentence on stderr."
    raise SystemExit(message)


def need(file: str | Path, what: str) -> Path:
    "The file or folder as a `Path`. The program ends if it is not there."
    file = Path(file)
    if not file.exists():
        stop(f'{file}: no such file or folder. It should hold {what}.')
    return file


def write_whole(file: str | Path, write) -> Path:
    "Let `write(path)` write to a temporary name beside `file`, and move it into place."
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f'.{file.name}.{os.getpid()}.tmp')
    try:
        write(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def write_json(file: str | Path, value) -> Path:
    "Write `value` as JSON, whole or not at all."
    text = json.dumps(value, indent=1) + '\n'
    return write_whole(file, lambda path: path.write_text(text, encoding='utf-8'))


def log_line(file: Path, line: dict):
    "Add a line to a CSV, with a header if it is the first one, and print it."
    is_new = not file.exists()
    with file.open('a', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, list(line))
        if is_new:
            writer.writeheader()
        writer.writerow(line)
    print(' '.join(f'{k} {v}' for k, v in line.items()), flush=True)


def read_json(file: str | Path, what: str):
    "The content of a JSON file. The program ends with a sentence if it is missing or damaged."
    try:
        return json.loads(need(file, what).read_text(encoding='utf-8'))
    except ValueError as error:
        stop(f'{file}: not JSON ({error}). It should hold {what}.')


ADDED = ('low_face_share',)  # keys that older recipes lack, where it counts as 0


def read_recipe(file: str | Path = RECIPE) -> dict:
    "A recipe: all the choices of `faces.json`. The program ends if one of its keys is missing."
    recipe = read_json(file, 'a recipe, as faces.json is one')
    whole = json.loads(RECIPE.read_text(encoding='utf-8'))
    for key, value in whole.items():
        known = recipe.get(key)
        inside = set(value) - set(known or ()) if isinstance(value, dict) else set()
        if key in ADDED and key not in recipe:
            continue
        if key not in recipe or (inside and key not in ('boost', 'left_out')):
            stop(f'{file}: lacks {key} {" ".join(sorted(inside))}. All keys are in faces.json.')
    return recipe


@contextmanager
def stopped_by_signals(run):
    "Within, SIGTERM and Ctrl-C set `run.stopped`, so that it ends as a finished run does."

    def ask(*_):
        run.stopped = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_end(run, out: Path):
    "Print how far a run has come."
    how = 'stopped (--resume goes on)' if run.stopped else 'done'
    far = f'step {run.step}, {run.images} images, {run.seconds / 60:.1f} min'
    print(f'{out.name}: {how} at {far}')
