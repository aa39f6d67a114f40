"""The server of a page of this machine in a thread, and requests to it as its page makes them."""

import contextlib
import threading

import requests


@contextlib.contextmanager
def serving(server):
    """`server`, answering until the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", headers=(), **more):
    """A request with the page's token, unless told otherwise."""
    headers = {"X-Page-Token": server.token, **dict(headers)}
    return requests.request(method, f"http://127.0.0.1:{server.server_port}{path}", headers=headers, timeout=30, **more)
