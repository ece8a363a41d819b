"""The networks: the student, CLIP as its teacher, and the autoencoder that makes pairs.

The autoencoder's layers are those of face_future.latent, which can't be imported here: it needs
albumentations and pandas. nbs/checks/gpu_training.ipynb asserts that the two agree.
"""

from pathlib import Path

import timm
import torch
from common import need, stop
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

# Weights files


def read_state(file: str | Path, what: str) -> dict:  # name -> tensor, float32
    "A state dict from safetensors. The program ends with a sentence if it can't be read."
    try:
        state = load_file(need(file, what))
    except SafetensorError as error:
        stop(f'{file}: not whole safetensors ({error}). It should hold {what}.')
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def features_of(body: dict) -> int:
    "How many features an ensemble's member gives: the columns that it has in the common head."
    if 'conv_head.weight' in body:  # an EfficientNet
        return len(body['conv_head.weight'])
    return 1 if 'evidence.weight' in body else 81  # detail_grid, or patches


def member_of(state: dict, net: nn.Module) -> dict:
    "Of an ensemble (face_future.ensemble) the member that is such a network, with its own head."
    own = {k: v.shape for k, v in net.state_dict().items() if not k.startswith('classifier.')}
    numbers = sorted({k.split('.')[1] for k in state if k.startswith('bodies.')})
    first = 0  # of its columns in the common head
    for k in numbers:
        start = f'bodies.{k}.'
        body = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}
        width = features_of(body)
        if {n: v.shape for n, v in body.items()} == own:
            head = state['classifier.weight'][:, first : first + width]
            return body | {'classifier.weight': head, 'classifier.bias': state['classifier.bias']}
        first += width
    return state


def fill(net: nn.Module, state: dict, name: str | Path) -> nn.Module:
    "Load a state dict. The program ends with a sentence if it is another network's."
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        stop(f'{name}: weights of another network ({first[:200]}).')
    return net


def normalised(x: torch.Tensor, mean, std) -> torch.Tensor:
    "Pictures B × S × S × 3 uint8 -> B × 3 × S × S float32, channels last."
    mean = torch.tensor(mean, device=x.device) * 255
    std = torch.tensor(std, device=x.device) * 255
    return ((x.float() - mean) / std).permute(0, 3, 1, 2)


# The student


class Student(nn.Module):
    "An EfficientNet of timm's, with heads that imitate a teacher's features and tokens."

    TAP = 4  # the tokens are imitated after this block (stride 16), or after the last but one

    def __init__(self, arch: str, drop: float, drop_path: float, features: int, tokens: int):
        super().__init__()
        self.net = make_net(arch, drop_path)
        self.drop = drop
        self.tap = min(self.TAP, len(self.net.blocks) - 2)
        with torch.no_grad():
            channels = self.map_and_features(torch.zeros(1, 3, 64, 64))[0].shape[1]
        self.imitate_features = nn.Linear(self.net.num_features, features) if features else None
        self.imitate_tokens = nn.Conv2d(channels, tokens, 1) if tokens else None
        self._begin_small()

    @torch.no_grad()
    def _begin_small(self):
        "Begin with small weights, so that the imitation doesn't upset the network."
        if self.imitate_features is not None:
            self.imitate_features.weight.mul_(0.2)
        if self.imitate_tokens is not None:
            self.imitate_tokens.weight.mul_(0.05)

    def map_and_features(self, x):
        "The map after block `tap`, B × C × h × w, and the pooled features, B × F."
        net = self.net
        x = net.bn1(net.conv_stem(x))
        tapped = None
        for i, block in enumerate(net.blocks):
            x = block(x)
            if i == self.tap:
                tapped = x
        return tapped, net.bn2(net.conv_head(x)).mean((2, 3))

    def forward(self, x):
        "Logits B × 2, imitated features B × n and imitated tokens B × m × h × w (or None)."
        tapped, features = self.map_and_features(x)
        logits = self.net.classifier(F.dropout(features, self.drop, self.training))
        seen = self.imitate_features(features) if self.imitate_features is not None else None
        tokens = self.imitate_tokens(tapped) if self.imitate_tokens is not None else None
        return logits, seen, tokens


def make_net(arch: str, drop_path: float = 0.0) -> nn.Module:
    "A timm network with two outputs, real and fake, built as EfficientNets are."
    if not timm.is_model(arch):
        stop(f'{arch}: timm {timm.__version__} has no network of that name.')
    net = timm.create_model(arch, num_classes=2, drop_path_rate=drop_path)
    if not all(hasattr(net, part) for part in ('conv_stem', 'bn1', 'blocks', 'conv_head', 'bn2')):
        stop(f'{arch}: not built as an EfficientNet, and only those are trained here.')
    return net


