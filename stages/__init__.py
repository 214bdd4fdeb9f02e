"""Pipeline floor: one module per DVC stage. Imports `ssl_models.config`, never `flows`, and no torch in data stages."""
