"""Programs on a trained model's folder."""
