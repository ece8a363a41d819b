"""Extract CLIP's vision tower from ONNX: `python tools/gpu/clip.py CLIP.onnx clip.safetensors`.

It needs the packages `onnx` and `safetensors`; the machine with the GPU then needs no `onnx`. The
ONNX file may be quantised to 8 bits (`MatMulInteger`) or not. The output has the names of
transformers' `CLIPVisionModel` (`vision_model.…`), half precision, and the first eleven blocks.
"""

import argparse
import re

import numpy as np
import torch
from common import need, stop, write_whole
from safetensors.torch import save_file

BLOCKS = 11  # the last one and the projection after it are not used here


def arrays_of(model) -> tuple:
    "The float arrays by their names, and the matrices by the place of their multiplication."
    from onnx import numpy_helper

    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    matrices = {}
    for node in model.graph.node:
        place = re.search(r'layers\.(\d+)/(self_attn|mlp)/(\w+)/', node.name)
        if place and node.op_type in ('MatMulInteger', 'MatMul') and node.input[1] in arrays:
            name = 'vision_model.encoder.layers.{}.{}.{}.weight'.format(*place.groups())
            matrices[name] = matrix(node, arrays)
    floats = {k: v for k, v in arrays.items() if k.startswith('vision_model.')}
    return {k: v for k, v in floats.items() if v.dtype == np.float32}, matrices


def matrix(node, arrays) -> np.ndarray:  # outputs × inputs, float32
    "The weights of a multiplication, scaled back from 8 bits if they are quantised."
    weight = arrays[node.input[1]]
    if node.op_type == 'MatMul':
        return weight.T
    scale = arrays[node.input[1].removesuffix('_quantized') + '_scale']
    zero = arrays[node.input[3]] if len(node.input) > 3 else np.zeros(1)
    return ((weight.astype(np.float32) - zero.astype(np.float32)) * scale).T


def wanted(name: str) -> bool:
    layer = re.search(r'layers\.(\d+)\.', name)
    if layer:
        return int(layer[1]) < BLOCKS
    return 'embeddings' in name or 'pre_layrnorm' in name


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('onnx', help="CLIP ViT-B/16's vision tower")
    parser.add_argument('out', help='safetensors to write')
    a = parser.parse_args(args)
    try:
        import onnx
    except ImportError:
        stop('The package onnx is not here: pip install onnx.')
    try:
        floats, matrices = arrays_of(onnx.load(need(a.onnx, "CLIP's vision tower, as ONNX")))
    except Exception as error:  # protobuf may raise any error on other bytes
        stop(f'{a.onnx}: not an ONNX file, or damaged ({error}).')
    state = {k: v for k, v in {**floats, **matrices}.items() if wanted(k)}
    if len(matrices) < 6 * BLOCKS or 'vision_model.embeddings.class_embedding' not in state:
        stop(f"{a.onnx}: not CLIP ViT-B/16's vision tower with the names of transformers.")
    half = {k: torch.from_numpy(np.ascontiguousarray(v, np.float16)) for k, v in state.items()}
    file = write_whole(a.out, lambda path: save_file(half, path))
    print(f'{file}: {len(half)} arrays, {file.stat().st_size / 1e6:.0f} MB')


if __name__ == '__main__':
    main()
