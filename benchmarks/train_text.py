"""Training speed on text beside nanoGPT's `train.py` and the Hugging Face `Trainer`, on the machine at hand.

    python -m benchmarks.train_text --peers nanogpt=PATH,transformers[=PYTHON] [--device cpu|cuda] [--rounds 3]

PATH is a clone of nanoGPT, bare or not; it is cloned again into a scratch folder and run as it is. PYTHON is that of an
environment that has `accelerate`, which the Trainer needs, where this one has not. All read one text of characters
(docstrings of the pinned networkx, through our own ingest, dedup, tokenize and shard stages), with the same documents
held out. First, tokens a second at the same architecture: in each round every program trains anew, in turns, in a
process of its own, and a ratio is taken within the round; the median over the rounds is reported. Ours is
`ssl_models.train`'s own loop. Then, on a CPU, the time to nanoGPT's final validation loss at its CPU recipe with a
recipe of our own of no more parameters. On a GPU both train GPT-2 124M, and model FLOP/s utilisation is reported
instead. Every ratio is given of seconds and of processor seconds: the latter hold on a shared machine, too. Threads of
all programs wait alike: asleep, or with `--spin 1000` awake for some microseconds, as in our own runs. Results:
benchmarks/results/train_text-DEVICE[-spinCOUNT].json.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import pickle
import platform
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHARACTERS = 1_120_000
LEAST = 1000
"""Characters of a document: enough to tell by its rows in which split it is."""
PRINTABLE = ["\n", *map(chr, range(32, 127))]
PEAK = 989e12
"""Dense bfloat16 FLOP/s of an H100 SXM."""
DIRTY = 10
"""Steps at the start of a run that are not timed; on a GPU the compiler works in them."""
LIMIT = 1800
"""Seconds that one program may take."""


@dataclass(frozen=True)
class Shape:
    """What is trained on a device: the sizes that all programs share, and what each takes to mean the same."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    micro_batch: int
    vocabulary: int
    steps: int
    learning_rate: float

    def flops(self, parameters: int) -> float:
        """FLOPs of a token's forward and backward pass, attention counted as nanoGPT and PaLM count it."""
        return 6 * parameters + 12 * self.layers * self.width * self.context


SHAPES = {
    "cpu": Shape(4, 4, 128, 64, 12, 12, 0, 50, 1e-3),  # the CPU recipe of nanoGPT's README
    "cuda": Shape(12, 12, 768, 1024, 128, 32, 50304, 40, 6e-4),  # GPT-2 124M
}
RECIPE_STEPS = 2000
RECIPE_CONTEXT = 128
RECIPE: dict[str, Any] = {
    "backbone": {
        "preset": "gpt2", "layers": 4, "width": 128, "heads": 4, "biases": False, "norm": "rms", "qk_norm": True,
        "positions": "rotary", "mlp": "relu2",
    },
    "train": {
        "steps": 300, "batch": 8, "optimizer": "muon", "learning_rate": 5e-3, "muon_learning_rate": 0.02,
        "weight_decay": 0.0, "schedule": "wsd", "warmup": 0.0, "decay": 0.6, "final": 0.0,
    },
}  # fmt: skip
"""Ours for nanoGPT's loss: rotary positions, QK-norm, squared ReLU, Muon and twice the context, for the same blocks."""

OURS = """
import json, sys, time
from pathlib import Path
from ssl_models.training import progress
from ssl_models import train
from ssl_models.training.job import Job
from ssl_models.training.parallel import World
from ssl_models.training.signals import Signals
class Stamps(progress.Progress):
    def advance(self, note=""):
        self._done += 1
        print(f"step {self._done} at {time.perf_counter()} cpu {time.process_time()}")
train.Progress = Stamps
job = Job.load(Path(sys.argv[1]))
train.run(job, World.start(), Signals())
print("metrics", json.dumps(json.loads((job.output / "report.json").read_text())))
"""
TRANSFORMERS = """
import json, sys, time
import numpy as np, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
shape, vocabulary, folder = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.tokens = np.memmap(folder + "/train.bin", np.uint16, "r")
    def __len__(self):
        return len(self.tokens) // shape["context"]
    def __getitem__(self, row):
        at = row * shape["context"]
        tokens = torch.from_numpy(self.tokens[at : at + shape["context"]].astype(np.int64))
        return {"input_ids": tokens, "labels": tokens}
class Stamps(TrainerCallback):
    def on_step_end(self, arguments, state, control, **rest):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(f"step {state.global_step} at {time.perf_counter()} cpu {time.process_time()}")
model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=shape["context"], n_embd=shape["width"],
    n_layer=shape["layers"], n_head=shape["heads"], resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    bos_token_id=1, eos_token_id=1))
gpu = torch.cuda.is_available()
arguments = TrainingArguments(folder + "/trainer", max_steps=shape["steps"], save_strategy="no", report_to="none",
    per_device_train_batch_size=shape["micro_batch"], learning_rate=shape["learning_rate"], disable_tqdm=True,
    gradient_accumulation_steps=shape["batch"] // shape["micro_batch"], bf16=gpu, torch_compile=gpu, use_cpu=not gpu)
Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Stamps()]).train()
"""

