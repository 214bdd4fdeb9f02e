"""Pairs of a picture and its caption: pixels as for pictures, tokens as for text, one pair a row."""
