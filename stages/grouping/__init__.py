"""Rows that belong together: clusters of duplicates, and the groups that no split may divide."""
