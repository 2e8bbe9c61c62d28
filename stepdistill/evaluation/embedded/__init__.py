"""The embedded emoji problem: captions, judge, exact measures, and the floor."""
