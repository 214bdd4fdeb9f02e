"""The training job: what it is told, how a global batch becomes a gradient, and what survives a kill."""
