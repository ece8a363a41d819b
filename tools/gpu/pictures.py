"""Make training squares from the crop of a face: cut, corrupted, blended with itself.

All pictures are H × W × 3 uint8 RGB, and `rng` is a `random.Random`: one seed gives one picture.
The masks are those of face_future.blends, which can't be imported here: it needs albumentations
and pandas. nbs/checks/gpu_training.ipynb asserts that the two give the same mask.
"""

import random
from dataclasses import dataclass

import cv2
import numpy as np

cv2.setNumThreads(1)  # each worker process is one thread

LANDMARKS = np.float32([(-0.5, 0), (0.5, 0), (0, 0.6), (-0.42, 1.08), (0.42, 1.08)])
_RIGHT = [(0.38, 1.68), (0.68, 1.35), (0.88, 0.9), (0.97, 0.45)]
_RIGHT += [(1, 0.05), (0.92, -0.4), (0.6, -0.62), (0.25, -0.68)]
_LEFT = [(-x, y) for x, y in _RIGHT[::-1]]
OUTLINE = np.float32([*_LEFT[3:], (0, 1.8), *_RIGHT, *_LEFT[:3]])  # of a face, eyes 1 apart


def generator(rng: random.Random) -> np.random.Generator:
    "A NumPy generator seeded from `rng`."
    return np.random.default_rng(rng.getrandbits(32))


def resized(rgb: np.ndarray, side: int) -> np.ndarray:
    "A square picture at `side` × `side`: area-averaged down, cubic up."
    if len(rgb) == side:
        return rgb
    how = cv2.INTER_AREA if len(rgb) > side else cv2.INTER_CUBIC
    return cv2.resize(rgb, (side, side), interpolation=how)


def bounded(x: np.ndarray) -> np.ndarray:
    "Values rounded into 0 to 255, uint8."
    return np.clip(x, 0, 255).astype(np.uint8)


# Cutting


@dataclass(frozen=True)
class Geometry:
    "How a face is cut out. Both halves of a pair share one."

    margin: float  # side of the square in units of the face's longer side
    dx: float  # shift, in units of the square's side
    dy: float
    mirrored: bool
    degrees: float  # of a tilt


def draw_geometry(rng: random.Random, zoom: bool = True) -> Geometry:
    "A third at margin 1.3, else 1.1 to 1.5, with `zoom` sometimes 0.8 to 1.1."
    u = rng.random()
    if u < 0.35:
        margin = 1.3
    elif u < 0.85 or not zoom:
        margin = rng.uniform(1.1, 1.5)
    else:
        margin = rng.uniform(0.8, 1.1)
    dx, dy = rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)
    mirrored = rng.random() < 0.5
    degrees = rng.uniform(-10, 10) if rng.random() < 0.3 else 0
    return Geometry(margin, dx, dy, mirrored, degrees)


