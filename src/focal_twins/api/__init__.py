"""What Python programs use: models by name, and predictions of trained ones. `import focal_twins` offers it."""
