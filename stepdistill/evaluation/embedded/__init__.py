"""The embedded emoji problem: its judge, coverage and floor."""
