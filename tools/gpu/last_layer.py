"""Train the last layer again: `python tools/gpu/last_layer.py parts run --init … --clip …`.

It needs no GPU: each picture passes the network and CLIP once. Support vector machines on CLIP's
features score each picture, by folds, so that no picture is scored by a machine that was trained on
it. A linear layer on the network's own pooled features learns to predict these scores (ridge
regression), and is added to the network's last layer. So the network is as fast as before, and uses
information in its features that it had not used (last-layer retraining: Kirichenko et al., ICLR
2023).
"""

import argparse
import json
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import weights
from common import RECIPE, need, read_recipe, stop, write_json
from nets import Clip, fill, make_net, member_of, normalised, read_state
from pictures import corrupted, cut, draw_geometry, resized
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data import Crops, read_parts

CHUNK = 16  # pictures a pass
FOLDS = 5
RIDGE = 10000  # the penalty, on standardised features
KNOWN_WEIGHT = 4  # of the pictures whose targets are their labels, not the machine's scores

# The features of the network and of CLIP


def choose_rows(crops: Crops, most: int, seed: int) -> np.ndarray:
    "At most `most` crops of each source, all in random order."
    rng = np.random.default_rng(seed)
    sources = sorted(set(crops.source.tolist()))
    rows = [rng.permutation(np.flatnonzero(crops.source == s))[:most] for s in sources]
    return rng.permutation(np.concatenate(rows))


def square(crops: Crops, row: int, recipe: dict) -> np.ndarray:
    "The corrupted square of a crop, S × S × 3 uint8; another one if OpenCV fails on it."
    for attempt in range(5):
        rng = random.Random(int(row) * 7 + attempt)
        try:
            x = cut(crops.read(row), crops.box[row], draw_geometry(rng))
            x = corrupted(x, rng, recipe['corruption'], recipe['size'])
            return resized(x, recipe['size'])
        except (cv2.error, ValueError) as error:
            why = error
    stop(f'crop {row} of {crops.source[row]}: {why}. Pack the parts again without it.')


class Features:
    "The features of both, in two files of a folder. A stopped run continues there."

    def __init__(self, folder: Path, widths: dict, rows: np.ndarray, about: dict):
        self.file = folder / 'seen.json'
        known = json.loads(self.file.read_text()) if self.file.exists() else dict(about=about)
        if known['about'] != about:
            stop(f'{folder}: holds what was seen of other pictures. Give another folder.')
        self.about = about
        self.rows = rows
        self.done = known.get('done', 0)
        mode = 'r+' if self.done else 'w+'
        self.values = {
            name: np.lib.format.open_memmap(
                folder / f'{name}.npy', mode, np.float16, (len(rows), width)
            )
            for name, width in widths.items()
        }

    def put(self, **values):
        n = len(values['clip'])
        for name, value in values.items():
            self.values[name][self.done : self.done + n] = value.float().numpy()
        self.done += n

    def save(self):
        "Keep the features that were computed so far."
        for value in self.values.values():
            value.flush()
        write_json(self.file, dict(about=self.about, done=self.done))

    def read(self, name: str) -> np.ndarray:
        return self.values[name].astype(np.float32)


@torch.no_grad()
def extract(crops: Crops, features: Features, net, clip, how: dict, recipe: dict):
    "Let the network and CLIP see each square once."
    start, before = time.time(), features.done
    while features.done < len(features.rows):
        rows = features.rows[features.done : features.done + CHUNK]
        x = torch.from_numpy(np.stack([square(crops, i, recipe) for i in rows]))
        with torch.autocast('cpu', torch.bfloat16):
            maps = net.forward_features(normalised(x, how['mean'], how['std']))
            pooled = net.forward_head(maps, pre_logits=True)
            features.put(pooled=pooled, clip=clip(as_224(x))[0])
        if features.done % (CHUNK * 50) == 0 or features.done == len(features.rows):
            features.save()
            speed = (features.done - before) / (time.time() - start)
            print(f'{features.done} of {len(features.rows)} seen, {speed:.1f} a second', flush=True)


def as_224(x: torch.Tensor) -> torch.Tensor:
    "CLIP sees 224 × 224 pixels, B × 224 × 224 × 3 uint8."
    if x.shape[1] == 224:
        return x
    return torch.from_numpy(np.stack([resized(picture, 224) for picture in x.numpy()]))


# The scores of the machine, and the linear layer that learns them


def source_weights(source: np.ndarray, fake: np.ndarray) -> np.ndarray:
    "A weight for each picture: each class one half, in it each source by the root of its size."
    weight = np.zeros(len(source))
    for is_fake in (False, True):
        for name in set(source[fake == is_fake]):
            own = (source == name) & (fake == is_fake)
            weight[own] = own.sum() ** -0.5
        weight[fake == is_fake] /= weight[fake == is_fake].sum()
    return weight * len(weight) / 2


