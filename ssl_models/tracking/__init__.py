"""MLflow: the run of a training job and of its probe."""
