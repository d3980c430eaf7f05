"""`--pretend-gpu`: the GPU tests walked without a GPU (see `pretended`), to find what cannot run there at all."""

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pretend-gpu", action="store_true", help="run the GPU tests on a pretended one")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pretend-gpu"):
        from tests.pretended import pretended

        stack = contextlib.ExitStack()
        stack.enter_context(pretended(pytest.MonkeyPatch()))
        config.add_cleanup(stack.close)
