"""Runs graphs before and after a rewrite over the situations of serving, ONNX Runtime's optimizations off."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

Feeds = dict[str, np.ndarray]


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: ort.InferenceSession, feeds: Feeds) -> Feeds:
    names = {item.name for item in session.get_inputs()}
    outputs = [item.name for item in session.get_outputs()]
    given = {name: array for name, array in feeds.items() if name in names}
    return dict(zip(outputs, session.run(outputs, given), strict=True))


def decoder_steps(model: ir.Model, vocab: int, seed: int = 0) -> Iterator[tuple[list[Feeds], str]]:
    """Chains of calls; past of each call but the first is left out and comes from the call before."""
    rng = np.random.default_rng(seed)

    def call(mask: list[list[int]], new: int) -> Feeds:
        tokens = np.array(mask, np.int64)
        positions = np.maximum(np.cumsum(tokens, 1) - 1, 0)[:, -new:]
        return {
            "input_ids": rng.integers(3, vocab, (len(mask), new)),
            "attention_mask": tokens,
            "position_ids": positions,
        }

    yield [call([[1] * 7], 7), call([[1] * 8], 1), call([[1] * 12], 4), call([[1] * 13], 1)], "one row"
    yield (
        [call([[1] * 6, [1] * 4 + [0] * 2], 6)]
        + [call([[1] * (6 + n), [1] * 4 + [0] * 2 + [1] * n], 1) for n in (1, 2)],
        "ragged batch, padded on the right",
    )


def empty_past(model: ir.Model, batch: int) -> Feeds:
    feeds = {}
    for value in model.graph.inputs:
        if value.name.startswith("past"):
            sizes = zip(value.shape, (batch, 0, 0, 0), strict=True)
            dims = [dim if isinstance(dim, int) else size for dim, size in sizes]
            feeds[value.name] = np.zeros(dims, np.float32)
    return feeds


def worst_decoder_difference(before: ir.Model, after: ir.Model, vocab: int) -> float:
    """The largest difference of logits on real tokens, over prompts, single and multiple cached steps."""
    one, two = session(before), session(after)
    worst = 0.0
    for calls, _ in decoder_steps(before, vocab):
        pasts = [empty_past(before, len(calls[0]["attention_mask"]))] * 2
        for feeds in calls:
            results = [run(which, feeds | past) for which, past in zip((one, two), pasts, strict=True)]
            real = feeds["attention_mask"][:, -feeds["input_ids"].shape[1] :].astype(bool)
            logits = [result["logits"][real] for result in results]
            assert np.isfinite(logits[0]).all()
            worst = max(worst, float(np.abs(logits[0] - logits[1]).max()))
            pasts = [
                {
                    name.replace("present", "past_key_values"): array
                    for name, array in result.items()
                    if name != "logits"
                }
                for result in results
            ]
    return worst


def worst_encoder_difference(before: ir.Model, after: ir.Model, vocab: int) -> float:
    """The largest difference on real tokens, over a single row and a ragged batch (both sides padded)."""
    rng = np.random.default_rng(0)
    one, two = session(before), session(after)
    worst = 0.0
    for mask in ([[1] * 9], [[1] * 17, [1] * 11 + [0] * 6, [0] * 8 + [1] * 9]):
        tokens = np.array(mask, np.int64)
        feeds = {
            "input_ids": rng.integers(3, vocab, tokens.shape),
            "attention_mask": tokens,
            "token_type_ids": np.zeros_like(tokens),
        }
        first, second = (next(iter(run(which, feeds).values())) for which in (one, two))
        if first.ndim == 3:
            first, second = first[tokens.astype(bool)], second[tokens.astype(bool)]
        assert np.isfinite(first).all()
        worst = max(worst, float(np.abs(first - second).max()))
    return worst
