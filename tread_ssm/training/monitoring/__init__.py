"""What is sampled and measured during training, from the averaged weights."""