def moved(rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    "An affine map (2 × 3) of a picture, reflected at the edges."
    size = rgb.shape[1], rgb.shape[0]
    how = dict(flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return cv2.warpAffine(rgb, matrix, size, **how)


def cut(rgb: np.ndarray, box, g: Geometry) -> np.ndarray:
    "The square round a face's box (left, top, width, height, in pixels)."
    height, width = rgb.shape[:2]
    if g.degrees:
        rgb = moved(rgb, cv2.getRotationMatrix2D((width / 2, height / 2), g.degrees, 1))
    x, y, w, h = box
    side = max(8, round(min(g.margin * max(w, h), height, width)))
    left = round(min(max(x + w / 2 - side / 2 + g.dx * side, 0), width - side))
    top = round(min(max(y + h / 2 - side / 2 + g.dy * side, 0), height - side))
    square = rgb[top : top + side, left : left + side]
    return np.ascontiguousarray(square[:, ::-1] if g.mirrored else square)


# Corruptions


def _tones(rng, k):
    "A curve for each channel, 256 × 3: brightness and contrast, gamma, or a shift by channel."
    levels = np.arange(256, dtype=np.float32)
    if k < 0.4:
        curve = (levels - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-40, 40)
        return np.stack([curve] * 3, 1)
    if k < 0.6:
        return np.stack([255 * (levels / 255) ** rng.uniform(0.65, 1.5)] * 3, 1)
    return np.stack([levels + rng.uniform(-22, 22) for _ in range(3)], 1)


def recoloured(rgb: np.ndarray, rng: random.Random) -> np.ndarray:
    "Another camera's colours: grey, other tones, or another hue and saturation."
    k = rng.random()
    if k < 0.12:
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        return cv2.merge([grey, grey, grey])
    if k < 0.8:
        return cv2.LUT(rgb, bounded(_tones(rng, k)).reshape(1, 256, 3))
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + rng.randint(-8, 8)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.6, 1.4), 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def occluded(rgb: np.ndarray, rng: random.Random) -> np.ndarray:
    "One to three patches of random colour, .08 to .3 of the side each way."
    rgb = rgb.copy()
    n = len(rgb)
    for _ in range(rng.randint(1, 3)):
        height, width = (int(n * rng.uniform(0.08, 0.3)) for _ in range(2))
        top, left = rng.randint(0, n - height), rng.randint(0, n - width)
        colour = [rng.randint(0, 255) for _ in range(3)]
        rgb[top : top + height, left : left + width] = colour
    return rgb


def blurred(rgb: np.ndarray, rng: random.Random, sigma: float) -> np.ndarray:
    "A Gaussian blur of .3 to `sigma` pixels, or a movement of 3 to 7 pixels."
    if rng.random() < 0.8:
        return cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, sigma))
    k = rng.choice([3, 5, 7])
    kernel = np.zeros((k, k), np.float32)
    kernel[k // 2] = 1 / k
    if rng.random() < 0.5:
        kernel = np.ascontiguousarray(kernel.T)
    return cv2.filter2D(rgb, -1, kernel)


def sharpened(rgb: np.ndarray, rng: random.Random) -> np.ndarray:
    "An unsharp mask of one pixel."
    a = rng.uniform(0.2, 1.0)
    return cv2.addWeighted(rgb, 1 + a, cv2.GaussianBlur(rgb, (0, 0), 1.0), -a, 0)


def shrunk(rgb: np.ndarray, rng: random.Random, size: int, least: float = 0.3) -> np.ndarray:
    "At `least` to 1 of the network's `size`, if the square is larger."
    target = rng.uniform(least, 1) * size
    if target >= len(rgb):
        return rgb
    how = rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC])
    return cv2.resize(rgb, (max(32, int(target)),) * 2, interpolation=how)


def enlarged(rgb: np.ndarray, rng: random.Random, most: float) -> np.ndarray:
    "A square made 1.2 to `most` times smaller, and enlarged to its size again."
    side = round(len(rgb) / rng.uniform(1.2, most))
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    how = rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
    return cv2.resize(small, (len(rgb),) * 2, interpolation=how)


def noisy(rgb: np.ndarray, rng: random.Random, most: float = 20) -> np.ndarray:
    "Normal noise of 1.5 to `most` levels, of each channel or of all alike."
    strength = rng.uniform(1.5, most)
    channels = 3 if rng.random() < 0.6 else 1
    shape = (*rgb.shape[:2], channels)
    noise = generator(rng).standard_normal(shape, dtype=np.float32)
    return bounded(rgb + strength * noise)


def compressed(rgb: np.ndarray, rng: random.Random, least: int = 30, most: int = 99) -> np.ndarray:
    "Saved as JPEG (4:4:4 or 4:2:0) or WebP of a quality from `least` to `most`, and read back."
    if rng.random() < 0.2:
        ending, options = '.webp', [cv2.IMWRITE_WEBP_QUALITY, rng.randint(least, min(most, 98))]
    else:
        ending, options = '.jpg', [cv2.IMWRITE_JPEG_QUALITY, rng.randint(least, most)]
        sampling = rng.choice([0x111111, 0x221111, 0x221111])
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, data = cv2.imencode(ending, rgb[..., ::-1], options)
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def corrupted(rgb: np.ndarray, rng: random.Random, strength: float, size: int) -> np.ndarray:
    "A square with random corruptions. `strength` multiplies the chances of most of them."
    if rng.random() < 0.3:
        rgb = recoloured(rgb, rng)
    if rng.random() < 0.05:
        rgb = occluded(rgb, rng)
    if rng.random() < 0.15 * strength:
        blur = rng.random() < 0.85
        rgb = blurred(rgb, rng, max(0.35, 2.6 * len(rgb) / 224)) if blur else sharpened(rgb, rng)
    if rng.random() < 0.3 * strength:
        rgb = shrunk(rgb, rng, size)
    if rng.random() < 0.15 * strength:
        rgb = noisy(rgb, rng)
    if rng.random() < 0.36 * strength:
        rgb = compressed(rgb, rng)
    if rng.random() < 0.12 * strength:
        rgb = blurred(rgb, rng, max(0.35, 2.2 * len(rgb) / 224))
    return rgb


