"""Reports, comparisons and leaderboards as self-contained pages."""
