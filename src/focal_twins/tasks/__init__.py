"""Defines the tasks that networks are trained for, each in a folder of its own."""
