"""Loaded tiny artifacts, and a cache folder of our own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import plain_decoding
from tiny_artifacts import FORMS, SHARED, write_decoder

from onnxforge.runtimes import load


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def decoders_by_form(tmp_path_factory):
    """Loaded decoders, one per form."""
    base = tmp_path_factory.mktemp("decoders")
    return {form: load(write_decoder(base / str(i), form), threads=1) for i, form in enumerate(FORMS)}


@pytest.fixture(scope="session")
def decoder(decoders_by_form):
    """A decoder of the form that fusion gives."""
    return decoders_by_form[SHARED]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Loaded decoders that can draft, one per form."""
    base, forms = tmp_path_factory.mktemp("speculative"), plain_decoding.FORMS
    return {form: load(write_decoder(base / str(i), form), threads=1) for i, form in enumerate(forms)}


@pytest.fixture(scope="session")
def assistant(tmp_path_factory):
    """Another model with the same tokenizer."""
    return load(write_decoder(tmp_path_factory.mktemp("assistant") / "a", seed=1), threads=1)
