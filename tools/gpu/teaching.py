"""Teach the student beside the labels: by CLIP with its own heads, and by reconstruction pairs.

Heads on CLIP's features learn from the labels at the same time as the student, and give a score to
each picture (distillation, Hinton et al. 2015). Student and teacher see the same corrupted square
(Beyer et al. 2022). Each head is trained without one fold of the groups, and scores that fold only,
so that no score is memorised. The student also imitates the features (Romero et al. 2015).
"""

import os
import tempfile
import time
from pathlib import Path
from shutil import disk_usage, rmtree

import numpy as np
import torch
from nets import Autoencoder, Basis, BlindHeads, Clip
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data import APART, Crops, PairStore, Photographs


def loader(dataset, workers: int, device: str) -> DataLoader:
    "Batches of an endless data set, from worker processes, or with 0 from this one."
    ahead = dict(prefetch_factor=2, worker_init_fn=own_group) if workers else {}
    pin = device == 'cuda'
    return DataLoader(dataset, None, num_workers=workers, pin_memory=pin, **ahead)


def own_group(worker: int):
    "Out of the trainer's process group: `timeout` and Ctrl-C then reach the trainer alone."
    if hasattr(os, 'setpgrp'):
        os.setpgrp()


class ClipFeatures:
    "Frozen CLIP, and the principal components of its features that a student imitates."

    def __init__(self, clip: str | Path, settings: dict, device: str):
        s = self.settings = settings
        self.device = device
        self.clip = Clip(clip, s['blocks'], s['token_block']).to(device).eval()
        if device == 'cuda':
            self.clip.bfloat16()
        width = self.clip.net.embed_dim
        self.width = 2 * len(s['blocks']) * width
        self.basis = Basis(self.width, s['components']).to(device)
        self.token_basis = Basis(width, s['token_components']).to(device)

    @torch.no_grad()
    def extract(self, pictures):
        "Features B × 6144 and tokens B × 196 × 768 of pictures B × S × S × 3 uint8."
        if pictures.shape[1] != 224:
            x = pictures.permute(0, 3, 1, 2).float()
            x = F.interpolate(x, size=(224, 224), mode='bicubic', antialias=True)
            pictures = x.clamp(0, 255).permute(0, 2, 3, 1)
        return self.clip(pictures)

    def imitated(self, pictures) -> dict:
        "What the student imitates (B × n, B × m × h × w), and the input of the heads (B × 6144)."
        features, tokens = self.extract(pictures)
        n = round(tokens.shape[1] ** 0.5)
        grid = self.token_basis(tokens.float()).transpose(1, 2).unflatten(2, (n, n))
        standard = self.basis.standard(features)
        return dict(standard=standard, features=self.basis(features), tokens=grid)

    @torch.no_grad()
    def fit_bases(self, batches, may=None) -> str:  # what was kept, in words
        "The components that are imitated, from the first batches, with `may` only from such rows."
        features, tokens, seen = [], [], 0
        while seen < self.settings['basis_pictures']:
            x, about = next(batches)
            x = x if may is None else x[may[about[:, 2]]]
            f, t = self.extract(x.to(self.device))
            some = torch.randperm(t.shape[1], device=t.device)[: self.settings['tokens_a_picture']]
            features.append(f)
            tokens.append(t[:, some].flatten(0, 1).float())
            seen += len(x)
        kept = self.basis.fit(torch.cat(features)), self.token_basis.fit(torch.cat(tokens))
        return f'{kept[0]:.2f} of the spread of features, {kept[1]:.2f} of tokens, from {seen}'


