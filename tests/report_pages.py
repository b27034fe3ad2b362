"""Report pages, read back and held against the files of their runs."""

import html.parser
import json

import pytest


class Page(html.parser.HTMLParser):
    """What a page holds: the rows of its tables by id, the JSON of its charts by title, and its images."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.charts, self.images, self.ids = {}, {}, [], set()
        self.table, self.in_cell, self.in_chart, self.title = None, False, False, ""
        self.in_caption = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        if tag == "table":
            self.table = self.tables.setdefault(values.get("id"), [])
        elif tag == "tr" and self.table is not None:
            self.table.append([])
        elif tag in ("td", "th"):
            self.in_cell = True
            self.table[-1].append("")
        elif tag == "data":
            self.table[-1][-1], self.in_cell = float(values["value"]), False
        elif tag == "img":
            self.images.append(values)
        elif tag == "figcaption":
            self.in_caption, self.title = True, ""
        elif tag == "script":
            self.in_chart = values.get("type") == "application/json"

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False
        elif tag == "figcaption":
            self.in_caption = False
        elif tag == "script":
            self.in_chart = False

    def handle_data(self, data):
        if self.in_cell:
            self.table[-1][-1] += data
        elif self.in_caption:
            self.title += data
        elif self.in_chart:
            self.charts[self.title] = json.loads(data)


def lines(run) -> tuple[list[dict], list[dict]]:
    """The lines of metrics.jsonl: of updates, and of evaluations."""
    content = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in content if "lr" in line], [line for line in content if "weights" in line]


def column(rows, keys):
    """Lines as the rows of a table have them."""
    return [["-" if row[key] is None else row[key] for key in keys] for row in rows]


EVALUATION_KEYS = ["epoch", "update", "weights", "top1", "top5", "loss", "seconds"]
UPDATE_KEYS = ["epoch", "update", "loss", "grad_norm", "lr", "loss_scale", "images_per_second", "seconds"]


def assert_page_is_of(page: Page, run) -> None:
    """Tables hold the numbers of metrics.jsonl exactly, curves to seven digits."""
    updates, evaluations = lines(run)
    assert page.tables["evaluations"][1:] == column(evaluations, EVALUATION_KEYS)
    assert page.tables["updates"][1:] == column(updates, UPDATE_KEYS)
    for title, name, key in (
        ("Loss", "training batches", "loss"),
        ("Learning rate", "learning rate", "lr"),
        ("Gradient norm", "global norm, unclipped", "grad_norm"),
        ("Loss scale", "loss scale", "loss_scale"),
        ("Training speed", "images per second", "images_per_second"),
    ):
        (curve,) = (series for series in page.charts[title]["series"] if series["name"] == name)
        assert curve["x"] == [line["epochs_done"] for line in updates]
        assert curve["y"] == [line[key] and pytest.approx(line[key], rel=1e-6) for line in updates]
    for weights, name in (("raw", "raw weights"), ("ema", "averaged weights (EMA)")):
        of_weights = [line for line in evaluations if line["weights"] == weights]
        for title, key, prefix in (("Top-1", "top1", ""), ("Loss", "loss", "validation, ")):
            (curve,) = (series for series in page.charts[title]["series"] if series["name"] == prefix + name)
            assert curve["y"] == pytest.approx([line[key] for line in of_weights], rel=1e-6)
