"""Answers the questions of training and evaluation for object detection."""
