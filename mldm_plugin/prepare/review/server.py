"""The review's page: what is asked for is a number of a row, never a path."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

import numpy as np

from mldm_plugin.page.server import Answer, Body, LocalServer, RefusedError, as_json
from mldm_plugin.prepare.review.folder import Review
from mldm_plugin.prepare.review.showing import details, labels_of, listed, shown_picture

_ROW = re.compile(r"/rows/(\d{1,9})(?:/(\w+))?")


class ReviewServer(LocalServer):
    """Serves one review until it is shut down.

    Args:
        review: the folder; one request at a time reads or changes it.
        port: 0 for any that is free.
    """

    what, folder, name, title = "review", "prepare/review/page", "review", "mldm data review"

    def __init__(self, review: Review, port: int = 0) -> None:
        super().__init__(port)
        self.review = review

    def read(self, path: str) -> Answer:
        """The list of rows, or what is known of one."""
        if path == "/rows":
            with self.lock:
                return as_json(listed(self.review))
        number, what = self._row(path)
        readers = {None: details, "picture": shown_picture, "labels": labels_of}
        if what not in readers:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"a row has no {what}.")
        with self.lock:
            found = readers[what](self.review, number)
        return found if isinstance(found, tuple) else as_json(found)

    def write(self, path: str, body: Body) -> Answer:
        """A decision, a mask or boxes of a row, or how it was before the review."""
        number, what = self._row(path)
        review = self.review
        if what == "labels":
            with self.lock:
                size = review.findings(number).size or (0, 0)
            labels = np.frombuffer(body.content(exactly=size[0] * size[1]), np.uint8).reshape(size[::-1])
            return self._changed(number, lambda: review.paint(number, labels))
        value = body.value()
        writers: dict[str | None, Callable[[], None]] = {
            "decision": lambda: review.decide(number, value.get("decision")),
            "faces": lambda: review.set_faces(number, value.get("faces", [])),
            "original": lambda: review.restore(number),
        }
        if what not in writers:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"a row has no {what} to be written.")
        return self._changed(number, writers[what])

    def _changed(self, number: int, change: Callable[[], None]) -> Answer:
        with self.lock:
            change()
            return as_json(details(self.review, number))

    def _row(self, path: str) -> tuple[int, str | None]:
        found = _ROW.fullmatch(path)
        if not found or int(found[1]) >= len(self.review):
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such row.")
        return int(found[1]), found[2]
