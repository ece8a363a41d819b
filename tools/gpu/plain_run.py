"""A training run on labels alone; soft_faces.py and native.py define its pictures."""

import time

import numpy as np
import torch
from common import log_line, stop, write_whole
from train import rate_at


class PlainRun:
    "The steps, log and checkpoint of a run. A subclass has a learner, `batches` and `learn`."

    columns = ()  # of the log: what `learn` returns
    schedule = {}  # see `rate_at`, and `ema`

    def __init__(self, a, learner):
        self.a = a
        self.learner = learner
        self.step = self.images = 0
        self.seconds = 0.0
        self.stopped = False

    def done(self) -> float:
        "The share of the run that is over, 0 to 1."
        raise NotImplementedError

    def learn(self, x, y, rate: float) -> tuple:
        "One step on a batch. Gives the values to log."
        raise NotImplementedError

    def save_weights(self):
        raise NotImplementedError

    def options(self) -> dict:
        "The options that may not change midway."
        return {}

    def save(self):
        "The checkpoint and the averaged weights, each whole or not at all."
        state = dict(learner=self.learner.state_dict(), step=self.step, images=self.images)
        state |= dict(seconds=self.seconds, options=self.options())
        write_whole(self.a.out / 'checkpoint.pth', lambda path: torch.save(state, path))
        self.save_weights()

    def resume(self):
        "Continue from the checkpoint in the folder."
        file = self.a.out / 'checkpoint.pth'
        if not file.exists():
            stop(f'{file}: no such file. Leave --resume away to begin a run.')
        saved = torch.load(file, weights_only=True)
        if (before := saved.get('options', {})) != self.options():
            stop(f'{file}: a run of other options ({before}). Give those.')
        self.learner.load_state_dict(saved['learner'])
        self.step, self.images, self.seconds = (saved[k] for k in ('step', 'images', 'seconds'))

    def log(self, rows: list):
        "A line in log.csv and on the screen: the means of some steps."
        means = np.mean(rows, 0).round(4).tolist()
        line = dict(seconds=round(self.seconds, 1), step=self.step, images=self.images)
        log_line(self.a.out / 'log.csv', line | dict(zip(self.columns, means, strict=True)))

    def train(self):
        "Train until the run is done, or is asked to stop."
        before, start, saved, rows = self.seconds, time.time(), time.time(), []
        while (done := self.done()) < 1 and not self.stopped:
            x, y = next(self.batches)
            rows.append(self.learn(x, y, rate_at(self.step, done, self.schedule)))
            self.learner.follow(self.step + 1, self.schedule['ema'])
            self.step += 1
            self.images += len(x)
            self.seconds = before + time.time() - start
            if self.step % self.a.log_every == 0:
                self.log(rows)
                rows = []
            if time.time() - saved > 300:
                self.save()
                saved = time.time()
        self.save()
