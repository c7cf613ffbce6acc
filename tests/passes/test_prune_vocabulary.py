"""Embedding, head and logits lose the same tokens; what is left answers as before."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_graphs import apply, declined, graph, random, run

from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.passes.base import PassRefused
from onnxforge.passes.prune_vocabulary import PruneVocabulary
from onnxforge.passes.stored_blocks import STORED_BLOCKS, STORED_BLOCKS_TURNED
from onnxforge.passes.token_counts import TokenCounts, counts_of, kept_tokens, leave_counts
from onnxforge.passes.unpruned import remember_unpruned, unpruned

V, H = 40, 8
TIED = """g (int64[b,s] input_ids, float[b,1,p,8] past_key_values.0.key) => (float[b,s,40] logits) {
  x = Gather(E, input_ids)
  h = Tanh(x)
  W = Transpose<perm=[1,0]>(E)
  logits = MatMul(h, W)
}""".replace("past_key_values.0.key", "past")
BIASED = """g (int64[b,s] input_ids) => (float[b,s,40] logits) {
  n = Cast<to=6>(input_ids)
  x = Gather(E, n)
  y = MatMul(x, W)
  z = Add(y, bias)
  scaled = Div(z, cap)
  bent = Tanh(scaled)
  logits = Mul(bent, cap)
}"""
PADDED = """g (int64[b,s] input_ids) => (float[b,s,8] last_hidden_state) {
  is_pad = Equal(input_ids, pad)
  marked = Cast<to=1>(is_pad)
  one = Unsqueeze(marked, last)
  x = Gather(E, input_ids)
  last_hidden_state = Add(x, one)
}"""
COUNTS = np.zeros(V, np.int64)
COUNTS[[3, 5, 7, 30, 39]] = [9, 5, 1, 2, 4]


def counted(model: ir.Model, needed=(0, 1), parts=None, size=V) -> ir.Model:
    exists, wanted = np.ones(size, np.bool_), np.zeros(size, np.bool_)
    wanted[list(needed)] = True
    counts = np.zeros(size, np.int64)
    counts[: min(V, size)] = COUNTS[:size]
    leave_counts(model, TokenCounts(counts, exists, wanted, parts or {}))
    return model


def tied() -> ir.Model:
    return counted(graph(TIED, E=random(V, H)))


def biased(**changes) -> ir.Model:
    weights = {
        "E": random(V, H),
        "W": random(H, V, seed=1),
        "bias": random(V, seed=2),
        "cap": np.array([30], np.float32),
    }
    return counted(graph(BIASED, **weights | changes))


def kept(model: ir.Model) -> list[int]:
    found = kept_tokens(model)
    assert found is not None
    return found.tolist()


USED = [0, 1, 3, 5, 7, 30, 39]
EXACT = PruneVocabulary(multiple=1)


@pytest.mark.parametrize("make", [tied, biased], ids=["tied", "untied, bias, soft cap"])
def test_logits_of_kept_tokens_stay(make):
    before, after = make(), make()
    apply(EXACT, after)
    assert kept(after) == USED
    new = np.array([[0, 6, 3, 2]])
    feeds = {"past": np.zeros((1, 1, 0, 8), np.float32)}
    (meant,) = run(before, feeds | {"input_ids": np.array(USED)[new]})
    (found,) = run(after, feeds | {"input_ids": new})
    np.testing.assert_array_equal(found, meant[..., USED])
    assert found.shape == (1, 4, 7)
    assert after.graph.outputs[0].shape[-1] == 7
    assert all(value.shape.dims.count(V) == 0 for value in after.graph.initializers.values())
    assert list(after.graph.initializers) == list(before.graph.initializers), "names stay"


@pytest.mark.parametrize("family", ["gemma2", "opt", "roberta"])
def test_exported_graphs(tiny_export, family):
    """Soft caps, projections of an embedding, position ids that are made of the padding id."""
    model = tiny_export(family)
    before, n = model.clone(), 97
    counts = np.zeros(n, np.int64)
    counts[5::2] = 1
    needed = np.arange(n) < 3
    leave_counts(model, TokenCounts(counts, np.ones(n, np.bool_), needed, {}))
    EXACT(model)
    chosen = kept_tokens(model)
    new = np.array([[7, 3, 20, 11, 1]])
    for meant, found in zip(_whole(before, chosen[new]), _whole(model, new), strict=True):
        meant = meant[..., chosen] if meant.shape[-1] == n else meant
        np.testing.assert_allclose(found, meant, atol=1e-4)


def _whole(model: ir.Model, ids: np.ndarray) -> list[np.ndarray]:
    """Every output for ``ids`` [1, S] and an empty cache, ONNX Runtime's own optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, whole_sequence_feeds(session.get_inputs(), ids, np.ones_like(ids), "tiny"))


