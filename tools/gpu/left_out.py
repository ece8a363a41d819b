"""Train students without a family of sources: `python tools/gpu/left_out.py parts run --init …`.

For each family in the recipe's `left_out` one student is trained on all other sources, and so are
the heads on CLIP that teach it. All of them share the batches, the pairs and CLIP's features, so
five students cost little more than one. A student's scores of its own family's held-out pictures
measure how well the method works on a generator, or a camera, that was not in the training.
"""

import argparse
import time
from pathlib import Path

import torch
import weights
from common import RECIPE, need, read_recipe, stop, stopped_by_signals
from nets import fill, read_state
from teaching import ClipFeatures, PairMaker, Teacher, loader
from train import Learner, accuracy_of, margin_of, normalised, rate_at, student_loss

from data import APART, Batches, Crops, may_see, read_parts


def couples_of(may: torch.Tensor, most: int) -> torch.Tensor:
    "The places of the first couples of a batch of which both pictures may be seen."
    whole = may.view(-1, 2).all(1).nonzero().squeeze(1)[: most // 2]
    return (2 * whole[:, None] + torch.arange(2, device=may.device)).view(-1)


class BlindStudent:
    "A student and its teacher's heads, from which one family is withheld."

    def __init__(self, arch, init, features, crops, hidden: dict, recipe: dict, device: str):
        self.recipe = recipe
        self.device = device
        self.settings = weights.settings_for(arch, init, recipe['size'])
        self.learner = Learner(arch, recipe['small'], recipe, device, taught=True)
        if init:
            fill_body(self.learner.net.net, read_state(init, 'weights to begin with'), init)
            self.learner.start_average()
        self.teacher = Teacher(features, crops, recipe['teacher'], device)
        self.may = torch.from_numpy(may_see(crops, hidden)).to(device)

    def learn(self, x, about, seen: dict, step: int, done: float, most: int) -> dict:
        "From the couples of a batch that this student may see."
        at = couples_of(self.may[about[:, 2]], most)
        x, about, seen = x[at], about[at], {k: v[at] for k, v in seen.items()}
        taught = self.teacher(seen, about, step, 1 - done)
        how = self.settings['preprocess']
        with torch.autocast(self.device, torch.bfloat16):
            out = self.learner.net(normalised(x, how['mean'], how['std']))
        out = [v.float() for v in out]
        total, parts = student_loss(out, about[:, 0], taught, self.recipe)
        self.learner.step(total, rate_at(step, done, self.recipe))
        self.learner.follow(step + 1, self.recipe['ema'])
        fake, kind, _ = about.T
        right = accuracy_of(margin_of(out[0].detach()), fake, kind == APART)
        return {k: v.detach() for k, v in parts.items()} | dict(right=right)


def fill_body(net, state: dict, name):
    "Load weights, but not a classifier of another task, as ImageNet's is."
    own = net.state_dict()
    state = {k: v for k, v in state.items() if k in own}
    if state.get('classifier.weight', torch.empty(0)).shape != own['classifier.weight'].shape:
        state |= {k: v for k, v in own.items() if k.startswith('classifier.')}
    fill(net, state, name)


def train(a, recipe: dict) -> dict:  # the students by their families' names
    "All students, batch by batch, for `a.minutes`."
    device = a.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(a.seed)
    crops = Crops(read_parts(a.parts))
    features = ClipFeatures(a.clip, recipe['teacher'], device)
    students = {
        k: BlindStudent(a.arch, a.init, features, crops, v, recipe, device)
        for k, v in recipe['left_out'].items()
    }
    pairs = PairMaker(a.autoencoder, crops, recipe, a.out, device)
    try:
        print(pairs.begin(a.workers, a.seed + 77), flush=True)
        batches = iter(
            loader(Batches(crops, pairs.store, recipe, a.batch, a.seed), a.workers, device)
        )
        for_all = torch.stack([p.may for p in students.values()]).all(0).cpu()
        print(features.fit_bases(batches, for_all), flush=True)
        loop(a, recipe, students, features, pairs, batches, device)
    finally:
        pairs.end()
    return students


def loop(a, recipe, students, features, pairs, batches, device):
    start, step, rows = time.time(), 0, []
    while (done := (time.time() - start) / 60 / a.minutes) < 1 and not a.stopped:
        if step % recipe['pairs']['every'] == 0:
            pairs.make()
        x, about = (v.to(device, non_blocking=True) for v in next(batches))
        seen = features.imitated(x)
        rows.append({k: p.learn(x, about, seen, step, done, a.share) for k, p in students.items()})
        step += 1
        if step % a.log_every == 0:
            print(f'{time.time() - start:.0f} s, step {step}', end=' ')
            for name in students:
                mean = {k: torch.stack([r[name][k] for r in rows]).nanmean() for k in rows[0][name]}
                print(f'| {name}', *(f'{k} {float(v):.3f}' for k, v in mean.items()), end=' ')
            print(flush=True)
            rows = []
    a.images = step * a.share


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('parts', help='folder of part-*.tar, see pack.py')
    add('out', type=Path, help='folder of the weights, one file for each family')
    add('--init', help='weights to begin with that have seen none of the families')
    add('--arch', default='tf_efficientnet_lite0', help="timm's name of the network")
    add('--minutes', type=float, required=True)
    add('--batch', type=int, default=256, help='pictures a step that CLIP sees')
    add('--share', type=int, default=128, help='of these, for each student')
    add('--clip', required=True, help='CLIP as clip.py writes it')
    add('--autoencoder', nargs=2, required=True, metavar=('ENCODER', 'DECODER'))
    add('--recipe', default=RECIPE, help='JSON like faces.json')
    add('--seed', type=int, default=1)
    add('--workers', type=int, default=15)
    add('--device', choices=['cuda', 'cpu'])
    add('--log-every', type=int, default=50)
    a = parser.parse_args(args)
    if a.minutes <= 0 or a.share < 4 or a.share % 2 or a.share > a.batch:
        stop('--minutes must be above 0, and --share even, at least 4 and at most --batch.')
    if a.batch % 2:
        stop(f'--batch {a.batch}: must be even, for couples.')
    for file in filter(None, (a.init, a.clip, *a.autoencoder)):
        need(file, 'weights')
    recipe = read_recipe(a.recipe)
    a.out.mkdir(parents=True, exist_ok=True)
    a.stopped = False
    with stopped_by_signals(a):
        students = train(a, recipe)
    for name, student in students.items():
        about = dict(left_out=recipe['left_out'][name], images=a.images, minutes=a.minutes)
        settings = student.settings | dict(recipe=about)
        weights.write(student.learner.weights(), settings, a.out / f'{name}.safetensors')
    print(f'{a.out.name}: {len(students)} students, {a.images} images each')


if __name__ == '__main__':
    main()
