"""Steps over the cache are held against one whole run, and a difference shows."""

import numpy as np
import pytest

from onnxforge.compiler.proof_decoding import decoding_parity
from onnxforge.compiler.proof_session import GraphSession

IDS = np.random.default_rng(3).integers(0, 200, (1, 64))


def test_steps_say_what_the_whole_run_says(make_artifact):
    session = GraphSession(make_artifact("a"))
    found = decoding_parity(session, session.decoder_graph(), IDS, 96)
    assert found.positions == 3 * 13
    assert found.max_relative < 1e-5
    assert found.top1_agreement == 1


def test_another_model_shows(make_artifact):
    whole = GraphSession(make_artifact("a"))
    found = decoding_parity(whole, GraphSession(make_artifact("b", noise=1.0)).decoder_graph(), IDS, 96)
    assert found.max_relative > 0.2
    assert found.top1_agreement < 0.5


def test_a_step_that_reads_one_token_too_few_shows(make_artifact):
    """What a cache that forgot its last line would answer."""
    folder = make_artifact("a")

    class Forgetful(GraphSession):
        def logits(self, ids):
            return np.roll(super().logits(ids), 1, axis=0)

    assert (
        decoding_parity(Forgetful(folder), GraphSession(folder).decoder_graph(), IDS, 96).max_relative > 0.2
    )


@pytest.mark.parametrize(("tokens", "context"), [(20, 96), (64, 30)])
def test_too_short_for_three_rows(tokens, context, make_artifact):
    session = GraphSession(make_artifact("a"))
    assert decoding_parity(session, session.decoder_graph(), IDS[:, :tokens], context) is None
