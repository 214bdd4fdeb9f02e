"""Pictures: decoded once, by tokenize, to uint8 pixels of one size; one picture a row."""
