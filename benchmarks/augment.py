"""Views a second of `ssl_models.augment` against the same pipeline written with PIL, picture by picture.

    python -m benchmarks.augment [--peer PYTHON] [--seconds 3] [--rounds 5]

Both pipelines take uint8 pictures in memory to a float batch, with the same probabilities and strengths, on all cores:
ours as one batch with torch's threads, PIL's with one process per core. They run in turns within one run; the ratio
is of medians. `--peer` names the Python of an environment with torchvision, whose transforms (those of lightly's
SimCLR example) then run in turn, too. Results go to benchmarks/results/augment.json with machine and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

from ssl_models import augment, keyed

RESULTS = Path(__file__).parent / "results" / "augment.json"
SIZES = {32: 256, 96: 128, 224: 32}  # side of the pictures: batch
TORCHVISION = """
import sys, time, json, numpy as np, torch, multiprocessing
from PIL import Image
from torchvision import transforms as T
size, batch, workers = map(int, sys.argv[1:4])
blur, seconds = map(float, sys.argv[4:6])
transform = T.Compose([T.RandomResizedCrop(size, scale=(0.08, 1.0)), T.RandomHorizontalFlip(),
    T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), T.RandomGrayscale(0.2),
    T.RandomApply([T.GaussianBlur(max(3, size // 10 // 2 * 2 + 1), (0.1, 2.0))], blur), T.ToTensor()])
def work(seed):
    torch.set_num_threads(1); torch.manual_seed(seed)
    noise = np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p) for p in noise]
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        torch.stack([transform(p) for p in pictures]); count += batch
    return count / (time.perf_counter() - start)
if __name__ == "__main__":
    with multiprocessing.Pool(workers) as pool: print(sum(pool.map(work, range(workers))))
"""


def pil_view(picture: Image.Image, options: augment.Augmentation, draw: random.Random) -> np.ndarray:
    """One view, operation by operation, as torchvision's transforms do on PIL pictures."""
    width, height = picture.size
    for _ in range(10):
        area = draw.uniform(*options.crop) * width * height
        aspect = np.exp(draw.uniform(*np.log(options.aspect)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    w, h = min(w, width), min(h, height)
    left, top = draw.randint(0, width - w), draw.randint(0, height - h)
    view = picture.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BILINEAR)
    if draw.random() < options.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw.random() < options.jitter:
        view = ImageEnhance.Brightness(view).enhance(draw.uniform(1 - options.brightness, 1 + options.brightness))
        view = ImageEnhance.Contrast(view).enhance(draw.uniform(1 - options.contrast, 1 + options.contrast))
        view = ImageEnhance.Color(view).enhance(draw.uniform(1 - options.saturation, 1 + options.saturation))
        hue, saturation, value = view.convert("HSV").split()
        turned = np.asarray(hue) + np.uint8(draw.uniform(-options.hue, options.hue) * 255 % 256)
        view = Image.merge("HSV", (Image.fromarray(turned, "L"), saturation, value)).convert("RGB")
    if draw.random() < options.grey:
        view = view.convert("L").convert("RGB")
    if draw.random() < options.blur:
        view = view.filter(ImageFilter.GaussianBlur(draw.uniform(*options.sigma)))
    return np.asarray(view, dtype=np.float32).transpose(2, 0, 1) / 255


def timed(step: Callable[[], int], seconds: float) -> float:
    """Views a second of `step`, which returns how many it made."""
    step()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += step()
    return count / (time.perf_counter() - start)


def ours(size: int, batch: int, options: augment.Augmentation, seconds: float) -> float:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8))
    steps = iter(range(1_000_000))

    def step() -> int:
        augment.views(options, pixels, keyed.keys(0, next(steps), torch.arange(batch)), stream=0)
        return batch

    return timed(step, seconds)


def pil_process(work: tuple[int, int, augment.Augmentation, float, int]) -> float:
    size, batch, options, seconds, seed = work
    torch.set_num_threads(1)
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    pictures, draw = [Image.fromarray(one) for one in pixels], random.Random(seed)

    def step() -> int:
        torch.from_numpy(np.stack([pil_view(picture, options, draw) for picture in pictures]))
        return batch

    return timed(step, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python of an environment with torchvision")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    table = []
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for blur in (0.0, 0.5):
            for size, batch in SIZES.items():
                options = augment.Augmentation(blur=blur)
                rates: dict[str, list[float]] = {"ours": [], "pil": []}
                for _ in range(arguments.rounds):
                    rates["ours"].append(ours(size, batch, options, arguments.seconds))
                    work = [(size, batch, options, arguments.seconds, seed) for seed in range(cores)]
                    rates["pil"].append(sum(pool.map(pil_process, work)))
                    if arguments.peer:
                        values = [size, batch, cores, blur, arguments.seconds]
                        command = [arguments.peer, "-c", TORCHVISION, *map(str, values)]
                        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
                        rates.setdefault("torchvision", []).append(float(done.stdout))
                row = {name: round(statistics.median(values)) for name, values in rates.items()}
                ratios = {f"ratio_to_{name}": round(row["ours"] / row[name], 2) for name in row if name != "ours"}
                table.append({"size": size, "batch": batch, "blur": blur, **row, **ratios})
                print(json.dumps(table[-1]), flush=True)
    machine = f"{platform.processor() or platform.machine()}, {cores} cores"
    result = {
        "machine": machine,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "unit": "views a second",
        "rows": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
