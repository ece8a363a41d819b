"""The table of results in README.md, made from the packaged weights: `make readme`.

The weights file contains the results of its evaluation, and README must show the same figures:
nbs/checks/house_rules.ipynb compares the two.
"""

import re

from checksums import ROOT, short
from face_future.card import has_interval
from face_future.model_config import read_settings

BLOCK = re.compile(r'(<!-- results: .*? -->\n).*?(<!-- end of results -->)', re.S)
NAMES = {  # of the fakes: what a pair has besides is in the sentence above the table
    'dfdc': 'DFDC face swaps, frames of videos',
    'stylegan': 'StyleGAN faces',
    'stylegan2': 'StyleGAN2 faces',
    'stylegan2-edit': 'StyleGAN2 faces, edited',
    'gan-inversion': 'people inverted into StyleGAN2',
    'flux-sdxl-dalle3': 'FLUX, SDXL, DALL-E 3 portraits',
    'flux-schnell': 'FLUX.1 schnell portraits',
    'flux-lora': 'FLUX with a LoRA of one person',
    'sd-portrait-lora': 'Stable Diffusion studio portraits',
    'gpt-gemini': 'GPT-image and Gemini',
    'inswapper': 'inswapper swaps on FFHQ',
    'stable-diffusion-2.1': 'Stable Diffusion 2.1 portraits',
    'pooled': '**all together**',
}
COLUMNS = ['fakes', 'fakes+photographs', 'AUROC (95 % interval)', 'fakes called fake, %']
COLUMNS += ['photographs called fake, %']


def figures(settings):
    "The rows of the evaluation that a weights file keeps: pair, metric, value, lo, hi, counts."
    evaluation = settings['evaluation']
    return evaluation['figures'] if isinstance(evaluation, dict) else evaluation


def pair_name(pair):
    "The name of the fakes of a pair, for people."
    fakes = pair.split(', ')[0]
    return NAMES.get(fakes, fakes)


def percent(share, digits):
    return f'{share:.{digits}%}'.replace('%', ' %')


def with_interval(figure):
    "An AUROC with its interval, where it has an informative one."
    known = f'{figure["lo"]:.3f}–{figure["hi"]:.3f}' if has_interval(figure) else 'no interval'
    return f'**{figure["value"]:.3f}** ({known})'


def row(pair, found):
    "A pair of sources as a row of the table, where `found` maps its metrics to their figures."
    auroc = found['auroc']
    cells = [
        pair_name(pair),
        f'{auroc["n_fake"]:,}+{auroc["n_real"]:,}',
        with_interval(auroc),
        f'{100 * found["recall"]["value"]:.0f}',
        f'{100 * found["false_alarms"]["value"]:.1f}',
    ]
    return f'| {" | ".join(cells)} |'


def hardest(pairs):
    "Of each kind of fakes only the pair with the lowest AUROC, and all together last."
    shown = {}
    pairs = {pair: found for pair, found in pairs.items() if 'auroc' in found}
    for pair, found in sorted(pairs.items(), key=lambda p: p[1]['auroc']['value']):
        shown.setdefault(pair.split(', ')[0], (pair, found))
    together = shown.pop('pooled')
    return [*shown.values(), together]


def table(settings):
    "The results as Markdown: a row for each kind of fakes, all together last, and which weights."
    pairs = {}
    for figure in figures(settings):
        pairs.setdefault(figure['pair'], {})[figure['metric']] = figure
    lines = [f'| {" | ".join(COLUMNS)} |', '|---' * len(COLUMNS) + '|']
    lines += [row(pair, found) for pair, found in hardest(pairs)]
    return '\n'.join([*lines, '', note(settings)])


def note(settings):
    "Which weights, and how they decide, in a sentence each."
    guarantee = settings['guarantee']
    mean = guarantee.get('miss_over') == 'mean'
    over = ', on average over their kinds' if mean else ''
    n = len(guarantee['photo_sources'])  # named in the model card
    return (
        f'Weights `faces {settings["checksum"]}`: `fake` from a `p_fake` of '
        f'{settings["threshold"]:.3f} (at most {100 * guarantee["max_fpr"]:.6g} % of the '
        f'photographs in each of the {n} largest sources), `real` below '
        f'{settings["lower_threshold"]:.3f} (at most {100 * guarantee["max_miss"]:.6g} % of these '
        f'fakes{over}), `unsure` between.'
    )


def with_results(readme, settings):
    "The text of README with today's results between its two marks."
    text, n = BLOCK.subn(lambda m: f'{m[1]}\n{table(settings)}\n\n{m[2]}', readme)
    assert n == 1, 'README.md has no place for the results, or more than one'
    return text


def packaged_settings():
    "What the packaged weights for faces say of themselves, with their short checksum."
    file = ROOT / 'face_future' / 'weights' / 'faces.safetensors'
    return read_settings(file) | {'checksum': short(file)}


if __name__ == '__main__':
    page = ROOT / 'README.md'
    page.write_text(with_results(page.read_text(encoding='utf-8'), packaged_settings()), 'utf-8')
    print("README.md has the results of today's weights.")
