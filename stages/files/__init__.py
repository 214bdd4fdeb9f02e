"""What stages read and write: sources and their bytes, and the tables that they leave."""
