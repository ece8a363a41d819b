"""Pack the training crops of a label file: `python tools/gpu/pack.py data/faces_labels.json parts`.

Each picture of the split *train* gives one crop, of its largest face: a square of margin 1.5, at
most 272 pixels, as JPEG. They go into tars of at most 59 MB (`part-000.tar`, …), so that they can
be copied piece by piece. When all are there, `index.json` lists them with their checksums. A
second call continues where the first was stopped, since each part appears whole or not at all.
"""

import argparse
import hashlib
import io
import json
import math
import random
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from common import RECIPE, read_json, read_recipe, stop, write_json, write_whole

from data import read_part
from face_future.data import ImageError, face_crop_box, read_rgb
from face_future.faces import Face, find_faces
from face_future.labels import LabelError, Labels

BOX, POINTS = list('xywh'), [f'p{k}' for k in range(10)]  # columns of stored faces, if any


def stored_face(row) -> Face | None:
    "The face that a row of the label table has itself, in the picture's pixels."
    if not {*BOX, *POINTS} <= set(row.index):
        return None
    try:
        box, points = ([float(row[k]) for k in names] for names in (BOX, POINTS))
    except (TypeError, ValueError):
        return None
    if not all(map(math.isfinite, box + points)):
        return None
    return Face(tuple(box), tuple(zip(points[::2], points[1::2], strict=True)), 1.0)


def usable(faces, least: int) -> Face | None:
    "The largest face, if it is large enough. One that is cut by the edge will do."
    faces = [f for f in faces or [] if f.quality_issue in ('', 'face_cut')]
    faces = [f for f in faces if min(f.box[2:]) >= least]
    return faces[0] if faces else None


def faces_of(labels: Labels, settings: dict, cache=None) -> list:  # of `Face` or None
    "The face of each row: the one it has, or the largest that is found."
    stored = [stored_face(row) for _, row in labels.rows.iterrows()]
    missing = [f for f, face in zip(labels.files, stored, strict=True) if face is None]
    found = iter(find_faces(missing, cache, progress=sys.stderr.isatty()))
    least = settings['least_face']
    return [face or usable(next(found), least) for face in stored]


def crop_of(rgb: np.ndarray, face: Face, settings: dict) -> tuple:
    "The square round a face, side × side × 3, and its box and landmarks in it."
    left, top, s = face_crop_box(face.box, settings['margin'], *rgb.shape[:2])
    crop = np.ascontiguousarray(rgb[top : top + s, left : left + s])
    most = settings['most_side']
    scale = min(1, most / s)
    if s > most:
        crop = cv2.resize(crop, (most, most), interpolation=cv2.INTER_AREA)
    x, y, w, h = face.box
    box = np.array([x - left, y - top, w, h]) * scale
    landmarks = (np.array(face.landmarks) - (left, top)) * scale
    return crop, box.round(1).tolist(), landmarks.round(1).tolist()


def own_jpeg(file: Path, crop: np.ndarray) -> bytes | None:
    "The file itself, if it is a small JPEG of just this crop: nothing is lost then."
    data = file.read_bytes()
    if data[:2] != b'\xff\xd8' or len(data) > 45_000:
        return None
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None or bgr.shape != crop.shape:
        return None
    return data if cv2.absdiff(np.ascontiguousarray(bgr[..., ::-1]), crop).max() <= 2 else None


def jpeg_of(crop: np.ndarray, quality: int) -> bytes:
    "The crop as JPEG without colour subsampling."
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    return cv2.imencode('.jpg', crop[..., ::-1], options)[1].tobytes()


def packed(item: dict, settings: dict) -> tuple | None:  # a dict for rows.json, JPEG
    "One row, packed, or None if its picture can't be read, or its crop is too small."
    try:
        rgb = read_rgb(item['file'])
    except (ImageError, OSError):
        return None
    crop, box, landmarks = crop_of(rgb, item['face'], settings)
    if len(crop) < settings['least_side']:
        return None
    data = own_jpeg(item['file'], crop) or jpeg_of(crop, settings['quality'])
    kept = {k: item[k] for k in ('path', 'fake', 'source', 'group')}
    return kept | dict(side=len(crop), box=box, landmarks=landmarks), data


def write_part(folder: Path, k: int, rows: list):
    "Write rows (dict, JPEG) as one tar, whole or not at all."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        table = [row | dict(name=f'{i:06d}.jpg') for i, (row, _) in enumerate(rows)]
        files = [(row['name'], data) for row, (_, data) in zip(table, rows, strict=True)]
        for name, data in [('rows.json', json.dumps(table).encode()), *files]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    file = write_whole(folder / f'part-{k:03d}.tar', lambda p: p.write_bytes(out.getvalue()))
    print(f'{file.name}: {len(rows)} crops, {file.stat().st_size / 1e6:.1f} MB', flush=True)


