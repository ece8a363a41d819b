"""Join weights and their settings: `python tools/gpu/weights.py RUN faces_new.safetensors`.

train.py writes weights in half precision. Where face_future can be imported, the settings go into
the file. Where it can't, they are written beside it as `NAME.recipe.json`, and this script joins
the two on a machine with face_future. `face_future pack` then calibrates and measures them.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from common import need, read_json, stop, write_json, write_whole
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

KEPT = 'arch', 'preprocess', 'classes', 'fake_means', 'label_source', 'about', 'card'


def inside(file: str | Path) -> dict:
    "The settings in a weights file, empty if it has none."
    try:
        with safe_open(file, 'pt') as f:
            return json.loads((f.metadata() or {}).get('face_future', '{}'))
    except SafetensorError as error:
        stop(f'{file}: not whole safetensors ({error}).')


def settings_of(file: str | Path) -> dict:
    "The settings in a weights file, or beside it in `NAME.recipe.json`, empty if there are none."
    beside = Path(file).with_suffix('.recipe.json')
    return inside(file) or (read_json(beside, 'its settings') if beside.exists() else {})


def to_begin_with(file: str | Path) -> dict:
    "The settings of a weights file that more training leaves true: not its calibration."
    return {k: v for k, v in settings_of(file).items() if k in KEPT}


def settings_for(arch: str, file: str | Path | None, size: int) -> dict:
    "The settings of new weights that began with those of `file`, or with None at random."
    known = to_begin_with(file) if file else {}
    if known.get('classes', ['real', 'fake']) != ['real', 'fake'] or (
        known.get('fake_means', 'generated') != 'generated'
    ):
        stop(f'{file}: its second output is not *fake*, and that is what is trained here.')
    cfg = timm.create_model(arch, num_classes=2).default_cfg
    preprocess = dict(mean=list(cfg['mean']), std=list(cfg['std']), interpolation='bicubic')
    preprocess |= dict(crop='face', margin=1.3, detector='yunet_2023mar')
    given = known.get('preprocess', {}) | dict(size=size)
    if known.get('arch', arch) != arch:  # a member of an ensemble, or a file of another network
        given = {k: v for k, v in given.items() if k not in ('mean', 'std')}
    preprocess |= given
    fixed = dict(arch=arch, preprocess=preprocess, classes=['real', 'fake'])
    return known | fixed | dict(fake_means='generated')


def halved(state: dict) -> dict:
    "Floats at half precision, on the CPU."
    state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}


def write(state: dict, settings: dict, file: str | Path) -> None:
    "Weights with their settings inside, or without face_future, beside `NAME.recipe.json`."
    try:
        from face_future.model import save_weights
    except ImportError:
        write_whole(file, lambda path: save_file(halved(state), path))
        write_json(Path(file).with_suffix('.recipe.json'), settings)
        return
    save_weights(state, settings, file, half=True)


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('weights', help='NAME.safetensors, with NAME.recipe.json beside it')
    parser.add_argument('out', help='safetensors to write, with the settings inside')
    a = parser.parse_args(args)
    try:
        from face_future.model import save_weights
    except ImportError:
        stop('face_future is not here: pip install -e ".[train]" in the project, or use its .venv.')
    file = need(a.weights, 'weights')
    settings = settings_of(file)
    if not settings:
        stop(f'{file}: has no settings, neither inside nor beside it in {file.stem}.recipe.json.')
    state = load_file(file)
    if not all(torch.isfinite(v).all() for v in state.values()):
        stop(f'{file}: holds numbers that are not finite.')
    save_weights(state, settings, a.out, half=True)
    name = Path(a.out).name
    print(f'{name}: now `face_future pack {name} OUT --labels-file LABELS` calibrates it')


if __name__ == '__main__':
    main()
