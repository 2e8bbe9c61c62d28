"""Distillers: one small file per method, grouped by family."""
