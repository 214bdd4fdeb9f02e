"""What is known of a result: where it came from, and that it is not lost before DVC has it."""