def write_parts(todo: list, folder: Path, first: int, settings: dict, workers: int):
    "Pack rows in their order into parts of at most `part_mb`, numbered from `first`."
    limit = settings['part_mb'] * 1_000_000
    rows, size, k = [], 0, first
    with ThreadPoolExecutor(workers) as pool:
        for i in range(0, len(todo), 256):  # so that few wait in memory
            for got in pool.map(lambda item: packed(item, settings), todo[i : i + 256]):
                if got is None:
                    continue
                added = len(got[1]) + 2048  # with its headers, and its line in rows.json
                if rows and size + added > limit:
                    write_part(folder, k, rows)
                    rows, size, k = [], 0, k + 1
                rows.append(got)
                size += added
    if rows:
        write_part(folder, k, rows)


def in_order(labels: Labels, settings: dict) -> list:  # of row numbers
    "Shuffled, the sources in `last` mostly behind the others: the first parts have all kinds."
    rng = random.Random(5)
    late = labels.rows.source.isin(settings['last']).tolist()
    key = [rng.random() ** 0.7 * 1.6 if x else rng.random() for x in late]
    order = sorted(range(len(key)), key=key.__getitem__)
    return [int(i) for i in order]


def items_of(labels: Labels, settings: dict, cache=None) -> list:  # of dicts
    "What there is to pack, in its order. Rows without a usable face are left out."
    faces = faces_of(labels, settings, cache)
    is_fake = labels.is_fake
    rows, files = labels.rows, labels.files  # once: the table makes the list anew each time
    items = []
    for i in in_order(labels, settings):
        if faces[i]:
            path, group = rows.path[i], rows.group[i] or rows.path[i]
            item = dict(path=path, group=group, source=rows.source[i], fake=bool(is_fake[i]))
            items.append(item | dict(file=files[i], face=faces[i]))
    return items


def read_labels(file, root, settings, most, split='train') -> Labels:
    "The rows of one split of a label file, without those that the recipe leaves out."
    try:
        labels = Labels.load(file, root).part(split)
    except (LabelError, OSError, ValueError) as error:
        stop(str(error))
    rows = labels.rows[~labels.rows.path.isin(settings['left_out'])]
    if most and most < len(rows):
        rows = rows.sample(most, random_state=0)
    return Labels(rows, labels.root, labels.label_source, labels.fake_means)


def begin(folder: Path, labels: Labels, settings: dict) -> list:  # of rows already packed
    "Check that the folder is empty, or holds parts of the same labels and settings."
    rows = sorted(zip(labels.rows.path, labels.is_fake.tolist(), strict=True))
    about = json.dumps([rows, settings], sort_keys=True).encode()
    key = hashlib.sha256(about).hexdigest()
    note = folder / 'packing.json'
    if note.exists() and read_json(note, 'what is packed here')['key'] != key:
        stop(f'{folder}: holds parts of other labels or settings. Give another folder.')
    write_json(note, dict(key=key, margin=settings['margin'], most_side=settings['most_side']))
    return [row for file in sorted(folder.glob('part-*.tar')) for row in read_part(file)]


def write_index(folder: Path) -> dict:
    "`index.json`: the parts with their checksums, and how many crops of each source there are."
    parts, counts = {}, {}
    for file in sorted(folder.glob('part-*.tar')):
        rows = read_part(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        parts[file.name] = dict(crops=len(rows), sha256=digest)
        for row in rows:
            name = f'{row["source"]} {"fake" if row["fake"] else "real"}'
            counts[name] = counts.get(name, 0) + 1
    index = dict(crops=sum(p['crops'] for p in parts.values()), counts=counts, parts=parts)
    write_json(folder / 'index.json', index)
    return index


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('labels', help='label file of `face_future labels`')
    parser.add_argument('out', type=Path, help='folder of the parts')
    parser.add_argument('--root', help='where the pictures lie, if not where the label file says')
    parser.add_argument('--recipe', default=RECIPE, help='JSON like faces.json')
    parser.add_argument('--most', type=int, help='a trial: so many rows, drawn at random')
    parser.add_argument('--cache', help='file of faces found before, if not the usual one')
    parser.add_argument('--workers', type=int, default=4, help='threads')
    parser.add_argument(
        '--split', choices=['train', 'valid'], default='train', help='to measure: valid'
    )
    a = parser.parse_args(args)
    settings = read_recipe(a.recipe)['pack']
    labels = read_labels(a.labels, a.root, settings, a.most, a.split)
    done = begin(a.out, labels, settings)
    known = {row['path'] for row in done}
    left = labels.rows[~labels.rows.path.isin(known)]
    if len(left):
        left = Labels(left, labels.root, labels.label_source, labels.fake_means)
        first = len(list(a.out.glob('part-*.tar')))
        write_parts(items_of(left, settings, a.cache), a.out, first, settings, a.workers)
    index = write_index(a.out)
    print(f'{index["crops"]} crops of {len(labels)} rows, in {len(index["parts"])} parts')


if __name__ == '__main__':
    main()
