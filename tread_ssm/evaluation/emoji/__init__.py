"""Features of the embedded emoji: the network, its weights and how they are trained."""