NANOGPT = """
import builtins, runpy, time
say = print
def stamped(*values, **options):
    say(*values, f"at {time.perf_counter()} cpu {time.process_time()}", **options)
builtins.print = stamped
runpy.run_path("train.py", run_name="__main__")
"""
"""nanoGPT's `train.py` as it is; what it prints is stamped with the time."""


@dataclass(frozen=True)
class Spent:
    """What steps took: seconds on the clock, and processor seconds of the whole process."""

    seconds: float
    cpu: float


def spent(printed: str, first: int, last: int) -> Spent:
    """Between the end of step `first` (counted from 1) and that of step `last`, from a program's stamps."""
    found = re.findall(r"^(?:step|iter) (\d+)\b(?!.*val loss).*at ([\d.]+) cpu ([\d.]+)$", printed, re.MULTILINE)
    stamps = {int(step): (float(at), float(cpu)) for step, at, cpu in found}
    return Spent(stamps[last][0] - stamps[first][0], stamps[last][1] - stamps[first][1])


def documents() -> Iterator[tuple[str, str]]:
    """(file, text) of the docstrings of networkx, printable ASCII alone, in the order of its files."""
    root = Path(sysconfig.get_path("purelib")) / "networkx"
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    total = 0
    for path in sorted(root.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        text = "".join(character for character in "\n\n".join(filter(None, found)) if character in PRINTABLE)
        if len(text) >= LEAST and total < CHARACTERS:
            total += len(text)
            yield path.relative_to(root).as_posix(), text


def prepare(scratch: Path, contexts: set[int]) -> None:
    """Run our data stages in `scratch`, a corpus `blockN` per context: rows of one token more, which is the target."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    rows = [json.dumps({"text": text, "file": file}) for file, text in documents()]
    (scratch / "text.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    stand_in = {"\n": "\u010a", " ": "\u0120"}  # of the byte-level alphabet
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", *PRINTABLE])}
    pieces = {stand_in.get(token, token): index for token, index in vocabulary.items()}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(scratch / "tokenizer.json"))
    corpora = {
        f"block{context}": {
            "modality": "text",
            "ingest": {"reader": "jsonl", "source": "text.jsonl", "group": "file"},
            "dedup": {},
            "tokenize": {"tokenizer": "tokenizer.json"},
            "shard": {"sequence": context + 1, "validation": 0.1, "probe": 0},
        }
        for context in contexts
    }
    (scratch / "params.yaml").write_text(json.dumps({"corpora": corpora}))
    (scratch / "compute.yaml").write_text(json.dumps({"workers": 1}))
    for corpus in corpora:
        for stage in ("ingest", "dedup", "tokenize", "shard"):
            run([sys.executable, "-m", f"stages.{stage}", corpus], scratch)


def prepare_peers(scratch: Path, corpus: str) -> int:
    """Write `train.bin`, `val.bin` and `meta.pkl` as nanoGPT reads them, with our ids and our split of the documents;
    the size of the vocabulary. A document is held out where rows of the validation split make up most of it."""
    from ssl_models.data.encoding import Encoding
    from ssl_models.data.shards import Shards

    shards = scratch / "data" / "shard" / corpus / "shards"
    encoding, validation = Encoding.load(shards / "encoding"), Shards.open(shards).split("validation")
    ids = validation.rows(range(len(validation)))["tokens"].tolist()
    held_out = ["".join(map(chr, row)) for row in ids if encoding.eos not in row]
    streams: dict[str, list[int]] = {"train": [], "val": []}
    for path in sorted((scratch / "data" / "tokenize" / corpus / "rows").glob("*.parquet")):
        for tokens in pq.read_table(path).column("tokens").to_pylist():
            document = "".join(map(chr, tokens))
            covered = sum(len(row) for row in held_out if row in document)
            streams["val" if covered > len(document) / 2 else "train"].extend([*tokens, encoding.eos])
    folder = scratch / "nanogpt" / "data" / "benchmark"
    folder.mkdir(parents=True)
    for name, stream in streams.items():
        np.array(stream, np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": encoding.vocabulary}))
    return encoding.vocabulary


def run(command: list[str], cwd: Path) -> str:
    """What a program printed; its errors are shown where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def ours(scratch: Path, model: dict[str, Any], corpus: str, micro_batch: int, first: int) -> tuple[Spent, dict]:
    """Train through `ssl_models.train`: what the steps after `first` took, and the final metrics."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    job = {
        "name": "ours",
        "model": {"corpus": corpus, "objective": "next_token", "task": {"document_masking": False}, **model},
        "shards": str(scratch / "data" / "shard" / corpus / "shards"),
        "output": str(folder / "output"),
        "checkpoints": str(folder / "checkpoints"),
        "compute": {"micro_batch": micro_batch},
    }
    (folder / "job.json").write_text(json.dumps(job))
    printed = run([sys.executable, "-c", OURS, str(folder / "job.json")], scratch)
    return spent(printed, first, model["train"]["steps"]), json.loads(printed.rsplit("metrics ", 1)[1])


def transformers(scratch: Path, python: str, shape: Shape, vocabulary: int, first: int) -> Spent:
    """What the Trainer's steps after `first` took."""
    data = scratch / "nanogpt" / "data" / "benchmark"
    printed = run([python, "-c", TRANSFORMERS, json.dumps(vars(shape)), str(vocabulary), str(data)], scratch)
    return spent(printed, first, shape.steps)


def nanogpt(scratch: Path, device: str, shape: Shape, steps: int, first: int) -> tuple[Spent, float]:
    """What the steps after `first` of nanoGPT's train.py took, and its final validation loss.

    Its iterations count from 0, and it evaluates before the first and, once all are done, before one more.
    """
    settings = {
        "dataset": "benchmark", "device": device, "compile": device == "cuda", "eval_interval": steps,
        "log_interval": 1, "eval_iters": 200 if steps == RECIPE_STEPS else 1, "block_size": shape.context,
        "batch_size": shape.micro_batch, "gradient_accumulation_steps": shape.batch // shape.micro_batch,
        "n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.width, "max_iters": steps,
        "lr_decay_iters": max(steps, 101), "learning_rate": shape.learning_rate, "dropout": 0.0,
    }  # fmt: skip
    command = [sys.executable, "-c", NANOGPT, "config/train_shakespeare_char.py"]
    printed = run([*command, *(f"--{key}={value}" for key, value in settings.items())], scratch / "nanogpt")
    return spent(printed, first - 1, steps - 1), float(re.findall(r"val loss ([\d.]+)", printed)[-1])


def same_architecture(shape: Shape, changes: dict[str, Any]) -> dict[str, Any]:
    """GPT-2 of `shape`, with a peer's `changes`, as an entry of `models`."""
    backbone = {"preset": "gpt2", "layers": shape.layers, "width": shape.width, "heads": shape.heads, **changes}
    if shape.vocabulary:
        backbone["vocabulary"] = shape.vocabulary
    train = {"steps": shape.steps, "batch": shape.batch, "learning_rate": shape.learning_rate, "beta2": 0.99}
    return {"backbone": backbone, "train": {**train, "evaluate_every": shape.steps, "validation_rows": shape.batch}}


PEERS: dict[str, dict[str, Any]] = {"nanogpt": {"biases": False, "mlp": "gelu"}, "transformers": {}}
"""In what each peer's model differs from GPT-2: nanoGPT has no biases and the exact GELU."""


def throughput(
    scratch: Path, device: str, shape: Shape, peers: dict[str, str], vocabulary: int, rounds: int
) -> dict[str, Any]:
    """Tokens a second of ours and of each peer, in turns, and the medians of the ratios within each round."""
    times: dict[str, list[tuple[Spent, Spent]]] = {peer: [] for peer in peers}
    predicted = (shape.steps - DIRTY) * shape.batch * shape.context
    parameters = 0
    for number in range(rounds):
        for peer, where in peers.items():
            model = same_architecture(shape, PEERS[peer])
            mine, metrics = ours(scratch, model, f"block{shape.context}", shape.micro_batch, DIRTY)
            parameters = metrics["parameters"]
            if peer == "nanogpt":
                theirs, _ = nanogpt(scratch, device, shape, shape.steps, DIRTY)
            else:
                theirs = transformers(scratch, where or sys.executable, shape, vocabulary, DIRTY)
            times[peer].append((mine, theirs))
            print(f"round {number + 1}: ours {mine}, {peer} {theirs}", flush=True)
    table: dict[str, Any] = {}
    for peer, pairs in times.items():
        rates = {
            "ours": statistics.median(predicted / mine.seconds for mine, _ in pairs),
            "peer": statistics.median(predicted / theirs.seconds for _, theirs in pairs),
        }
        ratios = [round(theirs.seconds / mine.seconds, 3) for mine, theirs in pairs]
        cpu_ratios = [round(theirs.cpu / mine.cpu, 3) for mine, theirs in pairs]
        table[peer] = {
            **{f"{who}_tokens_per_second": round(rate) for who, rate in rates.items()},
            "ratio": round(statistics.median(ratios), 3),
            "cpu_time_ratio": round(statistics.median(cpu_ratios), 3),
            "ratios": ratios,
            "cpu_time_ratios": cpu_ratios,
        }
        if device == "cuda":
            flops = shape.flops(parameters - (shape.context + 1) * shape.width)  # positions are looked up
            table[peer] |= {f"{who}_mfu": round(rate * flops / PEAK, 4) for who, rate in rates.items()}
    return table


def time_to_loss(scratch: Path, shape: Shape) -> dict[str, Any]:
    """Our recipe and nanoGPT's in turn: whether its final validation loss is reached, and in what share of its time."""
    model = {**RECIPE, "train": {**RECIPE["train"], "evaluate_every": RECIPE["train"]["steps"]}}
    model["train"]["validation_rows"] = 10_000
    mine, metrics = ours(scratch, model, f"block{RECIPE_CONTEXT}", RECIPE["train"]["batch"], 1)
    print(f"our recipe: loss {metrics['validation_loss']:.4f}, {mine}", flush=True)
    theirs, loss = nanogpt(scratch, "cpu", shape, RECIPE_STEPS, 1)
    print(f"nanoGPT: loss {loss:.4f}, {theirs}", flush=True)
    return {
        "recipe": RECIPE,
        "context": RECIPE_CONTEXT,
        "parameters": metrics["parameters"],
        "ours": {"loss": round(metrics["validation_loss"], 4), **vars(mine)},
        "nanogpt": {"loss": loss, **vars(theirs)},
        "reached": metrics["validation_loss"] <= loss,
        "share_of_time": round(mine.seconds / theirs.seconds, 3),
        "share_of_cpu_time": round(mine.cpu / theirs.cpu, 3),
    }


def machine(device: str) -> str:
    """The processor or GPU at hand."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", info)
    return f"{name[1] if name else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default="transformers", help="nanogpt=PATH,transformers[=PYTHON]")
    parser.add_argument("--device", choices=sorted(SHAPES), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run of a round")
    parser.add_argument(
        "--spin", type=int, default=0, help="rounds for which a waiting thread stays awake (default: 0)"
    )
    given = parser.parse_args()
    os.environ["GOMP_SPINCOUNT"] = str(given.spin)  # of every program: ours would set its own, see ssl_models
    peers = dict(peer.partition("=")[::2] for peer in given.peers.split(","))
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--peers: there is no {sorted(unknown)[0]!r} (there are: {', '.join(PEERS)})")
    shape = SHAPES[given.device]
    shape = Shape(**{**vars(shape), "steps": given.steps or shape.steps})
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if "nanogpt" in peers:
            run(["git", "clone", "--quiet", str(Path(peers["nanogpt"]).absolute()), "nanogpt"], scratch)
        recipe = given.device == "cpu" and "nanogpt" in peers
        prepare(scratch, {shape.context, RECIPE_CONTEXT} if recipe else {shape.context})
        known = prepare_peers(scratch, f"block{shape.context}")
        if shape.vocabulary:
            (scratch / "nanogpt" / "data" / "benchmark" / "meta.pkl").unlink()  # it then takes GPT-2's 50304
        speed = throughput(scratch, given.device, shape, peers, shape.vocabulary or known, given.rounds)
        content = {
            "machine": machine(given.device),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "load_before": os.getloadavg()[0],
            "shape": vars(shape),
            "rounds": given.rounds,
            "spin": given.spin,
            "tokens_per_second": speed,
            "time_to_nanogpt_loss": time_to_loss(scratch, shape) if recipe else "needs --device cpu and nanogpt",
        }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"train_text-{given.device}{f'-spin{given.spin}' if given.spin else ''}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path.read_text())


if __name__ == "__main__":
    main()
