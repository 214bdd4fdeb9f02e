"""What a run leaves for a reader: tables, pages, and the numbers that they are made of."""
