"""Averages of the weights: while training, and of any width afterwards."""
