"""Train the detector on a GPU: `python tools/gpu/train.py parts run --init faces.safetensors`.

It needs PyTorch, timm, safetensors, OpenCV and NumPy, and the files beside it. With `--clip` the
student is taught by CLIP; with `--autoencoder` a quarter of the couples are a photograph and its
reconstruction. The run's folder gets `checkpoint.pth` (all that `--resume` needs), `log.csv` and
the weights. SIGTERM and Ctrl-C end the run with a checkpoint: `timeout 500 python …`, then
`--resume`.
"""

import argparse
import hashlib
import math
import time
from pathlib import Path

import torch
import weights
from common import (
    HERE,
    RECIPE,
    log_line,
    need,
    read_recipe,
    say_end,
    stop,
    stopped_by_signals,
    write_whole,
)
from nets import Student, fill, member_of, normalised, parameter_groups, read_state
from teaching import ClipFeatures, PairMaker, Teacher, loader
from torch.nn import functional as F

from data import APART, LATENT, Batches, crops_without

DEFAULTS = dict(arch=None, init=None, small=None, small_init=None, batch=256, seed=1)
DEFAULTS |= dict(minutes=None, images=None, left_out=None)
# not to be changed midway
OF_THE_RUN = 'arch', 'init', 'small', 'small_init', 'seed', 'recipe', 'left_out'