# Masks of a face, and self-blending (Shiohara and Yamasaki 2022)


def _high(p):
    "The outline with a higher forehead."
    return np.where(p[:, 1:] < 0, p * np.float32([1, 1.6]), p)


def _low(p):
    "The part of the outline below the eyes."
    return np.maximum(p, np.float32([-9, 0.3]))


def _middle(p):
    "Eyes, nose and mouth."
    return np.clip(p, np.float32([-0.8, -0.45]), np.float32([0.8, 1.45]))


PARTS = dict(face=np.copy, high=_high, low=_low, middle=_middle)


def _hull_mask(landmarks, height, width, rng):
    "The hull of a random part of the face, fitted to the landmarks: height × width, 0 or 1."
    part = PARTS[rng.choice(list(PARTS), p=[0.5, 0.2, 0.15, 0.15])]
    outline = part(OUTLINE) + rng.normal(0, 0.04, OUTLINE.shape)
    fit = np.linalg.lstsq(np.c_[LANDMARKS, np.ones(5)], np.float32(landmarks), rcond=None)[0]
    hull = cv2.convexHull(np.float32(np.c_[outline, np.ones(len(outline))] @ fit))
    mask = np.zeros((height, width), np.uint8)
    return np.float32(cv2.fillConvexPoly(mask, hull.round().astype(np.int32), 1))


def _bend(mask, eye, rng):
    "A mask with its border bent at random. `eye` is the distance between the eyes, in pixels."
    height, width = mask.shape
    bend = rng.uniform(-1, 1, (height, width, 2)).astype(np.float32)
    bend = cv2.GaussianBlur(bend, (0, 0), 0.15 * eye)
    bend *= rng.uniform(0, 0.12) * eye / (np.abs(bend).max() + 1e-6)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    return cv2.remap(mask, grid + bend, None, cv2.INTER_LINEAR)


def face_mask(landmarks, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    "A random, softened mask of a face (5 × 2 landmarks, pixels): height × width, 0 to 1."
    eye = max(4.0, np.linalg.norm(np.subtract(landmarks[1], landmarks[0])))
    mask = _bend(_hull_mask(landmarks, height, width, rng), eye, rng)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.03, 0.15) * eye)
    shrink = rng.uniform(0, 0.5)  # the seam moves inwards
    mask = np.clip((mask - shrink) / (1 - shrink), 0, 1)
    mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.01, 0.08) * eye)
    return mask * rng.choice([0.25, 0.5, 0.75, 1, 1, 1])


def mixed(mask: np.ndarray, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    "`inner` where the mask (H × W) is 1, `outer` where it is 0."
    mask = mask[..., None]
    return bounded((mask * inner + (1 - mask) * outer).round())


def pasted(photo: np.ndarray, fake: np.ndarray, landmarks, rng: random.Random) -> np.ndarray:
    "The photograph with the fake in a region of its face only."
    mask = face_mask(landmarks, *photo.shape[:2], generator(rng))
    return mixed(mask / max(mask.max(), 1e-6), fake, photo)


def _other_colours(rgb, rng):
    "Slightly other colours, hue, saturation, brightness and contrast."
    if rng.random() < 0.3:
        rgb = bounded(rgb.astype(np.int16) + np.int16([rng.randint(-20, 20) for _ in range(3)]))
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + rng.randint(-2, 2)) % 180
    hsv[..., 1] += rng.randint(-30, 30)
    hsv[..., 2] += rng.randint(-15, 15)
    rgb = cv2.cvtColor(np.clip(hsv, 0, [179, 255, 255]).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return bounded(rgb * np.float32(rng.uniform(0.9, 1.1)) + rng.uniform(-25, 25))


def _down_and_up(rgb, rng):
    "At .25 to .6 of its side, and back."
    n = len(rgb)
    side = max(16, int(n * rng.uniform(0.25, 0.6)))
    down = rng.choice([cv2.INTER_AREA, cv2.INTER_NEAREST])
    up = rng.choice([cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_CUBIC])
    return cv2.resize(cv2.resize(rgb, (side, side), interpolation=down), (n, n), interpolation=up)


def _crisp(rgb, rng):
    "Sharpened by a 3 × 3 kernel, mixed with itself."
    share, light = rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.0)
    kernel = np.float32([[-1, -1, -1], [-1, 8 + light, -1], [-1, -1, -1]])
    return cv2.addWeighted(rgb, 1 - share, cv2.filter2D(rgb, -1, kernel), share, 0)


