"""A local S3 server that counts what it is asked, can be away, and forgets nothing meanwhile: moto's."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "SeCrEt",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Shop:
    """The server, with a bucket `box`; `asked` has a line per request, as in "PUT /box/x"."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.asked: list[str] = []
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def open(self) -> None:
        """Answer, or answer again."""
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        inner = self._server._server.app
        assert isinstance(inner, DomainDispatcherApplication), create_backend_app

        def counted(environ: Any, start: Any) -> Any:
            self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            return inner(environ, start)

        self._server._server.app = counted

    def close(self) -> None:
        """Be away; what is there stays."""
        self._server.stop()
        self._server._server.server_close()

    def objects(self, prefix: str = "") -> list[str]:
        """The keys, without those that pyarrow leaves for empty folders."""
        return [key for key in self._keys(prefix) if not key.endswith("/")]

    def _keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="box", Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket="box", Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="box", Key=key, Body=data)

    def clear(self) -> None:
        """An empty bucket."""
        self.client.create_bucket(Bucket="box")
        for key in self._keys(""):
            self.client.delete_object(Bucket="box", Key=key)
        self.asked.clear()


@contextmanager
def serving() -> Iterator[Shop]:
    """A server for the tests of a module."""
    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        shop = Shop()
        yield shop
        shop.close()
    log.setLevel(level)
