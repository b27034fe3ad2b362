"""Gives an exported detector one of two kinds of output."""

CANDIDATES, DETECTIONS = "candidates", "detections"


class ExportForm:
    pass