def altered(rgb: np.ndarray, rng: random.Random) -> np.ndarray:
    "Another version of a picture: other colours, and other resolution or sharpness."
    rgb = _other_colours(rgb, rng)
    u = rng.random()
    if u < 1 / 3:
        return _down_and_up(rgb, rng)
    if u < 2 / 3:
        return _crisp(rgb, rng)
    return cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.4, 1.5))


def self_blend(rgb: np.ndarray, landmarks, rng: random.Random) -> np.ndarray:
    "A square blended with an altered, slightly moved version of itself in its face."
    versions = [altered(rgb, rng), rgb]
    inner, outer = versions if rng.random() < 0.5 else versions[::-1]
    height, width = rgb.shape[:2]
    scale = rng.uniform(0.95, 1 / 0.95)
    dx, dy = rng.uniform(-0.03, 0.03) * width, rng.uniform(-0.03, 0.03) * height
    middle = (1 - scale) * width / 2, (1 - scale) * height / 2
    inner = moved(inner, np.float32([[scale, 0, middle[0] + dx], [0, scale, middle[1] + dy]]))
    return mixed(face_mask(landmarks, height, width, generator(rng)), inner, outer)


# Faces of low resolution, as swaps have them

EYES = 30, 56  # pixels between the eyes in what a swap of 128 pixels gives (about 35 to 40)
LEAST_EYES = 56  # of a photograph: below that the loss of detail could not be seen


def low_face(rgb: np.ndarray, landmarks, rng: random.Random) -> np.ndarray | None:
    """A square whose face is at the resolution of a generator of 128 pixels, as inswapper's swaps.

    What tells it from the photograph is that the face is softer than what is round it. None where
    the face is hardly larger than what such a generator gives."""
    n = len(rgb)
    eye = float(np.linalg.norm(np.subtract(landmarks[1], landmarks[0])))
    if eye < LEAST_EYES:
        return None
    scale = min(rng.uniform(*EYES) / eye, rng.uniform(0.55, 0.75))
    inner = _other_colours(rgb, rng) if rng.random() < 0.4 else rgb
    inner = cv2.resize(inner, (max(24, int(n * scale)),) * 2, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.35:
        inner = cv2.GaussianBlur(inner, (0, 0), rng.uniform(0.3, 0.8))
    if rng.random() < 0.2:
        inner = cv2.bilateralFilter(inner, 0, rng.uniform(8, 25), rng.uniform(1, 2.5))
    up = rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
    inner = cv2.resize(inner, (n, n), interpolation=up)
    mask = face_mask(landmarks, n, n, generator(rng))
    return mixed(mask / max(mask.max(), 1e-6), inner, rgb)


def skin_smoothed(rgb: np.ndarray, landmarks, rng: random.Random) -> np.ndarray:
    "A photograph as a beauty filter leaves it: skin is smoothed, edges stay."
    n = len(rgb)
    smooth = cv2.bilateralFilter(rgb, 0, rng.uniform(10, 28), rng.uniform(2, 5) * n / 224)
    if rng.random() < 0.3:
        return smooth
    return mixed(face_mask(landmarks, n, n, generator(rng)), smooth, rgb)


def touched(rgb: np.ndarray, rng: random.Random) -> np.ndarray:
    "A square with weak corruptions, so that fine detail can still be compared."
    if rng.random() < 0.25:
        rgb = recoloured(rgb, rng)
    if rng.random() < 0.03:
        rgb = occluded(rgb, rng)
    u = rng.random()
    if u < 0.15:
        rgb = shrunk(rgb, rng, len(rgb), least=0.85)
    elif u < 0.22:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 0.7) * len(rgb) / 224)
    elif u < 0.28:
        rgb = sharpened(rgb, rng)
    if rng.random() < 0.08:
        rgb = noisy(rgb, rng, most=5)
    return compressed(rgb, rng, least=55) if rng.random() < 0.5 else rgb