def test_one_tensor_under_two_names_stays_one():
    model = biased(W=ir.tensor(np.zeros((H, V), np.float32)))
    shared = ir.tensor(random(V, H))
    again = graph(
        BIASED.replace("MatMul(x, W)", "MatMul(x, Wt)").replace(
            "  y =", "  Wt = Transpose<perm=[1,0]>(W)\n  y ="
        ),
        E=shared,
        W=shared,
        bias=random(V),
        cap=np.array([30], np.float32),
    )
    EXACT(counted(again))
    initializers = again.graph.initializers
    assert initializers["E"].const_value is initializers["W"].const_value
    EXACT(model)
    assert model.graph.initializers["E"].const_value is not model.graph.initializers["W"].const_value


def test_an_id_that_the_graph_looks_for_is_renumbered():
    weights = {"E": random(V, H), "pad": np.array([5]), "last": np.array([-1])}
    before, after = (counted(graph(PADDED, **weights)) for _ in range(2))
    apply(EXACT, after)
    (meant,) = run(before, {"input_ids": np.array([[5, 3, 39]])})
    (found,) = run(after, {"input_ids": np.array([[3, 2, 6]])})
    np.testing.assert_array_equal(found, meant)
    outside = counted(graph(PADDED, **weights | {"pad": np.array([-100])}))
    EXACT(outside)
    assert outside.graph[0].inputs[1].const_value.numpy().tolist() == [-100]


def test_an_id_that_the_graph_looks_for_must_be_kept():
    model = counted(graph(PADDED, E=random(V, H), pad=np.array([17]), last=np.array([-1])))
    with pytest.raises(PassRefused, match="Equal_0' looks for token 17"):
        EXACT(model)
    assert model.graph.initializers["E"].shape == (V, H)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (PruneVocabulary(multiple=1, min_count=2), [0, 1, 3, 5, 30, 39]),
        (PruneVocabulary(multiple=8), [0, 1, 2, 3, 5, 7, 30, 39]),
        (PruneVocabulary(multiple=1, keep=5), [0, 1, 3, 5, 39]),
        (PruneVocabulary(multiple=1, share=0.875), [0, 1, 3, 5, 39]),
        (PruneVocabulary(multiple=1, share=0.75), [0, 1, 2, 3, 4, 5, 6, 7, 30, 39]),
    ],
)
def test_which_tokens_are_kept(step, wanted):
    model = tied()
    step(model)
    assert kept(model) == wanted


def test_what_a_token_is_merged_from_comes_with_it():
    model = counted(graph(TIED, E=random(V, H)), parts={39: (20, 21), 20: (10,), 3: (0, 1)})
    EXACT(model)
    assert kept(model) == [0, 1, 3, 5, 7, 10, 20, 21, 30, 39]
    assert counts_of(model).parts == {9: (6, 7), 6: (5,), 2: (0, 1)}
    few = counted(graph(TIED, E=random(V, H)), parts={39: (20, 21), 20: (10,), 3: (0, 1)})
    PruneVocabulary(multiple=1, keep=5)(few)
    assert kept(few) == [0, 1, 3, 5, 30], "39 comes before 30 in the text, and has no room for its parts"


def test_rows_that_are_no_token_go():
    """Vocabularies are padded for the hardware; the tokenizer knows 32 of 40."""
    model = counted(graph(TIED, E=random(V, H)), size=32)
    PruneVocabulary(keep=99)(model)
    assert kept(model) == list(range(32))


def test_everything_kept_changes_nothing():
    assert declined(PruneVocabulary(keep=V), tied()) == ""


def test_twice_leads_back_to_the_first_ids():
    model = tied()
    EXACT(model)
    PruneVocabulary(multiple=1, keep=4)(model)
    assert kept(model) == [0, 1, 3, 5]


def test_the_model_that_was_remembered_speaks_the_new_ids():
    model = tied()
    remember_unpruned(model)
    EXACT(model)
    feeds = {"input_ids": np.array([[4, 6]]), "past": np.zeros((1, 1, 0, 8), np.float32)}
    np.testing.assert_array_equal(run(unpruned(model), feeds)[0], run(model, feeds)[0])


def test_stored_blocks_come_along():
    class Blocks:
        form, order = (4, 8, "middle"), None

        def read(self):
            return np.arange(V * H).reshape(V, H).astype(np.uint8), np.arange(V)[:, None], None

    model = biased()
    for name, key in (("E", STORED_BLOCKS), ("W", STORED_BLOCKS_TURNED)):
        model.graph.initializers[name].const_value.meta[key] = Blocks()
    EXACT(model)
    for name, key in (("E", STORED_BLOCKS), ("W", STORED_BLOCKS_TURNED)):
        codes, steps, none = model.graph.initializers[name].const_value.meta[key].read()
        assert steps[:, 0].tolist() == USED
        assert codes.shape == (7, H)
        assert none is None


def test_a_classifier_keeps_its_labels():
    body = (
        "g (int64[b,s] input_ids) => (float[b,s,3] logits) { x = Gather(E, input_ids) logits = MatMul(x, W) }"
    )
    model = counted(graph(body, E=random(V, H), W=random(H, 3)))
    apply(EXACT, model)
    assert run(model, {"input_ids": np.array([[6]])})[0].shape == (1, 1, 3)