def svm_scores(x, source, fake, fold, components: int = 192) -> np.ndarray:
    "The score of each picture, N, by a support vector machine trained on the other folds."
    score = np.zeros(len(x))
    components = min(components, len(x) // 4, x.shape[1])
    for k in set(fold.tolist()):
        learn = fold != k
        if len(set(fake[learn].tolist())) < 2:
            stop('Too few groups: without one fold, the machine would see one class only.')
        svm = SVC(C=1.0, gamma=0.5 / components)
        pca = PCA(components, whiten=True, random_state=0)
        machine = make_pipeline(StandardScaler(), pca, svm)
        weight = source_weights(source[learn], fake[learn])
        machine.fit(x[learn], fake[learn], svc__sample_weight=weight)
        score[~learn] = machine.decision_function(x[~learn])
    return score


def targets_of(score, fake, is_unscored, by_label) -> np.ndarray:
    """The score where it is right, and 0 where it is wrong or not to be used.

    Where the label teaches, 1 or -1. `score`, `fake`, `is_unscored`, `by_label`: N each."""
    right = np.where(fake, np.maximum(score, 0), np.minimum(score, 0))
    right = np.where(is_unscored, 0.0, right)
    return np.where(by_label, np.where(fake, 1.0, -1.0), right)


def ridge(x, target, weight, penalty: float = RIDGE) -> tuple:  # weights F, bias
    "The linear layer that comes nearest to `target` (N) on N × F features."
    scale = StandardScaler().fit(x)
    spread = np.maximum(scale.scale_, 1e-6)
    z = ((x - scale.mean_) / spread).clip(-6, 6)
    fit = Ridge(penalty).fit(z, target, sample_weight=weight)
    w = fit.coef_ / spread
    return w, fit.intercept_ - w @ scale.mean_


@torch.no_grad()
def add_to_last_layer(net, w, b, share: float):
    "Add `share` times the linear layer's output to the logit of *fake*."
    w, b = torch.from_numpy(np.float32(w)) * share / 2, float(b) * share / 2
    net.classifier.weight += torch.stack([-w, w])
    net.classifier.bias += torch.tensor([-b, b])


def arguments(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('parts', help='folder of part-*.tar, see pack.py')
    add('out', type=Path, help='folder of the run')
    add('--init', required=True, help='weights whose last layer is trained')
    add('--arch', default='efficientnet_b4', help="timm's name of the network")
    add('--clip', required=True, help='CLIP as clip.py writes it')
    add('--share', type=float, default=2.0, help='of the scores in the logit (default: 2)')
    add('--by-label', nargs='*', default=['inswapper'], help='sources taught by labels instead')
    add('--most', type=int, default=10000, help='crops of one source (default: 10000)')
    add('--recipe', default=RECIPE, help='JSON like faces.json')
    add('--seed', type=int, default=1)
    a = parser.parse_args(args)
    for file in (a.init, a.clip):
        need(file, 'weights')
    a.out.mkdir(parents=True, exist_ok=True)
    return a


def main(args=None):
    a = arguments(args)
    recipe = read_recipe(a.recipe)
    crops = Crops(read_parts(a.parts))
    rows = choose_rows(crops, a.most, a.seed)
    net = make_net(a.arch).eval()
    fill(net, member_of(read_state(a.init, 'weights to begin with'), net), a.init)
    settings = weights.settings_for(a.arch, a.init, recipe['size'])
    teacher = recipe['teacher']
    clip = Clip(a.clip, teacher['blocks'], teacher['token_block']).eval()
    widths = dict(pooled=net.num_features, clip=2 * len(teacher['blocks']) * clip.net.embed_dim)
    about = dict(pictures=len(rows), most=a.most, seed=a.seed, init=Path(a.init).name, arch=a.arch)
    features = Features(a.out, widths, rows, about)
    extract(crops, features, net, clip, settings['preprocess'], recipe)

    source, fake, fold = crops.source[rows], crops.fake[rows], crops.folds(FOLDS)[rows]
    by_label = np.isin(source, a.by_label)
    is_unscored = np.isin(source, teacher['no_opinions_of'])
    score = svm_scores(features.read('clip'), source, fake, fold)
    weight = source_weights(source, fake) * np.where(by_label, KNOWN_WEIGHT, 1)
    w, b = ridge(features.read('pooled'), targets_of(score, fake, is_unscored, by_label), weight)
    add_to_last_layer(net, w, b, a.share)
    about |= dict(script='last_layer.py', share=a.share, by_label=a.by_label, ridge=RIDGE)
    before = weights.settings_of(a.init).get('recipe', {})
    settings |= dict(recipe=before | dict(last_layer=about))
    weights.write(net.state_dict(), settings, a.out / 'faces.safetensors')
    agree = np.corrcoef(features.read('pooled') @ w + b, score)[0, 1]
    print(f'{len(rows)} pictures; agrees with the machine: correlation {agree:.2f}')
    return net


if __name__ == '__main__':
    main()
