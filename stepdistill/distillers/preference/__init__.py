"""Preference and reward: a student is moved towards what is liked."""
