"""A page to play with trained runs: what it computes (`play`), and how it looks (`page`)."""
