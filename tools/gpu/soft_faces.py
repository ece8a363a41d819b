"""Train the network for soft faces: `python tools/gpu/soft_faces.py parts run --minutes 30`.

The network learns whether the face is softer than its surroundings, as it is where a swap of 128
pixels was enlarged. The fakes are made of the photographs (`low_face`), and with `--swaps` a share
of the couples are photographs and real swaps of the source inswapper. There are no other fakes. Two
processor cores are enough: face_future's `detail_grid` sees 100 pictures a second.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import pictures
import timm
import torch
import weights
from common import RECIPE, read_recipe, say_end, stop, stopped_by_signals
from nets import fill, member_of, normalised, read_state
from pictures import (
    blurred,
    corrupted,
    cut,
    draw_geometry,
    low_face,
    resized,
    skin_smoothed,
    touched,
)
from plain_run import PlainRun
from teaching import loader
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from train import Learner, margin_of

import face_future.detail  # noqa: F401 (timm learns the network's name)
from data import Crops, Sources, read_parts, safely, worker_seed

ARCH = 'detail_grid'
SETTINGS = dict(rate=1.5e-3, weight_decay=0.02, drop=0.2, clip=1.0, smoothing=0.02)
BLURRED = 0.4  # of the photographs outside the couples: softness everywhere is no evidence
SWAPS = 'inswapper'  # the source of the real swaps, and of photographs of the same set
PLACES = 6  # a photograph and a soft face, twice, and two photographs more
SCHEDULE = dict(warmup=200, flat=0.2, least_rate=0.01, ema=0.998)


class SoftFaces(IterableDataset):
    """Endless batches: B × S × S × 3 uint8, and B bool: is the face soft.

    A third are soft. Before each is the photograph that it was made of, or another one of the same
    source, and after two of these couples come two photographs of any source and size."""

    def __init__(self, crops: Crops, recipe: dict, batch: int, swaps: float, seed: int):
        self.crops = crops
        self.sources = Sources(crops, recipe)
        self.size = recipe['size']
        self.batch = batch
        self.swaps = swaps
        self.seed = seed
        eyes = np.linalg.norm(crops.landmarks[:, 1] - crops.landmarks[:, 0], axis=1)
        self.large = ~crops.fake & (eyes >= pictures.LEAST_EYES)
        if not self.large.any():
            stop('No photograph in these parts is large enough for its face to be made softer.')
        if swaps and not {(SWAPS, False), (SWAPS, True)} <= set(self.sources.cells):
            stop(f'These parts lack swaps and photographs of {SWAPS}: leave --swaps away.')

    def _square(self, i, picture, g):
        return cut(picture, self.crops.box[i], g)

    def _softened(self, rng):
        "A photograph, and the same with a soft face."
        i = self.sources.draw(self.sources.photos, rng)
        while not self.large[i]:
            i = self.sources.draw(self.sources.photos, rng)
        photo = self.crops.read(i)
        soft = low_face(photo, self.crops.landmarks[i], rng)
        g = draw_geometry(rng, zoom=False)
        return self._square(i, photo, g), self._square(i, soft, g)

    def _swapped(self, rng):
        "A photograph, and a swap of another one."
        rows = [self.sources.draw([(SWAPS, fake)], rng) for fake in (False, True)]
        return [self._square(i, self.crops.read(i), draw_geometry(rng, zoom=False)) for i in rows]

    def couple(self, rng: random.Random) -> list:
        "A photograph and a soft face. Half of the time both get the same corruption."
        two = self._swapped(rng) if rng.random() < self.swaps else self._softened(rng)
        seeds = [rng.getrandbits(32)] * 2 if rng.random() < 0.5 else map(rng.getrandbits, (32, 32))
        return [touched(x, random.Random(s)) for x, s in zip(two, seeds, strict=True)]

    def other(self, rng: random.Random) -> np.ndarray:
        """Any photograph, half of them small ones, and half of them corrupted as in all training.

        Where a face was enlarged, or the picture blurred, no loss of detail can be seen, and there
        must be no evidence. With real swaps, some are photographs of the swaps' own set."""
        if rng.random() < self.swaps / 2:
            i = self.sources.draw([(SWAPS, False)], rng)
        else:
            i = self.sources.draw(self.sources.photos, rng)
            i = self._draw_small(rng, i) if rng.random() < 0.5 else i
        photo = self.crops.read(i)
        if rng.random() < 0.15:
            photo = skin_smoothed(photo, self.crops.landmarks[i], rng)
        photo = self._square(i, photo, draw_geometry(rng))
        if rng.random() < BLURRED:
            photo = blurred(photo, rng, max(0.35, 2.2 * len(photo) / 224))
        if rng.random() < 0.5:
            return touched(photo, rng)
        return corrupted(photo, rng, 1, self.size)

    def _draw_small(self, rng, i):
        "Another photograph whose face is small, unless there is none."
        for _ in range(50):
            if not self.large[i]:
                break
            i = self.sources.draw(self.sources.photos, rng)
        return i

    def six(self, rng: random.Random) -> list:
        "Two couples and two others."
        return [*self.couple(rng), *self.couple(rng), self.other(rng), self.other(rng)]

    def __iter__(self):
        rng = random.Random(worker_seed(self.seed))
        place = torch.arange(self.batch) % PLACES
        is_soft = (place == 1) | (place == 3)
        while True:
            sixes = [safely(lambda: self.six(rng)) for _ in range(self.batch // PLACES)]
            squares = [x for six in sixes for x in six]
            x = np.stack([resized(x, self.size) for x in squares])
            yield torch.from_numpy(x), is_soft


class GridLearner(Learner):
    "The network, its optimizer, and the moving average of its weights. The filters stay."

    def __init__(self):
        net = timm.create_model(ARCH, num_classes=2, drop_rate=SETTINGS['drop'])
        net.conv_stem.weight.requires_grad_(False)
        with torch.no_grad():  # evidence speaks for a fake
            net.classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            net.classifier.bias.copy_(torch.tensor([1.0, -1.0]))
        self.net = torch.nn.ModuleDict(dict(net=net)).to(memory_format=torch.channels_last).train()
        self.clip = SETTINGS['clip']
        how = dict(lr=SETTINGS['rate'], weight_decay=SETTINGS['weight_decay'], betas=(0.9, 0.99))
        own = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([dict(params=own, peak=SETTINGS['rate'])], **how)
        self.start_average()

    def learn(self, x: torch.Tensor, is_soft: torch.Tensor, how: dict, rate: float) -> tuple:
        "One step on a batch: its loss, and the logits."
        with torch.autocast('cpu', torch.bfloat16):
            logits = self.net['net'](normalised(x, how['mean'], how['std']))
        logit = margin_of(logits.float())
        target = is_soft * (1 - SETTINGS['smoothing']) + SETTINGS['smoothing'] / 2
        loss = F.binary_cross_entropy_with_logits(logit, target)
        self.step(loss, rate)
        return loss.item(), logit.detach()


class Run(PlainRun):
    "A run of `DetailGrid` on soft faces, of so many minutes."

    columns = ('loss', 'soft', 'other', 'spread_of_others')
    schedule = SCHEDULE

    def __init__(self, a):
        torch.manual_seed(a.seed)
        super().__init__(a, GridLearner())
        self.recipe = read_recipe(a.recipe)
        if a.init:
            net = self.learner.net['net']
            fill(net, member_of(read_state(a.init, 'weights to begin with'), net), a.init)
            self.learner.start_average()
        self.settings = weights.settings_for(ARCH, None, self.recipe['size'])
        crops = Crops(read_parts(a.parts))
        batches = SoftFaces(crops, self.recipe, a.batch, a.swaps, a.seed)
        self.batches = iter(loader(batches, a.workers, 'cpu'))

    def done(self) -> float:
        return self.seconds / 60 / self.a.minutes

    def learn(self, x, is_soft, rate: float) -> tuple:
        "One step: loss, mean logit of soft faces and of others, and the spread of these."
        loss, logit = self.learner.learn(x, is_soft, self.settings['preprocess'], rate)
        soft, other = logit[is_soft], logit[~is_soft]
        return loss, soft.mean().item(), other.mean().item(), other.std().item()

    def save_weights(self):
        recipe = dict(
            script='soft_faces.py', images=self.images, swaps=self.a.swaps, blurred=BLURRED
        )
        recipe |= SETTINGS | SCHEDULE | dict(batch=self.a.batch, began_with=str(self.a.init))
        settings = self.settings | dict(recipe=recipe)
        weights.write(self.learner.weights(), settings, self.a.out / f'{ARCH}.safetensors')


def arguments(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('parts', help='folder of part-*.tar, see pack.py')
    add('out', type=Path, help='folder of the run')
    add('--minutes', type=float, required=True, help='length of the whole run')
    add('--swaps', type=float, default=0.0, help='share of couples with real swaps (default: 0)')
    add('--init', help='weights to begin with, such as the packaged faces (default: none)')
    add('--resume', action='store_true', help='continue the run in that folder')
    add('--recipe', default=RECIPE, help='JSON, for its size and families (default: faces.json)')
    add('--batch', type=int, default=96, help='pictures a step, a multiple of 6 (default: 96)')
    add('--seed', type=int, default=1, help='of pictures and corruptions (default: 1)')
    add('--workers', type=int, default=2, help='processes that make pictures (0: none)')
    add('--log-every', type=int, default=100, help='steps')
    a = parser.parse_args(args)
    if a.batch < PLACES or a.batch % PLACES:
        stop(f'--batch {a.batch}: must be a multiple of {PLACES}.')
    if not a.resume and (a.out / 'checkpoint.pth').exists():
        stop(f'{a.out}: holds a run already. Go on with --resume, or give another folder.')
    a.out.mkdir(parents=True, exist_ok=True)
    return a


def main(args=None) -> Run:
    a = arguments(args)
    run = Run(a)
    if a.resume:
        run.resume()
    with stopped_by_signals(run):
        run.train()
    say_end(run, a.out)
    return run


if __name__ == '__main__':
    main()
