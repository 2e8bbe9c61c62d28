"""Scorers of a picture and its prompt."""
