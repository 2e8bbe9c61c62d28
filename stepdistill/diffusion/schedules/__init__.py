"""Noise schedules: alpha, sigma and log-SNR as smooth functions of t."""
