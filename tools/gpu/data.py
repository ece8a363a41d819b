"""Parts of packed crops, and the worker processes that make batches of couples from them.

A part is a plain tar of JPEGs and `rows.json`, which has for each JPEG: its name, whether it is
fake, its source, group, side, face box and landmarks. The parts are mapped into memory, not
unpacked. A batch holds couples: a photograph and a fake beside each other, so it has as many of
each.
"""

import hashlib
import json
import random
import tarfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from common import stop
from pictures import corrupted, cut, draw_geometry, low_face, pasted, resized, self_blend
from torch.utils.data import IterableDataset, get_worker_info

APART, LATENT, BLEND = 0, 1, 2  # how the two pictures of a couple are related


@cache  # one for each process: a memory map can't be sent to a worker
def mapped(file: str, changed: int) -> np.memmap:
    "A file's bytes, mapped into memory. `changed` (see `os.stat`) tells a file from its successor."
    return np.memmap(file, np.uint8, 'r')


def read_part(file: Path) -> list:  # of dicts: the row, its file, and offset and bytes in it
    "The rows of one part. The program ends if it is damaged."
    try:
        with tarfile.open(file, 'r:') as tar:
            members = {m.name: m for m in tar.getmembers()}
            rows = json.load(tar.extractfile(members['rows.json']))
        at = [(members[r['name']].offset_data, members[r['name']].size) for r in rows]
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        stop(f'{file}: not a part that pack.py wrote, or cut off ({error}). Carry it again.')
    place = dict(file=str(file), changed=file.stat().st_mtime_ns)
    return [r | place | dict(at=a, size=n) for r, (a, n) in zip(rows, at, strict=True)]


def read_parts(folder: str | Path) -> list:  # of dicts, see `read_part`
    "The rows of all parts in a folder."
    files = sorted(Path(folder).glob('part-*.tar'))
    if not files:
        stop(f'{folder}: no part-*.tar there. The script pack.py writes them.')
    return [row for file in files for row in read_part(file)]


class Crops:
    "The packed crops: squares of a face, with its box and landmarks in the crop's pixels."

    def __init__(self, rows: list):
        self.place = [(r['file'], r['changed'], r['at'], r['size']) for r in rows]
        self.side = np.array([r['side'] for r in rows])
        self.box = np.float32([r['box'] for r in rows])  # N × 4: left, top, width, height
        self.landmarks = np.float32([r['landmarks'] for r in rows])  # N × 5 × 2
        self.fake = np.array([r['fake'] for r in rows], bool)
        self.source = np.array([r['source'] for r in rows])
        self.group = np.array([r['group'] for r in rows])

    def __len__(self):
        return len(self.place)

    def read(self, i: int) -> np.ndarray:
        "Crop i: side × side × 3 uint8 RGB."
        file, changed, at, size = self.place[i]
        bgr = cv2.imdecode(mapped(file, changed)[at : at + size], cv2.IMREAD_COLOR)
        if bgr is None:
            raise ValueError(f'{Path(file).name}: crop {i} is damaged')
        return np.ascontiguousarray(bgr[..., ::-1])

    def folds(self, k: int) -> np.ndarray:  # N, 0 to k - 1
        "A fold for each crop, by its group's name."
        digits = [
            hashlib.md5(g.encode(), usedforsecurity=False).hexdigest()[:6]
            for g in self.group.tolist()
        ]
        return np.array([int(d, 16) % k for d in digits])


def may_see(crops: Crops, left_out: dict) -> np.ndarray:  # N bool
    "Which crops do not belong to a family: {'fake': sources, 'real': sources}."
    hidden = np.zeros(len(crops), bool)
    for label, is_fake in (('fake', True), ('real', False)):
        hidden |= np.isin(crops.source, left_out.get(label, [])) & (crops.fake == is_fake)
    return ~hidden


def crops_without(folder: str | Path, family: str | None, recipe: dict) -> Crops:
    "The crops of all parts, but for a family of the recipe's `left_out`."
    rows = read_parts(folder)
    if family is None:
        return Crops(rows)
    if family not in recipe['left_out']:
        known = ', '.join(recipe['left_out'])
        stop(f'--left-out {family}: the recipe has no such family. It has: {known}.')
    may = may_see(Crops(rows), recipe['left_out'][family])
    return Crops([row for row, seen in zip(rows, may, strict=True) if seen])