def parameter_groups(student: Student, rates: list) -> list:  # of dicts for an optimizer
    "Early blocks, late blocks and heads, with their peak learning rates, each parameter once."
    early = ['net.conv_stem', 'net.bn1', *(f'net.blocks.{i}.' for i in range(3))]
    heads = ('net.classifier', 'imitate_')
    groups = [[], [], []]
    for name, p in student.named_parameters():
        if name.startswith(heads):
            groups[2].append(p)
        else:
            groups[0 if name.startswith(tuple(early)) else 1].append(p)
    pairs = zip(groups, rates, strict=True)
    return [dict(params=ps, lr=rate, peak=rate) for ps, rate in pairs]


# CLIP (Radford et al. 2021), as a teacher


def clip_to_timm(state: dict) -> dict:
    "From the names of transformers' `vision_model` to those of timm's vision transformer."
    state = {k.removeprefix('vision_model.'): v for k, v in state.items()}
    out = dict(cls_token=state['embeddings.class_embedding'].reshape(1, 1, -1))
    out['pos_embed'] = state['embeddings.position_embedding.weight'][None]
    out['patch_embed.proj.weight'] = state['embeddings.patch_embedding.weight']
    for kind in ('weight', 'bias'):
        out[f'norm_pre.{kind}'] = state[f'pre_layrnorm.{kind}']
        for i in range(11):
            layer, block = f'encoder.layers.{i}', f'blocks.{i}'
            qkv = [state[f'{layer}.self_attn.{x}_proj.{kind}'] for x in 'qkv']
            out[f'{block}.attn.qkv.{kind}'] = torch.cat(qkv)
            out[f'{block}.attn.proj.{kind}'] = state[f'{layer}.self_attn.out_proj.{kind}']
            for a, b in (('norm1', 'layer_norm1'), ('norm2', 'layer_norm2')):
                out[f'{block}.{a}.{kind}'] = state[f'{layer}.{b}.{kind}']
            for part in ('fc1', 'fc2'):
                out[f'{block}.mlp.{part}.{kind}'] = state[f'{layer}.mlp.{part}.{kind}']
    return out


class Clip(nn.Module):
    "CLIP's ViT-B/16, its first eleven blocks, left as it is."

    def __init__(self, file: str | Path, blocks: list, token_block: int):
        super().__init__()
        self.net = timm.create_model('vit_base_patch16_clip_quickgelu_224', num_classes=0)
        self.net.blocks = self.net.blocks[:11]
        self.net.norm = nn.Identity()
        try:
            state = clip_to_timm(read_state(file, 'CLIP, as clip.py writes it'))
        except KeyError as error:
            stop(f'{file}: lacks {error}. The script clip.py makes it from the ONNX file of CLIP.')
        fill(self.net, state, file).requires_grad_(False)
        self.blocks = blocks
        self.token_block = token_block

    def forward(self, pictures):
        "B × 224 × 224 × 3 uint8 -> features B × 6144 float32, tokens B × 196 × 768."
        cfg = self.net.default_cfg
        x = normalised(pictures, cfg['mean'], cfg['std']).to(self.net.pos_embed.dtype)
        wanted = sorted({*self.blocks, self.token_block})
        how = dict(return_prefix_tokens=True, output_fmt='NLC', intermediates_only=True)
        found = dict(zip(wanted, self.net.forward_intermediates(x, wanted, **how), strict=True))
        parts = []
        for i in self.blocks:
            tokens, first = found[i]
            parts += [first[:, 0].float(), tokens.float().mean(1)]
        return torch.cat(parts, 1), found[self.token_block][0]


class Basis(nn.Module):
    "Principal components of features, each of spread 1."

    def __init__(self, inputs: int, components: int):
        super().__init__()
        self.register_buffer('mean', torch.zeros(inputs))
        self.register_buffer('spread', torch.ones(inputs))
        self.register_buffer('axes', torch.zeros(inputs, components))

    def fit(self, x: torch.Tensor, most: int = 6000) -> float:  # share of the spread that is kept
        "From N × inputs. Fewer than `components` pictures leave the rest at zero."
        self.mean.copy_(x.mean(0))
        self.spread.copy_(x.std(0) + 1e-3)
        z = self.standard(x)[:most]
        _, s, axes = torch.linalg.svd(z, full_matrices=False)
        n = min(self.axes.shape[1], int((s > 1e-4 * s[0]).sum()))
        self.axes[:, :n] = (axes[:n] / (s[:n, None] / len(z) ** 0.5)).T
        return float((s[:n] ** 2).sum() / (s**2).sum())

    def standard(self, x):
        return (x - self.mean) / self.spread

    def forward(self, x):
        "... × inputs -> ... × components, within 6 spreads."
        return (self.standard(x) @ self.axes).clamp(-6, 6)


