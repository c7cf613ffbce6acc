"""Where a result that missed its budget went wrong: for the message, in one sentence."""

from itertools import pairwise

from onnxforge.compiler.evidence import Evidence
from onnxforge.passes.kept_float import STATIC_W8A8

_NAMED = 3


def worst_layers(evidence: Evidence) -> str:
    """The layers to look at first, or an empty text where nothing was measured by layer.

    The drift of a layer carries on to all that follow it, so the worst ones are those that lose the most
    against the layer before them, not those with the least signal to noise.
    """
    drift = evidence.layers
    if not drift:
        return ""
    lost = {drift[0].layer: -drift[0].sqnr_db} | {b.layer: a.sqnr_db - b.sqnr_db for a, b in pairwise(drift)}
    db = {error.layer: error.sqnr_db for error in drift}
    falls = sorted((layer for layer in lost if layer != drift[0].layer), key=lambda n: (-lost[n], n))
    worst = [layer for layer in falls[:_NAMED] if lost[layer] > 0] or [drift[0].layer]
    named = ", ".join(f"layer {layer} (down to {db[layer]:.1f} dB)" for layer in worst)
    return f"Worst, by the drop in signal to noise: {named}." + _sensitive(evidence)


def _sensitive(evidence: Evidence) -> str:
    measures = sorted(evidence.ledger.measures(STATIC_W8A8), key=lambda note: (-note.value, note.where))
    if not measures:
        return ""
    named = ", ".join(f"{note.where} ({note.value:.2g}, {note.reason})" for note in measures[:_NAMED])
    return f" Most sensitive when quantized alone: {named}."
