"""PyTorch floor: models, pretext tasks, the training job and the probe. Imports neither DVC, Prefect nor `stages`."""

import os

# How threads of OpenMP wait for the next operation, read when torch is loaded: those that spin for long starve their
# neighbours on a shared machine, those that sleep at once take longer to wake than an operation of a small model does.
# On two crowded cores gpt's steps take 0.95 of the processor time without it (benchmarks/cpu.py): it is for idle ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
