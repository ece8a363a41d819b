"""Train a network on squares at native resolution: `python tools/gpu/native.py train parts run …`.

The other scripts scale every face to the network's input, so that a large face loses its finest
detail. This one cuts squares from the face that are not scaled. Its network is that of
nbs/parts/patches, the member of the packaged `faces` that looks at close-ups.

In a share of the couples the fake is the photograph itself, reconstructed at native resolution by
an autoencoder. With `--reconstructions 1` the training has no picture of any generator, so that all
of them are unseen. `parts` are packed without shrinking: see README.md. Two processor cores are
enough.

`member` then turns the trained weights into a member of an ensemble: on close-ups of held-out
photographs its logit has mean 0 and standard deviation 1. So its share in the sum is in standard
deviations, and photographs with a close-up score no higher on average than those without.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import weights
from common import (
    RECIPE,
    need,
    read_recipe,
    say_end,
    stop,
    stopped_by_signals,
    write_whole,
)
from left_out import fill_body
from nets import Autoencoder, fill, normalised, read_state
from pictures import compressed, corrupted, enlarged, resized
from plain_run import PlainRun
from safetensors.torch import save_file
from teaching import loader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from train import Learner, margin_of

from data import Crops, PairStore, Sources, crops_without, read_parts, safely, worker_seed
from face_future.close_ups import close_up_box
from face_future.model import save_weights
from face_future.model_config import find_weights
from face_future.patches import Patches, evidence

ARCH = 'patches'
CLOSE_UP = 345  # side in pixels from which a face's crop has a close-up in `predict`
SETTINGS = dict(rate=1e-3, weight_decay=0.03, clip=2.0, smoothing=0.04)
SCHEDULE = dict(warmup=100, flat=0.2, least_rate=0.01, ema=0.998)
SIZE = 128  # pixels of a square
KEPT = 256  # pixels of a reconstructed square, from which smaller ones are cut
MADE = 1  # squares of each photograph are reconstructed
SQUARES = 2  # of each picture that is read
NATIVE = 0.6  # of the squares are not scaled; the others are larger ones, scaled down


def face_square(rgb: np.ndarray, box, side: int, rng: random.Random) -> np.ndarray:
    "A square of so many pixels, or as many as there are, whose middle lies in the face's box."
    height, width = rgb.shape[:2]
    side = min(side, height, width)
    x, y, w, h = box
    left, top = x + rng.random() * w - side / 2, y + rng.random() * h - side / 2
    left = round(min(max(left, 0), width - side))
    top = round(min(max(top, 0), height - side))
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


def draw_side(longest: float, rng: random.Random) -> int:
    "How large a square is cut: `SIZE`, or larger ones up to `longest` pixels."
    if rng.random() < NATIVE or longest <= SIZE:
        return SIZE
    return round(SIZE * (longest / SIZE) ** rng.random())


def softened(rgb: np.ndarray, rng: random.Random) -> np.ndarray:
    "A square of poor quality: slightly blurred, enlarged, or saved at a low JPEG quality."
    how = rng.random()
    if how < 0.4:
        return cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.5))
    if how < 0.65:
        return enlarged(rgb, rng, 2.2)
    return compressed(rgb, rng, 25, 70)


def photographs(crops, most: int | None, seed: int) -> np.ndarray:  # row numbers
    "All photographs, or so many of each source, drawn at random."
    photos = np.flatnonzero(~crops.fake)
    if most is None:
        return photos
    photos = np.random.default_rng(seed).permutation(photos)
    sources = crops.source[photos]
    return np.sort(np.concatenate([photos[sources == s][:most] for s in np.unique(sources)]))


def reconstruct_all(crops, files: list, folder: Path, a) -> PairStore:
    "Squares of photographs and their reconstructions. A second call continues a stopped one."
    todo = np.repeat(photographs(crops, a.most_pairs, a.seed), MADE)
    store = PairStore(folder, len(todo), KEPT)
    if not (folder / 'pairs.meta').exists():
        store.create()
    net = Autoencoder(*files).to(memory_format=torch.channels_last).eval()
    for k in np.flatnonzero(store.meta[:, 0] == 0).tolist():
        rng = random.Random(1000 * a.seed + k)
        torch.manual_seed(1000 * a.seed + k)
        row = int(todo[k])
        photo = face_square(crops.read(row), crops.box[row], KEPT, rng)
        side = len(photo) // 8 * 8
        photo = np.ascontiguousarray(photo[:side, :side])
        noise = torch.tensor([rng.uniform(0, 0.3) if rng.random() < 0.85 else 0.0])
        batch = torch.from_numpy(photo)[None]
        fake = net.reconstruct(batch, noise, side, cubic=True, twice=rng.random() < 0.12)
        store.put(k, row, photo, fake[0].numpy(), False)
        if sys.stdout.isatty() or (k + 1) % 200 == 0:
            print(f'{k + 1} of {len(todo)} squares reconstructed', end='\r', flush=True)
    print(f'{len(todo)} squares reconstructed', flush=True)
    return store


class Squares(IterableDataset):
    "Endless batches: B × S × S × 3 uint8, and B bool: is it fake. A couple lies side by side."

    def __init__(self, crops, store: PairStore | None, recipe: dict, a):
        self.crops = crops
        self.store = store
        self.share = a.reconstructions if store else 0
        self.sources = Sources(crops, recipe) if self.share < 1 else None
        self.soft = a.soft
        self.batch = a.batch
        self.seed = a.seed
        self.by_source = {}  # the numbers of the reconstructions
        for k, row in enumerate(store.meta[:, 2].tolist() if store else []):
            self.by_source.setdefault(crops.source[row], []).append(k)

    def _reconstructed(self, rng) -> list:  # of couples
        "Squares of a photograph and the same of its reconstruction. Small sources count."
        names = list(self.by_source)
        [name] = rng.choices(names, [len(self.by_source[n]) ** 0.5 for n in names])
        photo, fake, *_ = self.store.get(rng.choice(self.by_source[name]))
        everywhere = (0, 0, len(photo), len(photo))
        couples = []
        for _ in range(SQUARES):
            side, seed = draw_side(len(photo), rng), rng.getrandbits(32)
            same = [face_square(x, everywhere, side, random.Random(seed)) for x in (photo, fake)]
            couples.append(same)
        return couples

    def _apart(self, rng) -> list:  # of couples
        "Squares of a photograph and of a fake of its family."
        pictures = [(self.crops.read(i), self.crops.box[i]) for i in self.sources.draw_two(rng)]
        couples = []
        for _ in range(SQUARES):
            sides = [draw_side(len(rgb), rng) for rgb, _ in pictures]
            cuts = zip(pictures, sides, strict=True)
            couples.append([face_square(*picture, side, rng) for picture, side in cuts])
        return couples

    def couples(self, rng) -> list:
        "Couples of SIZE × SIZE × 3. Half of those of one picture get the same corruption."
        one = rng.random() < self.share
        out = []
        for two in self._reconstructed(rng) if one else self._apart(rng):
            seeds = [rng.getrandbits(32) for _ in two]
            if one and rng.random() < 0.5:
                seeds[1] = seeds[0]
            mirrored = rng.random() < 0.5
            for x, seed, soft in zip(two, seeds, (self.soft, self.soft / 2), strict=True):
                own = random.Random(seed)
                if soft and own.random() < soft:  # without it, a seed gives the same as before
                    x = softened(x, own)
                x = resized(corrupted(x, own, 0.7, SIZE), SIZE)
                out.append(np.ascontiguousarray(x[:, ::-1]) if mirrored else x)
        return out

    def __iter__(self):
        rng = random.Random(worker_seed(self.seed))
        fake = torch.arange(self.batch) % 2 == 1
        while True:
            x = []
            while len(x) < self.batch:
                x += safely(lambda: self.couples(rng))
            yield torch.from_numpy(np.stack(x[: self.batch])), fake


class PatchLearner(Learner):
    "The network, its optimizer, and the moving average of its weights."

    def __init__(self, init):
        net = Patches()
        if init:
            state = read_state(init, 'weights to begin with')
            own = {k: v for k, v in state.items() if k in net.state_dict()}
            fill_body(net, own, init)
        self.net = nn.ModuleDict(dict(net=net)).to(memory_format=torch.channels_last).train()
        self.clip = SETTINGS['clip']
        how = dict(lr=SETTINGS['rate'], weight_decay=SETTINGS['weight_decay'])
        groups = [dict(params=list(self.net.parameters()), peak=SETTINGS['rate'])]
        self.optimizer = torch.optim.AdamW(groups, **how)
        self.start_average()

    def learn(self, x, fake, how: dict, rate: float) -> tuple:  # loss, share on its side of 0
        "One step on a batch."
        logit = margin_of(self.net['net'](normalised(x, how['mean'], how['std'])))
        target = fake * (1 - SETTINGS['smoothing']) + SETTINGS['smoothing'] / 2
        loss = F.binary_cross_entropy_with_logits(logit, target)
        self.step(loss, rate)
        return loss.item(), ((logit > 0) == fake).float().mean().item()


class Run(PlainRun):
    "A run of `Patches` on squares, of so many images."

    columns = ('loss', 'right')
    schedule = SCHEDULE
    fixed = 'left_out', 'reconstructions', 'most_pairs', 'soft', 'seed'  # throughout a run

    def __init__(self, a):
        torch.manual_seed(a.seed)
        super().__init__(a, PatchLearner(a.init))
        recipe = read_recipe(a.recipe)
        self.settings = weights.settings_for(ARCH, None, SIZE)
        if a.resume:
            self.resume()
        crops = crops_without(a.parts, a.left_out, recipe)
        store = None
        if a.autoencoder:
            store = reconstruct_all(crops, a.autoencoder, a.out / 'pairs', a)
        self.batches = iter(loader(Squares(crops, store, recipe, a), a.workers, 'cpu'))

    def options(self) -> dict:
        return {k: getattr(self.a, k) for k in self.fixed}

    def done(self) -> float:
        return self.images / self.a.images

    def learn(self, x, fake, rate: float) -> tuple:
        "One step: loss, and the share on its side of 0."
        return self.learner.learn(x, fake, self.settings['preprocess'], rate)

    def save_weights(self):
        recipe = dict(script='native.py', images=self.images)
        recipe |= SETTINGS | SCHEDULE | self.options()
        about = dict(face_future=json.dumps(self.settings | dict(recipe=recipe)))
        state = weights.halved(self.learner.weights())
        state = {k.removeprefix('net.'): v for k, v in state.items()}
        file = self.a.out / 'native.safetensors'
        write_whole(file, lambda path: save_file(state, path, about))


def read_patches(file):  # the network, and its settings
    "The weights that `train` or `member` wrote."
    what = 'weights of native.py'
    settings = weights.inside(need(file, what))
    return fill(Patches(), read_state(file, what), file).eval(), settings


def middle(rgb: np.ndarray, box, most: int = 640) -> np.ndarray:
    "At most so many pixels of the middle of a face."
    left, top, w, h = (round(float(v)) for v in box)
    height, width = min(h, most), min(w, most)
    left, top = max(0, left + (w - width) // 2), max(0, top + (h - height) // 2)
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def close_up(rgb: np.ndarray, box, size: int) -> np.ndarray:
    "A face's close-up as `predict` cuts it, or the whole of a picture that is smaller."
    left, top, side = close_up_box(box, size, *rgb.shape[:2]) or (0, 0, size)
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


@torch.inference_mode()
def logit_of(net: Patches, square: np.ndarray, how: dict) -> float:
    "The network's logit of a square, or of any other part of a picture."
    x = normalised(torch.from_numpy(square)[None], how['mean'], how['std'])
    return evidence(net, x).mean().item()


def measure(a):
    "Write the network's logits of each packed face: source, group, fake, middle, close_up."
    net, settings = read_patches(a.weights)
    how = settings['preprocess']
    crops = Crops(read_parts(a.parts))
    rows = []
    for i in range(len(crops)):
        rgb, box = crops.read(i), crops.box[i]
        logits = [logit_of(net, cut, how) for cut in (middle(rgb, box), close_up(rgb, box, a.size))]
        values = (round(value, 4) for value in logits)
        rows.append((crops.source[i], crops.group[i], bool(crops.fake[i]), *values))
    lines = [('source', 'group', 'fake', 'middle', 'close_up'), *rows]
    text = ''.join(','.join(map(str, line)) + '\n' for line in lines)
    write_whole(a.out, lambda path: path.write_text(text, encoding='utf-8'))
    print(f'{a.out.name}: {len(rows)} faces')


def make_member(a):
    "Scale the last layer by close-ups of photographs, and write a member's settings."
    net, trained = read_patches(a.weights)
    crops = Crops(read_parts(a.parts))
    settings = weights.settings_for(ARCH, a.beside or find_weights('faces'), a.size)
    how = settings['preprocess']
    by_group = {}  # of a group, for instance all pictures of one person: they count once
    for i in np.flatnonzero(~crops.fake):
        logit = logit_of(net, close_up(crops.read(i), crops.box[i], a.size), how)
        by_group.setdefault((crops.source[i], crops.group[i]), []).append(logit)
    mean = float(np.mean([np.mean(v) for v in by_group.values()]))
    spread = float(np.mean([np.mean((np.array(v) - mean) ** 2) for v in by_group.values()]) ** 0.5)
    with torch.no_grad():
        net.classifier.weight[1, -1] -= mean
        net.classifier.weight /= spread
    photos = sum(map(len, by_group.values()))
    scaled = dict(
        photographs=photos, groups=len(by_group), mean=round(mean, 4), spread=round(spread, 4)
    )
    settings['recipe'] = trained.get('recipe', {}) | dict(scaled=scaled)
    how['close_up'] = CLOSE_UP
    save_weights(net, settings, a.out, half=True)
    print(f'{a.out.name}: mean {mean:.2f} and spread {spread:.2f} of {photos} photographs')


def arguments(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser('train', help='train, or continue with --resume')
    train.set_defaults(run=train_until_done)
    add = train.add_argument
    add('parts', help='folder of part-*.tar, see pack.py')
    add('out', type=Path, help='folder of the run')
    add('--images', type=int, required=True, help='length of the whole run')
    add('--init', help="weights to begin with, in timm's names, such as ImageNet's (default: none)")
    add('--autoencoder', nargs=2, metavar=('ENCODER', 'DECODER'), help='makes reconstructions')
    add('--reconstructions', type=float, default=0.5, help='their share of couples (default: .5)')
    text = 'photographs of one source that are reconstructed, at most (default: all)'
    add('--most-pairs', type=int, help=text)
    text = 'share of photographs made unsharp or saved at low quality; half of it of fakes'
    add('--soft', type=float, default=0, help=text)
    add('--left-out', help='a family of the recipe to withhold')
    add('--resume', action='store_true', help='continue the run in that folder')
    add('--recipe', default=RECIPE, help='JSON, for its families (default: faces.json)')
    add('--batch', type=int, default=32, help='squares a step')
    add('--seed', type=int, default=1)
    add('--workers', type=int, default=1, help='processes that make squares (0: none)')
    add('--log-every', type=int, default=100, help='steps')
    test = commands.add_parser('measure', help='write the logits of packed faces')
    test.set_defaults(run=measure)
    test.add_argument('parts', help='folder of part-*.tar, packed with --split valid')
    test.add_argument('weights', help='native.safetensors of a run')
    test.add_argument('out', type=Path, help='CSV, a row a face')
    member = commands.add_parser('member', help='make a member of an ensemble of trained weights')
    member.set_defaults(run=make_member)
    member.add_argument('parts', help='folder of part-*.tar, packed with --split valid')
    member.add_argument('weights', help='native.safetensors of a run')
    member.add_argument('out', type=Path, help='safetensors, for face_future ensemble')
    text = "weights whose crop the ensemble has (default: the packaged faces')"
    member.add_argument('--beside', help=text)
    for command in (test, member):
        text = 'side of a close-up, pixels (default: 224)'
        command.add_argument('--size', type=int, default=224, help=text)
    return parser.parse_args(args)


def check_training(a):
    "The program ends with a sentence for options that can't work."
    if not 0 <= a.reconstructions <= 1:
        stop(f'--reconstructions {a.reconstructions}: a share, from 0 to 1.')
    if not 0 <= a.soft <= 1:
        stop(f'--soft {a.soft}: a share, from 0 to 1.')
    if a.most_pairs is not None and a.most_pairs < 1:
        stop(f'--most-pairs {a.most_pairs}: must be at least 1.')
    if a.batch < 2 or a.batch % 2:
        stop(f'--batch {a.batch}: must be even, for couples.')
    if a.reconstructions == 1 and not a.autoencoder:
        stop('--reconstructions 1 needs --autoencoder.')
    if not a.resume and (a.out / 'checkpoint.pth').exists():
        stop(f'{a.out}: holds a run already. Go on with --resume, or give another folder.')


def train_until_done(a) -> Run:
    "Train. SIGTERM and Ctrl-C end the run with a checkpoint."
    check_training(a)
    a.out.mkdir(parents=True, exist_ok=True)
    run = Run(a)
    with stopped_by_signals(run):
        run.train()
    say_end(run, a.out)
    return run


def main(args=None):
    a = arguments(args)
    return a.run(a)


if __name__ == '__main__':
    main()
