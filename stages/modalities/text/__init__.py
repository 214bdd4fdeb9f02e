"""Text: documents of Unicode characters, tokenized to ids, packed into rows of fixed length."""