class PairStore:
    "Photographs and reconstructions, made on the GPU while training goes on, as a ring in a file."

    def __init__(self, folder: str | Path, kept: int, side: int):
        self.folder = str(folder)
        self.kept = kept
        self.shape = kept, 2, 3 * side * side

    def create(self):
        "Empty files of full length. On Linux they take space only as they fill."
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        for name, size in (('pairs.bin', int(np.prod(self.shape))), ('pairs.meta', 16 * self.kept)):
            with open(f'{self.folder}/{name}', 'wb') as f:
                f.truncate(size)

    @property
    def meta(self) -> np.ndarray:
        """`kept` × 4 int32: how often its place was filled (0: it is not ready), its side, the
        photograph's row, is it pasted into the face."""
        return _writable(f'{self.folder}/pairs.meta', 'int32', (self.kept, 4))

    @property
    def pixels(self) -> np.ndarray:
        return _writable(f'{self.folder}/pairs.bin', 'uint8', self.shape)

    def ready(self) -> int:
        return int((self.meta[:, 0] > 0).sum())

    def put(self, k: int, row: int, photo: np.ndarray, fake: np.ndarray, is_pasted: bool):
        "Write pair k (modulo `kept`), both side × side × 3, in the place of an earlier one."
        lap, k = divmod(k, self.kept)
        n = photo.size
        self.meta[k, 0] = 0
        self.pixels[k, 0, :n] = photo.reshape(-1)
        self.pixels[k, 1, :n] = fake.reshape(-1)
        self.meta[k] = lap + 1, len(photo), row, is_pasted

    def get(self, k: int) -> tuple:  # photograph, reconstruction, row, is it pasted
        "Pair k. Raises a `ValueError` if another one took its place meanwhile."
        lap, side, row, is_pasted = about = self.meta[k].tolist()
        halves = self.pixels[k, :, : 3 * side * side]
        photo, fake = np.array(halves).reshape(2, side, side, 3)
        if not lap or self.meta[k].tolist() != about:
            raise ValueError(f'pair {k} was replaced while it was read')
        return photo, fake, row, bool(is_pasted)


@cache
def _writable(file, dtype, shape):
    return np.memmap(file, dtype, 'r+', shape=shape)


class Sources:
    "The crops by source and class, and how often each is sampled."

    def __init__(self, crops: Crops, recipe: dict):
        self.cells = {}
        for source in np.unique(crops.source).tolist():
            for fake in (False, True):
                rows = np.flatnonzero((crops.source == source) & (crops.fake == fake))
                if len(rows) >= 4:
                    self.cells[source, fake] = rows
        self.photos = [(s, False) for s, fake in self.cells if not fake]
        self.boost = recipe['boost']
        self.families = [f for f in map(self._family, recipe['families']) if f]
        if not self.families:
            stop('No family of the recipe has four photographs and four fakes in these parts.')

    def _family(self, family):
        "Share, cells of photographs, cells of fakes, or None where one of the two is missing."
        real = [(s, False) for s in family['real'] if (s, False) in self.cells]
        fake = [(s, True) for s in family['fake'] if (s, True) in self.cells]
        return (family['share'], real, fake) if real and fake else None

    def weight(self, cell: tuple) -> float:
        "The square root of its size, so that small sources count. Some are boosted."
        source, fake = cell
        boost = self.boost.get(source, 1) if fake else 1
        return len(self.cells[cell]) ** 0.5 * boost

    def draw(self, cells: list, rng: random.Random) -> int:
        "A row of one of some cells."
        [cell] = rng.choices(cells, [self.weight(c) for c in cells])
        return int(rng.choice(self.cells[cell]))

    def draw_two(self, rng: random.Random) -> tuple:  # of rows
        "A photograph and a fake of one family."
        [(_, real, fake)] = rng.choices(self.families, [f[0] for f in self.families])
        return self.draw(real, rng), self.draw(fake, rng)


class Couples:
    "Samples couples: a photograph and a fake of its family, or one made of the photograph."

    def __init__(self, crops: Crops, pairs: PairStore | None, recipe: dict, seed: int):
        self.crops = crops
        self.pairs = pairs
        self.recipe = recipe
        self.sources = Sources(crops, recipe)
        self.rng = random.Random(seed)
        self.enough = False

    def _pairs_ready(self):
        if self.pairs and not self.enough:
            self.enough = self.pairs.ready() > self.recipe['pairs']['ready']
        return self.enough

    def draw(self) -> tuple:  # kind, then row and picture of each
        "Two squares of size × size × 3, and what they are."
        u = self.rng.random()
        latent = self.recipe['latent_share'] if self.pairs else 0
        if u < latent and self._pairs_ready():
            kind, rows, two = LATENT, *self._latent()
        elif u < latent + self.recipe['blend_share']:
            kind, rows, two = BLEND, *self._blend(self_blend)
        elif u < latent + self.recipe['blend_share'] + self.recipe.get('low_face_share', 0):
            kind, rows, two = BLEND, *self._blend(low_face)
        else:
            kind, rows, two = APART, *self._apart()
        return kind, rows, [resized(x, self.recipe['size']) for x in self._corrupted(kind, two)]

    def _latent(self):
        ready = np.flatnonzero(self.pairs.meta[:, 0])
        a, b, row, is_pasted = self.pairs.get(int(self.rng.choice(ready)))
        scale = len(a) / self.crops.side[row]
        if is_pasted:
            b = pasted(a, b, self.crops.landmarks[row] * scale, self.rng)
        g = draw_geometry(self.rng, zoom=not is_pasted)
        return (row, row), [cut(x, self.crops.box[row] * scale, g) for x in (a, b)]

    def _blend(self, blend):
        "A photograph and its `blend`, or a self-blend where `blend` returns None."
        row = self.sources.draw(self.sources.photos, self.rng)
        a = self.crops.read(row)
        b = blend(a, self.crops.landmarks[row], self.rng)
        if b is None:
            b = self_blend(a, self.crops.landmarks[row], self.rng)
        g = draw_geometry(self.rng, zoom=False)
        return (row, row), [cut(x, self.crops.box[row], g) for x in (a, b)]

    def _apart(self):
        rows = self.sources.draw_two(self.rng)
        cuts = [(self.crops.read(r), self.crops.box[r], draw_geometry(self.rng)) for r in rows]
        return rows, [cut(*c) for c in cuts]

    def _corrupted(self, kind, two):
        "Both corrupted. Half of the couples of one picture get the same corruption."
        seeds = [self.rng.getrandbits(32) for _ in two]
        if kind != APART and self.rng.random() < 0.5:
            seeds[1] = seeds[0]
        how = self.recipe['corruption'], self.recipe['size']
        return [corrupted(x, random.Random(s), *how) for x, s in zip(two, seeds, strict=True)]


