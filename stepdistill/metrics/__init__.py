"""Metrics: statistics, feature extractors, protocols and the report."""
