"""Runs graphs before and after a rewrite over the situations of serving, ONNX Runtime's optimizations off."""

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


def fill(graph: ir.Graph, arrays: dict[str, np.ndarray]) -> None:
    """Give the values that the text leaves open their arrays."""
    made: dict[str, ir.Value] = {}
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in arrays and value.producer() is None:
                if value.name not in made:
                    tensor = ir.tensor(arrays[value.name], name=value.name)
                    made[value.name] = ir.Value(
                        name=value.name,
                        shape=tensor.shape,
                        type=ir.TensorType(tensor.dtype),
                        const_value=tensor,
                    )
                    graph.register_initializer(made[value.name])
                node.replace_input_with(index, made[value.name])


class Conversation:
    """A decoder session with its cache: each call appends tokens to every row and gives their logits."""

    def __init__(self, model: ir.Model, batch: int) -> None:
        self._session = session(model)
        self._mask = np.zeros((batch, 0), np.int64)
        self._past: Feeds = {}
        for value in model.graph.inputs:
            if value.name.startswith("past"):
                sizes = zip(value.shape, (batch, 0, 0, 0), strict=True)
                self._past[value.name] = np.zeros(
                    [dim if isinstance(dim, int) else size for dim, size in sizes], np.float32
                )

    def say(self, tokens: list[list[int]]) -> list[np.ndarray]:
        """Logits [new tokens, vocab] of each row; shorter rows are padded on the right."""
        width = max(map(len, tokens))
        ids = np.array([row + [0] * (width - len(row)) for row in tokens], np.int64)
        new = np.array([[1] * len(row) + [0] * (width - len(row)) for row in tokens], np.int64)
        self._mask = np.concatenate([self._mask, new], axis=1)
        feeds = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "position_ids": np.maximum(np.cumsum(self._mask, 1) - 1, 0)[:, -width:],
        }
        names = {item.name for item in self._session.get_inputs()}
        outputs = [item.name for item in self._session.get_outputs()]
        given = {name: array for name, array in (feeds | self._past).items() if name in names}
        results = dict(zip(outputs, self._session.run(outputs, given), strict=True))
        logits = results.pop("logits")
        self._past = {name.replace("present", "past_key_values"): item for name, item in results.items()}
        return [logits[row, : len(said)] for row, said in enumerate(tokens)]


def worst_decoder_difference(before: ir.Model, after: ir.Model, vocab: int, *, ragged: bool = True) -> float:
    """The largest difference of logits, relative to the largest logit.

    ``after`` speaks in a batch padded on the right, and one row in blocks of several tokens; ``before``
    speaks each row alone, so that padding, holes in the cache and windows across them cannot be wrong in
    both.
    """
    rng = np.random.default_rng(0)

    def tokens(*lengths: int) -> list[list[int]]:
        return [rng.integers(3, vocab, length).tolist() for length in lengths]

    worst = 0.0
    single, batch = [(7,), (1,), (4,), (1,)], [(6, 4, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    for script in (single, batch) if ragged else (single,):
        rows = len(script[0])
        together, alone = Conversation(after, rows), [Conversation(before, 1) for _ in range(rows)]
        for lengths in script:
            said = tokens(*lengths)
            for got, speaker, row in zip(together.say(said), alone, said, strict=True):
                meant = speaker.say([row])[0]
                assert np.isfinite(got).all()
                worst = max(worst, float(np.abs(got - meant).max() / np.abs(meant).max()))
    return worst


def worst_encoder_difference(before: ir.Model, after: ir.Model, vocab: int) -> float:
    """The largest difference on real tokens, over a single row and a batch padded on both sides."""
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
        given = {item.name: feeds[item.name] for item in one.get_inputs()}
        first, second = (which.run(None, given)[0] for which in (one, two))
        if first.ndim == 3:
            first, second = first[tokens.astype(bool)], second[tokens.astype(bool)]
        assert np.isfinite(first).all()
        worst = max(worst, float(np.abs(first - second).max()))
    return worst