class Learner:
    "A student with its optimizer and the moving average of its weights."

    def __init__(self, arch: str, settings: dict, recipe: dict, device: str, taught: bool):
        teacher = recipe['teacher']
        sizes = [teacher['components'], teacher['token_components']] if taught else [0, 0]
        self.net = Student(arch, settings['drop'], settings['drop_path'], *sizes)
        self.net.to(device, memory_format=torch.channels_last).train()
        for m in self.net.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = recipe['batch_norm_momentum']
        self.clip = settings['clip']
        groups = parameter_groups(self.net, settings['lr'])
        how = dict(weight_decay=settings['weight_decay'], betas=(0.9, 0.99))
        self.optimizer = torch.optim.AdamW(groups, **how, fused=device == 'cuda')
        self.start_average()

    def start_average(self):
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}

    def step(self, loss, rate: float) -> tuple:  # norm of the gradient, was it finite
        "One step, `rate` times the peak rates. A gradient that isn't finite changes nothing."
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        finite = bool(torch.isfinite(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group['lr'] = group['peak'] * rate
            self.optimizer.step()
        return norm.detach(), finite

    @torch.no_grad()
    def follow(self, step: int, decay: float):
        "Move the average. In the first steps it follows faster."
        decay = min(decay, (step + 1) / (step + 20))
        state = self.net.state_dict()
        floats = [k for k, v in state.items() if v.is_floating_point()]
        old, new = [self.average[k] for k in floats], [state[k] for k in floats]
        torch._foreach_lerp_(old, new, 1 - decay)

    def weights(self) -> dict:
        "The averaged weights of the network alone, without the imitation heads."
        return {k[4:]: v for k, v in self.average.items() if k.startswith('net.')}

    def state_dict(self) -> dict:
        own = dict(net=self.net.state_dict(), average=self.average)
        return own | dict(optimizer=self.optimizer.state_dict())

    def load_state_dict(self, state: dict):
        self.net.load_state_dict(state['net'])
        for name, value in state['average'].items():
            self.average[name].copy_(value)
        self.optimizer.load_state_dict(state['optimizer'])


def opinion_loss(logit, taught, weight):
    "Cross-entropy with a teacher's opinions (logits), weighted by picture, mean of the batch."
    loss = F.binary_cross_entropy_with_logits(logit, torch.sigmoid(taught), reduction='none')
    return (loss * weight).mean()


def as_large(target, x):
    "A map at the height and width of another."
    if target.shape[-2:] == x.shape[-2:]:
        return target
    return F.interpolate(target, size=x.shape[-2:], mode='area')


def margin_of(logits):
    "Logits B × 2 -> the logit of *fake*, B."
    return logits[:, 1] - logits[:, 0]


def student_loss(out: tuple, fake, taught: dict | None, recipe: dict) -> tuple:
    "The student's loss, and its parts by name."
    logits, features, tokens = out
    parts = dict(labels=F.cross_entropy(logits, fake, label_smoothing=recipe['smoothing']))
    total = parts['labels']
    if taught:
        s = recipe['teacher']
        parts['opinions'] = opinion_loss(margin_of(logits), taught['logit'], taught['weight'])
        parts['features'] = F.mse_loss(features, taught['features'])
        parts['tokens'] = F.mse_loss(tokens, as_large(taught['tokens'], tokens))
        total = total + sum(s[k] * parts[k] for k in ('opinions', 'features', 'tokens'))
    return total, parts


def small_loss(logits, fake, student, taught: dict | None, recipe: dict):
    "The small student's loss: labels, the student's logits, and the teacher's opinions."
    n = len(logits)
    loss = F.cross_entropy(logits, fake, label_smoothing=recipe['smoothing'])
    every = torch.ones_like(student)
    margin = margin_of(logits)
    loss = loss + recipe['small']['from_student'] * opinion_loss(margin, student, every)
    if taught:
        from_teacher = opinion_loss(margin, taught['logit'][:n], taught['weight'][:n])
        loss = loss + recipe['small']['from_teacher'] * from_teacher
    return loss


def rate_at(step: int, done: float, recipe: dict) -> float:  # 0 to 1, of the peak rate
    "Warm-up by steps, then flat, then a cosine by the share of the run that is done."
    flat = recipe['flat']
    falling = min(1.0, max(0.0, (done - flat) / (1 - flat)))
    cosine = 0.5 + 0.5 * math.cos(math.pi * falling)
    return min(1.0, (step + 1) / recipe['warmup']) * max(recipe['least_rate'], cosine)


def accuracy_of(logit, fake, which):
    "The share of some of the pictures on whose side of 0 the logit is, or nan if there are none."
    right = (logit > 0) == (fake > 0)
    return (right & which).sum() / which.sum()  # without waiting for the GPU


class Run:
    "A training run: its parts, its progress, and its steps."

    def __init__(self, options: dict, recipe: dict, a, saved: dict | None):
        self.options = options
        self.recipe = recipe
        self.out = a.out
        self.workers = a.workers
        self.device = a.device
        self.step = self.images = self.skipped = self.skipped_now = 0
        self.seconds = 0.0
        self.stopped = False
        self.rows = []
        self.crops = crops_without(a.parts, options['left_out'], recipe)
        self.pairs = self.teacher = None
        torch.manual_seed(options['seed'] + (saved['step'] if saved else 0))
        self._make_learners(bool(a.clip))
        if a.clip:
            settings = recipe['teacher']
            features = ClipFeatures(a.clip, settings, self.device)
            self.teacher = Teacher(features, self.crops, settings, self.device)
        if saved:
            self._restore(saved)
        if a.autoencoder:
            given = a.autoencoder, self.crops, recipe, a.out, self.device
            self.pairs = PairMaker(*given)

    def _make_learners(self, taught):
        o = self.options
        self.learners = {'faces': self._learner(o['arch'], 'student', taught, o['init'])}
        if o['small']:
            self.learners['small'] = self._learner(o['small'], 'small', False, o['small_init'])
        size = self.recipe['size']
        files = dict(faces=(o['arch'], o['init']), small=(o['small'], o['small_init']))
        self.settings = {k: weights.settings_for(*files[k], size) for k in self.learners}

    def _learner(self, arch, name, taught, init):
        learner = Learner(arch, self.recipe[name], self.recipe, self.device, taught)
        if init:
            net = learner.net.net
            fill(net, member_of(read_state(init, 'weights to begin with'), net), init)
            learner.start_average()
        return learner

    def begin(self):
        "Start the workers, make the first pairs, find the components to imitate."
        seed = self.options['seed'] + 7919 * self.step  # a resumed run draws other pictures
        store = self.pairs.store if self.pairs else None
        batches = Batches(self.crops, store, self.recipe, self.options['batch'], seed)
        if self.pairs:
            print(self.pairs.begin(self.workers, seed + 77), flush=True)
        self.batches = iter(loader(batches, self.workers, self.device))
        if self.teacher and not self.step:
            print(self.teacher.features.fit_bases(self.batches), flush=True)
        self.started = self.logged = self.saved = time.time()
        self.seconds_before, self.images_logged, self.waited = self.seconds, self.images, 0.0

    def done(self) -> float:  # 0 to 1
        "The share of the run that is done, by time or by images."
        self.seconds = self.seconds_before + time.time() - self.started
        minutes, images = self.options['minutes'], self.options['images']
        parts = [self.seconds / 60 / minutes if minutes else 0]
        parts += [self.images / images if images else 0]
        return max(parts)

    def train_step(self, done: float):
        "One batch: the teacher's heads, the student and the small student learn from it."
        if self.pairs and self.step % self.recipe['pairs']['every'] == 0:
            self.pairs.make()
        start = time.time()
        x, about = next(self.batches)
        self.waited += time.time() - start
        x, about = x.to(self.device, non_blocking=True), about.to(self.device, non_blocking=True)
        taught = self._ask(x, about, 1 - done) if self.teacher else None
        rate = rate_at(self.step, done, self.recipe)
        row, logit, finite = self._student_step(x, about, taught, rate)
        if 'small' in self.learners:
            row['small'] = self._small_step(x, about[:, 0], logit, taught, rate)
        for learner in self.learners.values():
            learner.follow(self.step + 1, self.recipe['ema'])
        self._count(finite, len(x))
        self.rows.append(row | self._right(about, logit, taught))

    def _ask(self, x, about, left):
        return self.teacher(self.teacher.features.imitated(x), about, self.step, left)

    def _forward(self, name, x):
        how = self.settings[name]['preprocess']
        x = normalised(x, how['mean'], how['std'])
        with torch.autocast(self.device, torch.bfloat16):
            out = self.learners[name].net(x)
        return [v.float() if v is not None else None for v in out]

    def _student_step(self, x, about, taught, rate):
        out = self._forward('faces', x)
        total, parts = student_loss(out, about[:, 0], taught, self.recipe)
        norm, finite = self.learners['faces'].step(total, rate)
        row = {k: v.detach() for k, v in parts.items()} | dict(norm=norm)
        return row, margin_of(out[0].detach()), finite

    def _small_step(self, x, fake, logit, taught, rate):
        n = max(2, int(len(x) * self.recipe['small']['batch_share']) // 2 * 2)
        logits = self._forward('small', x[:n])[0]
        loss = small_loss(logits, fake[:n], logit[:n], taught, self.recipe)
        self.learners['small'].step(loss, rate)
        return loss.detach()

    def _right(self, about, logit, taught):
        "How often the student, and the teacher, are right."
        fake, kind, _ = about.T
        row = dict(right=accuracy_of(logit, fake, kind >= 0))
        row['right_latent'] = accuracy_of(logit, fake, kind == LATENT)
        if taught:
            asked = (kind == APART) & self.teacher.asked[about[:, 2]]
            row['right_asked'] = accuracy_of(logit, fake, asked)
            row['teacher_right'] = accuracy_of(taught['logit'], fake, asked)
            row['heads'] = taught['loss']
        return row

    def _count(self, finite, n):
        self.step += 1
        self.images += n
        self.skipped_now = 0 if finite else self.skipped_now + 1
        self.skipped += not finite
        if self.skipped_now >= 20:
            stop('Twenty gradients in succession were not finite: begin again with lower rates.')

    def log(self):
        "A line in log.csv and on the screen: the means since the last one."
        if not self.rows:
            return
        self.done()  # what time is it
        now = time.time()
        speed = (self.images - self.images_logged) / (now - self.logged)
        line = dict(seconds=round(self.seconds, 1), step=self.step, images=self.images)
        line |= dict(images_a_second=round(speed, 1), waited=round(self.waited, 1))
        line |= dict(skipped=self.skipped)
        for key in self.rows[0]:
            value = torch.stack([r[key].float() for r in self.rows]).nanmean()
            line[key] = round(float(value), 4)
        log_line(self.out / 'log.csv', line)
        self.rows, self.logged, self.images_logged, self.waited = [], now, self.images, 0.0

    def save(self):
        "The checkpoint and the weights, each whole or not at all."
        self.done()
        state = dict(options=self.options, recipe=self.recipe, settings=self.settings)
        state |= dict(step=self.step, images=self.images, seconds=self.seconds)
        state |= dict(skipped=self.skipped)
        state['learners'] = {k: v.state_dict() for k, v in self.learners.items()}
        state['teacher'] = self.teacher.state_dict() if self.teacher else None
        write_whole(self.out / 'checkpoint.pth', lambda path: torch.save(state, path))
        for name, learner in self.learners.items():
            how = dict(recipe=self.recipe, step=self.step, images=self.images)
            how |= {k: str(v) for k, v in self.options.items() if v}
            settings = self.settings[name] | dict(recipe=how)
            weights.write(learner.weights(), settings, self.out / f'{name}.safetensors')
        self.saved = time.time()

    def _restore(self, saved):
        for name, learner in self.learners.items():
            learner.load_state_dict(saved['learners'][name])
        if self.teacher:
            self.teacher.load_state_dict(saved['teacher'])
        self.settings = saved['settings']
        for key in ('step', 'images', 'seconds', 'skipped'):
            setattr(self, key, saved[key])

    def train(self, log_every: int, save_minutes: float):
        "Train until the run is done, or is asked to stop."
        self.begin()
        while (done := self.done()) < 1 and not self.stopped:
            self.train_step(done)
            if self.step % log_every == 0:
                self.log()
            if time.time() - self.saved > 60 * save_minutes:
                self.save()
        self.log()
        self.save()

    def end(self):
        if self.pairs:
            self.pairs.end()


def read_checkpoint(out: Path) -> dict:
    "The checkpoint for `--resume`. The program ends if it isn't there, or is damaged."
    file = need(out / 'checkpoint.pth', 'the run to go on with')
    try:
        return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged pickle may raise any error
        stop(f'{file}: damaged, or of another program ({error}).')


def check_resumed(a, saved: dict):
    "End the program if the options don't fit the run that they are to continue."
    changed = [k for k in OF_THE_RUN if getattr(a, k) is not None]
    if changed:
        names = ', '.join('--' + k.replace('_', '-') for k in changed)
        stop(f'{names}: those of the run are kept with --resume. Leave them away.')
    for name, began_so in saved['options']['helped_by'].items():
        if bool(getattr(a, name)) != began_so:
            stop(f'The run began with{"" if began_so else "out"} --{name}, and must go on so.')


def choose_options(a, saved: dict | None) -> tuple:  # options, recipe
    "The options of this call, else those of the run, else the defaults."
    given = {k: getattr(a, k) for k in DEFAULTS if getattr(a, k) is not None}
    options = DEFAULTS | (saved['options'] if saved else {}) | given
    if saved:
        if given.keys() & {'minutes', 'images'}:  # one replaces the other
            options |= {k: given.get(k) for k in ('minutes', 'images')}
        return options | dict(init=None, small_init=None), saved['recipe']
    if not options['init']:
        stop('--init: name weights to begin with, or `random`.')
    known = (
        {}
        if options['init'] == 'random'
        else weights.to_begin_with(need(options['init'], 'weights'))
    )
    named = known.get('arch') or 'efficientnet_b4'
    options['arch'] = options['arch'] or named.split('+')[0]  # of an ensemble the first member
    options['began_with'] = 'random'
    options['helped_by'] = {k: bool(getattr(a, k)) for k in ('clip', 'autoencoder')}
    for key in ('init', 'small_init'):
        options[key] = None if options[key] == 'random' else options[key]
    if options['init']:
        digest = hashlib.sha256(Path(options['init']).read_bytes()).hexdigest()
        options['began_with'] = f'{Path(options["init"]).stem} {digest[:12]}'
    return options, read_recipe(a.recipe or RECIPE)


def check_options(options: dict, saved: dict | None):
    "End the program for a length or a batch that can't be."
    minutes, images = options['minutes'], options['images']
    if not (minutes or images):
        stop('--minutes or --images: say how long the run is to be.')
    if min(minutes or 1, images or 1) <= 0:
        stop('--minutes and --images must be above 0.')
    if options['batch'] < 4 or options['batch'] % 2:
        stop(f'--batch {options["batch"]}: must be even, and at least 4, for it holds couples.')
    over = saved and max(
        saved['seconds'] / 60 / minutes if minutes else 0,
        saved['images'] / images if images else 0,
    )
    if over and over >= 1:
        reached = f'{saved["images"]} images, {saved["seconds"] / 60:.1f} minutes'
        stop(f'The run is done ({reached}). Name more --minutes or --images in all to go on.')


def arguments(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('parts', help='folder of part-*.tar, see pack.py')
    add('out', type=Path, help='folder of the run')
    add('--resume', action='store_true', help='continue the run in that folder')
    add('--init', help='weights to begin with (safetensors), or `random`')
    add('--arch', help="timm's name of the network (default: that of the weights)")
    add('--minutes', type=float, help='length of the whole run, from its first step')
    add('--images', type=int, help='the same, in images')
    add('--batch', type=int, help='images a step (default: 256)')
    add('--clip', help='CLIP as clip.py writes it (without it, labels only)')
    add('--autoencoder', nargs=2, metavar=('ENCODER', 'DECODER'), help="TAEF2's two halves")
    small = 'a second, smaller student (default: tf_efficientnet_lite0)'
    add('--small', nargs='?', const='tf_efficientnet_lite0', metavar='ARCH', help=small)
    add('--small-init', help='weights that it begins with (default: random)')
    add('--left-out', metavar='FAMILY', help="keep a family of the recipe's left_out from it")
    add('--recipe', help=f'JSON of all other choices (default: {RECIPE.relative_to(HERE.parent)})')
    add('--seed', type=int, help='of pictures, corruptions and dropout (default: 1)')
    add('--workers', type=int, default=15, help='processes that make pictures (0: none)')
    add('--device', choices=['cuda', 'cpu'], help='default: cuda if there is one')
    add('--log-every', type=int, default=50, help='steps')
    add('--save-minutes', type=float, default=3, help='between two checkpoints')
    return parser.parse_args(args)


def prepare(a) -> Run:
    "The run that the arguments ask for, new or resumed."
    a.device = a.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    a.out.mkdir(parents=True, exist_ok=True)
    if not a.resume and (a.out / 'checkpoint.pth').exists():
        stop(f'{a.out}: holds a run already. Go on with --resume, or give another folder.')
    saved = read_checkpoint(a.out) if a.resume else None
    if saved:
        check_resumed(a, saved)
    options, recipe = choose_options(a, saved)
    check_options(options, saved)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return Run(options, recipe, a, saved)


def main(args=None) -> Run:
    a = arguments(args)
    run = prepare(a)
    try:
        with stopped_by_signals(run):
            run.train(a.log_every, a.save_minutes)
    finally:
        run.end()
    say_end(run, a.out)
    return run


if __name__ == '__main__':
    main()
