"""Pretraining of the embedded models."""
