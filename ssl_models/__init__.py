"""PyTorch floor: models, pretext tasks, the training job and the probe. Imports neither DVC, Prefect nor `stages`."""
