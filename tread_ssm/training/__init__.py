"""Training: configuration, data, the step, the loop, checkpoints, exports."""