def test_the_logits_may_be_of_unknown_width():
    model = biased()
    model.graph.outputs[0].shape = ir.Shape(["b", "s", "v"])
    EXACT(model)
    assert run(model, {"input_ids": np.array([[6]])})[0].shape == (1, 1, 7)


IDS = "g (int64[b,s] input_ids) => "
HEAD = f"{IDS}(float[b,s,40] logits) {{ x = Gather(E, input_ids) "
TWO = f"{IDS}(float[b,s,40] logits, int64[b,s,k] more) {{ x = Gather(E, input_ids) logits = MatMul(x, W) "
REFUSED = {
    "softmax over a text": (
        HEAD + "y = MatMul(x, W) logits = Softmax<axis=1>(y) }",
        "Softmax_2' makes 'logits', and may mix",
    ),
    "norm of logits": (HEAD + "y = MatMul(x, W) logits = LpNormalization(y) }", "LpNormalization_2' makes"),
    "argmax": (TWO + "more = ArgMax<axis=-1>(logits) }", "ArgMax_2' reads 'logits'"),
    "another reader of the table": (
        HEAD + "q = ReduceSum(E) z = Mul(x, q) logits = MatMul(z, W) }",
        "ReduceSum_1' reads 'E'",
    ),
    "ids summed": (
        HEAD + "n = Cast<to=1>(input_ids) m = ReduceSum(n) z = Mul(x, m) logits = MatMul(z, W) }",
        "ReduceSum_2' reads token ids",
    ),
    "ids returned": (TWO + "more = Identity(input_ids) }", "returns token ids as 'more'"),
    "computed table": (
        IDS + "(float[b,s,8] y) { T = Tanh(E) y = Gather(T, input_ids) }",
        "no constant table",
    ),
    "tables of two sizes": (
        IDS + "(float[b,s,24] y) { x = Gather(E, input_ids) y = Gather(W, input_ids) }",
        "looks token ids up in 8 rows, another table has 40",
    ),
    "no text": ("g (float[b,s] input_ids) => (float[b,s] y) { y = Tanh(W) }", "no table that the input"),
    "computed head": (
        HEAD + "T = Tanh(W) logits = MatMul(x, T) }",
        "MatMul_2' makes the logits by what is no",
    ),
    "bias of another width": (
        HEAD + "y = MatMul(x, W) logits = Add(y, odd) }",
        "reads 'odd': 2 entries for 40 tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_is_not_understood_is_refused_by_node(name):
    body, message = REFUSED[name]
    weights = {"E": random(V, H), "W": random(H, V), "odd": random(2)}
    used = {key: value for key, value in weights.items() if f"({key}" in body or f" {key})" in body}
    model = counted(graph(body, **used))
    before = [value.shape for value in model.graph.initializers.values()]
    with pytest.raises(PassRefused, match=message):
        EXACT(model)
    assert [value.shape for value in model.graph.initializers.values()] == before
    assert kept_tokens(model) is None


def test_a_generator_with_logits_of_another_width_is_refused():
    body = (
        "g (int64[b,s] input_ids, float[b] past) => (float[b,s,24] logits) "
        "{ x = Gather(E, input_ids) logits = MatMul(x, W) }"
    )
    model = counted(graph(body, E=random(V, H), W=random(H, 24)))
    model.graph.inputs[1].name = "past_key_values.0.key"
    with pytest.raises(PassRefused, match="MatMul_1' makes 24 logits, and the ids look up 40 rows"):
        EXACT(model)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (PruneVocabulary(keep=-1), "keep is at least 0"),
        (PruneVocabulary(min_count=0), "min_count and multiple are at least 1"),
        (PruneVocabulary(multiple=0), "min_count and multiple are at least 1"),
        (PruneVocabulary(keep=9, min_count=2), "each say how many tokens stay"),
        (PruneVocabulary(keep=9, share=0.5), "each say how many tokens stay"),
        (PruneVocabulary(share=1.0), r"share is 1\.0; it must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(step, message):
    with pytest.raises(PassRefused, match=message):
        step.requires(tied())


def test_a_model_without_counts_is_refused():
    with pytest.raises(PassRefused, match="Put `count-tokens` in front"):
        EXACT.requires(graph(TIED, E=random(V, H)))


def test_fewer_tokens_than_are_needed_are_refused():
    model = counted(graph(TIED, E=random(V, H)), needed=(0, 1, 2, 3))
    with pytest.raises(PassRefused, match="3 tokens are asked for, and 4 are needed"):
        PruneVocabulary(keep=3, multiple=1)(model)


def test_a_tokenizer_of_another_model_is_refused():
    model = counted(graph(TIED, E=random(V, H)), needed=(50,), size=60)
    with pytest.raises(PassRefused, match="has a token 50, and the table of 'g' has 40 rows"):
        EXACT(model)
