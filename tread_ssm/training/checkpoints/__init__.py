"""What a run starts from, writes to the disk and resumes from."""