def safely(draw):
    "The result of `draw()`, repeated if OpenCV fails on an odd face. The fifth error is raised."
    for left in range(4, -1, -1):
        try:
            return draw()
        except (cv2.error, ValueError):
            if not left:
                raise


def worker_seed(seed: int) -> int:
    "Another seed for each worker process."
    info = get_worker_info()
    return 1000 * seed + (info.id if info else 0)


class Batches(IterableDataset):
    "Endless batches: B × S × S × 3 uint8, and B × 3 int64: is it fake, its kind, its row."

    def __init__(self, crops: Crops, pairs: PairStore | None, recipe: dict, batch: int, seed: int):
        self.given = crops, pairs, recipe
        self.batch = batch
        self.seed = seed

    def __iter__(self):
        couples = Couples(*self.given, worker_seed(self.seed))
        size = self.given[2]['size']
        while True:
            x = np.empty((self.batch, size, size, 3), np.uint8)
            about = np.empty((self.batch, 3), np.int64)
            for i in range(0, self.batch, 2):
                kind, rows, two = safely(couples.draw)
                x[i : i + 2] = two
                about[i : i + 2] = [(fake, kind, row) for fake, row in enumerate(rows)]
            yield torch.from_numpy(x), torch.from_numpy(about)


class Photographs(IterableDataset):
    "Endless batches of photographs to be reconstructed: all of one side, in one way."

    def __init__(self, crops: Crops, recipe: dict, seed: int):
        self.crops = crops
        self.recipe = recipe
        self.seed = seed

    def __iter__(self):
        rng = random.Random(worker_seed(self.seed))
        sources = Sources(self.crops, self.recipe)
        fits = ~np.isin(self.crops.group, self.recipe['pairs']['left_out_groups'])
        fits &= self.crops.side >= self.recipe['pairs']['least_photo']
        misses = 0
        while misses < 200:
            batch = self._draw(rng, sources, fits)
            misses = 0 if batch else misses + 1
            if batch:
                yield batch
        raise ValueError('No photographs in the parts are large enough to be reconstructed.')

    def _draw(self, rng, sources, fits):
        "A dict of a batch, or None where too few photographs are large enough for the side."
        p = self.recipe['pairs']
        [kind] = rng.choices(list(p['kinds']), list(p['kinds'].values()))
        low, high = np.log(p['least_side']), np.log(p['most_side'])
        side = 8 * round(np.exp(rng.uniform(low, high)) / 8)
        rows = []
        for _ in range(50 * p['batch']):
            i = sources.draw(sources.photos, rng)
            if fits[i] and self.crops.side[i] * p['enlarged'] >= side:
                rows.append(i)
            if len(rows) == p['batch']:
                return self._read(rng, rows, side, kind)

    def _read(self, rng, rows, side, kind):
        p = self.recipe['pairs']
        coarse = max(48, 8 * round(side * rng.uniform(0.35, 0.9) / 8))
        coarse = min(side, coarse) if kind == 'coarse' else side
        crops = [self.crops.read(i) for i in rows]
        noise = [rng.uniform(0, p['noise']) if rng.random() < p['noisy'] else 0.0 for _ in rows]
        return dict(
            rows=torch.tensor(rows),
            photo=torch.from_numpy(np.stack([resized(x, side) for x in crops])),
            small=torch.from_numpy(np.stack([resized(x, coarse) for x in crops])),
            noise=torch.tensor(noise),
            pasted=kind == 'pasted',
            cubic=rng.random() < p['cubic'],
            twice=rng.random() < p['twice'],
        )
