"""Decoders without a session: logits from a table, so that thousands of requests run in a second."""

import numpy as np

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.detokenizer import Detokenizer
from onnxforge.runtimes.draft_length import DraftLength
from onnxforge.runtimes.drafter import Draft
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.speculative_loop import Source, SpeculativeLoop
from onnxforge.runtimes.step_cost import StepCost


class TableState:
    """A `DecoderState` whose logits follow from the last token and its place: table [places, size, size]."""

    def __init__(self, table):
        self.table, self.text = table, []

    def prompt(self, prompts):
        return self.step(prompts[0][None])[:, -1]

    def step(self, tokens):
        rows = []
        for token in tokens[0]:
            rows.append(self.table[len(self.text) % len(self.table), token])
            self.text.append(int(token))
        return np.stack(rows)[None].copy()

    def rewind(self, count):
        assert 0 <= count <= len(self.text)
        del self.text[len(self.text) - count :]


class SkimState(TableState):
    """One that can leave layers out, which then speaks from another table."""

    def __init__(self, table, skimming):
        super().__init__(table)
        self.skimming = skimming

    @property
    def lengths(self):
        return np.array([len(self.text)])

    def skim(self, token):
        row = self.skimming[len(self.text) % len(self.skimming), token]
        self.text.append(int(token))
        return row.copy()


class Scripted:
    """A `Drafter` that proposes what a function of the text and the number wanted says."""

    prior, forward_passes = (0.5,), 0

    def __init__(self, proposal, cost=0.0):
        self.proposal, self.cost, self.text = proposal, cost, []

    def read(self, tokens):
        self.text += tokens

    def propose(self, count):
        found = self.proposal(self.text, count)
        return found if isinstance(found, Draft) else Draft(tuple(found), (0,) * len(found))


class Whole:
    """A `DraftLength` that verifies all it gets."""

    def __init__(self, most):
        self.most = most

    def wanted(self, room):
        return min(self.most, room)

    def worthwhile(self, draft):
        return draft

    def learn(self, *_):
        pass

    learn_plain = learn

    def time_for(self, draft):
        return 1.0


def speculate(
    state, prompt, options, drafter, limit, most=4, length=None, streamed=False, decode=None, free=None
):
    """A `SpeculativeLoop` over a fake model, and its answer."""
    detokenizer = Detokenizer(decode or (lambda tokens: "".join(chr(97 + t) for t in tokens)), prompt)
    answer = Answer(options, limit, Sampler(options, prompt), detokenizer, streamed)
    cost = StepCost((), drafter.cost, learns=False)
    sources = [Source(drafter, length or DraftLength(most, cost, drafter.prior))]
    if drafter.cost > 0:
        free = free or Scripted(lambda text, _: text[-1:])
        sources.append(Source(free, DraftLength(most, cost, free.prior, free=True)))
    loop = SpeculativeLoop(
        state,
        np.array(prompt, np.int64),
        answer,
        Interruption(None, None),
        sources,
        cost,
    )
    return loop, answer