class Teacher:
    "Heads that learn on CLIP's features, and their scores of a batch of pictures."

    def __init__(self, features: ClipFeatures, crops: Crops, settings: dict, device: str):
        s = self.settings = settings
        self.features = features
        self.heads = BlindHeads(features.width, s['folds'], s['hidden']).to(device)
        how = dict(lr=s['lr'], weight_decay=s['weight_decay'], fused=device == 'cuda')
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), **how)
        self.fold = torch.from_numpy(crops.folds(s['folds'])).to(device)
        asked = ~np.isin(crops.source, s['no_opinions_of'])
        self.asked = torch.from_numpy(asked).to(device)  # N bool: does this row get opinions

    def __call__(self, seen: dict, about, step: int, left: float) -> dict:
        "Train the heads on the features, then score them. `left` is the share of the run to come."
        fake, kind, row = about.T
        fold = self.fold[row]
        z = seen['standard']
        loss = self._learn(z, fake, fold, kind == APART, self._rate(step, left))
        with torch.no_grad():
            self.heads.eval()
            logit = self.heads(z).gather(1, fold[:, None]).squeeze(1).clamp(-8, 8)
            ramp = (step - self.settings['begin']) / self.settings['ramp']
            known = (kind == APART) & self.asked[row]
        weight = known.float() * min(1.0, max(0.0, ramp))
        return seen | dict(logit=logit, weight=weight, loss=loss)

    def _rate(self, step, left):
        warm = min(1.0, (step + 1) / self.settings['warmup'])
        return self.settings['lr'] * warm * max(0.05, left)

    def _learn(self, z, fake, fold, use, rate):
        "One step of the heads, each on the folds that it may see, and their mean loss."
        self.heads.train()
        logits = self.heads(z)
        others = torch.arange(logits.shape[1], device=z.device)[None] != fold[:, None]
        weight = others.float() * use.float()[:, None]
        target = fake.float()[:, None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
        loss = (loss * weight).sum() / weight.sum().clamp(min=1)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _parts(self):
        bases = dict(basis=self.features.basis, token_basis=self.features.token_basis)
        return bases | dict(heads=self.heads, optimizer=self.optimizer)

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict):
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def scratch_folder(out: Path, size: int) -> Path:
    "A new folder for `size` bytes: in memory if it is large enough, else in `out`."
    memory = Path('/dev/shm')
    fits = memory.is_dir() and disk_usage(memory).free > 1.5 * size
    return Path(tempfile.mkdtemp(prefix='pairs-', dir=memory if fits else out))


class PairMaker:
    "Reconstructs photographs, a batch at a time, and stores them for the workers to sample from."

    def __init__(self, files: list, crops: Crops, recipe: dict, out: Path, device: str):
        p = self.settings = recipe['pairs']
        self.recipe = recipe
        self.crops = crops
        self.device = device
        kind = torch.float16 if device == 'cuda' else torch.float32
        net = Autoencoder(*files).to(device, kind, memory_format=torch.channels_last)
        self.autoencoder = net.eval()
        self.folder = scratch_folder(out, p['kept'] * 6 * p['most_side'] ** 2)
        self.store = PairStore(self.folder, p['kept'], p['most_side'])
        self.store.create()
        self.made = 0

    def begin(self, workers: int, seed: int) -> str:  # how fast it was, in words
        "Start to read photographs, and make the first pairs."
        photographs = Photographs(self.crops, self.recipe, seed)
        self.batches = iter(loader(photographs, min(1, workers), 'cpu'))
        start = time.time()
        while self.made < self.settings['first']:
            if time.time() - start > self.settings['first_seconds']:
                break
            self.make()
        return f'{self.made} pairs, {self.made / (time.time() - start):.0f} a second'

    def make(self):
        "One batch of pairs."
        b = next(self.batches)
        small, noise = b['small'].to(self.device), b['noise'].to(self.device)
        how = dict(side=b['photo'].shape[1], cubic=b['cubic'], twice=b['twice'])
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=True):
            fakes = self.autoencoder.reconstruct(small, noise, **how).cpu().numpy()
        for row, photo, fake in zip(b['rows'].tolist(), b['photo'].numpy(), fakes, strict=True):
            self.store.put(self.made, row, photo, fake, b['pasted'])
            self.made += 1

    def end(self):
        rmtree(self.folder, ignore_errors=True)
