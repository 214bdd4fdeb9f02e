"""Views a second of `ssl_models.objectives.shared.augment` against lightly's SimCLR transform and the same pipeline
written with PIL.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.augment [--peer PYTHON] [--seconds 1.5] [--rounds 3]

All take the same uint8 photographs in memory to float batches, with the same probabilities and strengths, on all
cores: ours as one batch on torch's threads, the others picture by picture in one single-threaded process per core,
whose batches are never sent anywhere, which spares them a DataLoader's exchange. They run in turns within one run;
ratios are of medians. `--peer` names the Python of an environment made by `pip install torch==2.13.0 lightly`. Results
go to benchmarks/results/augment.json with machine and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_images

from ssl_models.data import augmentation, keyed
from ssl_models.objectives.shared import augment

RESULTS = Path(__file__).parent / "results" / "augment.json"
SIZES = {32: 256, 96: 128, 224: 32}  # side of the pictures: batch
TARGET = 5.0  # times the peer's views a second
WITHOUT_OPERATORS = """
import sys, types  # a CPU build of torch lacks torchvision's compiled operators, which no transform needs
sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
"""
LIGHTLY = (
    WITHOUT_OPERATORS
    + """
import multiprocessing, time, numpy, torch
from PIL import Image
from lightly.transforms.simclr_transform import SimCLRViewTransform
def work(order):
    (path, blur, seconds), seed = order
    torch.set_num_threads(1); torch.manual_seed(seed)
    pictures = [Image.fromarray(one) for one in numpy.load(path)]
    view = SimCLRViewTransform(pictures[0].width, cj_strength=0.5, gaussian_blur=float(blur), normalize=None)
    torch.stack([view(one) for one in pictures])
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < float(seconds):
        torch.stack([view(one) for one in pictures]); count += len(pictures)
    return count / (time.perf_counter() - start)
if __name__ == "__main__":
    workers = int(sys.argv[1])
    with multiprocessing.Pool(workers) as pool:
        for line in sys.stdin:
            orders = [(line.split(), seed) for seed in range(workers)]
            print(sum(pool.map(work, orders, chunksize=1)), flush=True)
"""
)


def photographs(count: int, side: int) -> np.ndarray:
    """Pictures uint8 `[count, side, side, 3]`: random square parts of scikit-learn's two photographs."""
    sources = [Image.fromarray(one) for one in load_sample_images().images]
    draw, found = random.Random(0), []
    for number in range(count):
        source = sources[number % len(sources)]
        part = draw.randint(min(side, source.height), source.height)
        left, top = draw.randint(0, source.width - part), draw.randint(0, source.height - part)
        found.append(source.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + part, top + part)))
    return np.stack([np.asarray(one) for one in found])


def pil_view(picture: Image.Image, options: augmentation.Augmentation, draw: random.Random) -> np.ndarray:
    """One view float32 `[3, height, width]`, operation by operation, as torchvision's transforms do on PIL pictures."""
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
        view = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    if draw.random() < options.grey:
        view = view.convert("L").convert("RGB")
    if draw.random() < options.blur:
        view = view.filter(ImageFilter.GaussianBlur(draw.uniform(*options.sigma)))
    return np.asarray(view, dtype=np.float32).transpose(2, 0, 1) / 255


def machine() -> str:
    """The processor's name and the cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores"


def timed(step: Callable[[], int], seconds: float) -> float:
    """Views a second of `step`, which returns how many it made."""
    step()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += step()
    return count / (time.perf_counter() - start)


def ours(pictures: np.ndarray, options: augmentation.Augmentation, seconds: float) -> float:
    pixels = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
    samples, steps = torch.arange(len(pixels)), iter(range(1_000_000_000))

    def step() -> int:
        augment.views(options, pixels, keyed.keys(0, next(steps), samples), stream=0)
        return len(pixels)

    return timed(step, seconds)


def pil(work: tuple[np.ndarray, augmentation.Augmentation, float, int]) -> float:
    array, options, seconds, seed = work
    torch.set_num_threads(1)
    pictures, draw = [Image.fromarray(one) for one in array], random.Random(seed)

    def step() -> int:
        torch.from_numpy(np.stack([pil_view(picture, options, draw) for picture in pictures]))
        return len(pictures)

    return timed(step, seconds)


class Lightly:
    """The peer's processes, which wait while others are timed."""

    def __init__(self, peer: str, workers: int) -> None:
        command = [peer, "-c", LIGHTLY, str(workers)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rate(self, path: Path, blur: float, seconds: float) -> float:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        print(path, blur, seconds, file=stdin, flush=True)
        return float(stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="Python of an environment with lightly")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cores, seconds, table = len(os.sched_getaffinity(0)), arguments.seconds, []
    torch.set_num_threads(cores)
    peer = Lightly(arguments.peer, cores) if arguments.peer else None
    with multiprocessing.get_context("spawn").Pool(cores) as pool, tempfile.TemporaryDirectory() as folder:
        for size, batch in SIZES.items():
            pictures, path = photographs(batch, size), Path(folder) / f"{size}.npy"
            np.save(path, pictures)
            for blur in (0.0, 0.5):
                options = augmentation.Augmentation(blur=blur)
                rates: dict[str, list[float]] = {"ours": [], "pil": []}
                for _ in range(arguments.rounds):
                    rates["ours"].append(ours(pictures, options, seconds))
                    work = [(pictures, options, seconds, seed) for seed in range(cores)]
                    rates["pil"].append(sum(pool.map(pil, work, chunksize=1)))
                    if peer:
                        rates.setdefault("lightly", []).append(peer.rate(path, blur, seconds))
                row = {name: round(statistics.median(values)) for name, values in rates.items()}
                ratios = {f"ratio_to_{name}": round(row["ours"] / row[name], 2) for name in row if name != "ours"}
                met = min(ratios.values()) >= TARGET
                table.append({"size": size, "batch": batch, "blur": blur, **row, **ratios, "at_least_5x": met})
                print(json.dumps(table[-1]), flush=True)
    if peer:
        peer.close()
    result = {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "unit": "views a second",
        "parallel": f"ours: {cores} threads; the others: {cores} processes",
        "rounds": arguments.rounds,
        "seconds": seconds,
        "rows": table,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