class BlindHeads(nn.Module):
    "A head for each fold, which never learns from the groups of that fold: B × F -> B × folds."

    def __init__(self, features: int, folds: int, hidden: int):
        super().__init__()
        self.first = nn.Parameter(torch.randn(folds, features, hidden) * features**-0.5)
        self.first_bias = nn.Parameter(torch.zeros(folds, 1, hidden))
        self.second = nn.Parameter(torch.randn(folds, hidden, 1) * 0.3 * hidden**-0.5)
        self.linear = nn.Parameter(torch.zeros(features, folds))
        self.bias = nn.Parameter(torch.zeros(folds))

    def forward(self, x):
        dropped = F.dropout(x, 0.3, self.training)
        hidden = F.gelu(torch.einsum('bd,kdh->kbh', dropped, self.first) + self.first_bias)
        hidden = F.dropout(hidden, 0.5, self.training)
        return (hidden @ self.second).squeeze(-1).T + dropped @ self.linear + self.bias


# The autoencoder that makes pairs: TAEF2's layers


def _conv(n):
    "A 3 × 3 convolution of `n` channels."
    return nn.Conv2d(n, n, 3, padding=1)


class Block(nn.Module):
    "Three 3 × 3 convolutions of `n` channels with a shortcut, after a bottleneck if `pool`."

    def __init__(self, n: int, pool: bool = False):
        super().__init__()
        self.conv = nn.Sequential(_conv(n), nn.ReLU(), _conv(n), nn.ReLU(), _conv(n))
        wide, narrow = nn.Conv2d(n, 4 * n, 1, bias=False), nn.Conv2d(4 * n, n, 1, bias=False)
        layers = wide, nn.GroupNorm(4, 4 * n), nn.ReLU(), narrow
        self.pool = nn.Sequential(*layers) if pool else None

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    "Softly keeps latents between -3 and 3."

    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def encoder(latents: int = 32, n: int = 64) -> nn.Sequential:
    "RGB in 0 to 1, N × 3 × H × W with sides that 8 divides -> N × `latents` × H/8 × W/8."
    layers = [nn.Conv2d(3, n, 3, padding=1), Block(n)]
    for pool in (False, False, True):
        layers.append(nn.Conv2d(n, n, 3, stride=2, padding=1, bias=False))
        layers += [Block(n, pool) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(n, latents, 3, padding=1))


def decoder(latents: int = 32, n: int = 64) -> nn.Sequential:
    "The way back, whose values may lie a little beyond 0 and 1."
    layers = [Clamp(), nn.Conv2d(latents, n, 3, padding=1), nn.ReLU()]
    layers += [Block(n, pool=True) for _ in range(3)]
    for blocks in (3, 3, 1):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(n, n, 3, padding=1, bias=False)]
        layers += [Block(n) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(n, 3, 3, padding=1))


class Autoencoder(nn.Module):
    "Reconstructs photographs through latents with some noise."

    def __init__(self, encoder_file: str | Path, decoder_file: str | Path):
        super().__init__()
        what = "half of an autoencoder in TAEF2's layout"
        self.encoder = fill(encoder(), read_state(encoder_file, what), encoder_file)
        self.decoder = fill(decoder(), read_state(decoder_file, what), decoder_file)
        self.requires_grad_(False)

    @torch.inference_mode()
    def reconstruct(self, pictures, noise, side: int, cubic: bool, twice: bool):
        "B × s × s × 3 uint8, noise B -> B × side × side × 3 uint8."
        dtype = next(self.parameters()).dtype
        x = pictures.permute(0, 3, 1, 2).to(dtype) / 255
        for _ in range(2 if twice else 1):
            z = self.encoder(x.contiguous(memory_format=torch.channels_last))
            strength = noise.view(-1, 1, 1, 1) * z.float().std((1, 2, 3), keepdim=True)
            z = z + (strength * torch.randn_like(z, dtype=torch.float32)).to(dtype)
            x = self.decoder(z).clamp(0, 1)
        x = x.float()
        if x.shape[-1] != side:
            mode = 'bicubic' if cubic else 'bilinear'
            x = F.interpolate(x, size=(side, side), mode=mode, align_corners=False)
        return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
