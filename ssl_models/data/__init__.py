"""Rows and what is known of them: shards and their manifest, how rows are encoded, what of them is drawn at random."""
