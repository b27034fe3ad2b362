"""Draws detections."""

SHOWN_SCORE = 0.3
