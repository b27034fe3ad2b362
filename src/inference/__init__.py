"""Trained networks outside of training: evaluated, exported, asked."""
