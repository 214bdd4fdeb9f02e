"""What only a CPU needs to be quick. Nothing here changes what is computed, but for rounding."""
