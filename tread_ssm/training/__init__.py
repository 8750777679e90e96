"""Training: the batch of a step, the step, the loop around it, checkpoints, logs."""
