"""What a run says while it trains: console, metrics.jsonl, trackers."""
