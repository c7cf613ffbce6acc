"""``chat``: what is asked for on the command line reaches the model."""

import io
from contextlib import nullcontext
from types import SimpleNamespace

from onnxforge.compiler import cli, loaded


class _Listener:
    """A model that remembers how it was asked, and answers one word."""

    def __init__(self) -> None:
        self.asked: dict[str, object] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def stream(self, messages, **options):
        self.asked = {"messages": messages, **options}
        return nullcontext(_Answer())


class _Answer:
    result = SimpleNamespace(text="yes")

    def __iter__(self):
        return iter(["yes"])


def test_every_generation_flag_reaches_the_model(monkeypatch, capsys, tmp_path):
    model = _Listener()
    drafts: list[object] = []

    def loading(folder, threads, draft, cuda_graph):
        drafts.append((draft, cuda_graph))
        return model

    monkeypatch.setattr(loaded, "load_decoder", loading)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    flags = ("--top-k", "7", "--top-p", "0.5", "--repetition-penalty", "1.5", "--temperature", "2")
    more = ("--stop", "###", "--stop", "END", "--seed", "3", "--do-sample", "-n", "9", "--system", "be brief")
    drafting = ("--max-draft-tokens", "6", "--draft", str(tmp_path), "--cuda-graph")
    assert cli.run_verb("chat", [str(tmp_path), *flags, *more, *drafting]) == 0
    assert capsys.readouterr().out == "yes\n"
    assert model.asked == {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_new_tokens": 9,
        "do_sample": True,
        "temperature": 2.0,
        "top_k": 7,
        "top_p": 0.5,
        "repetition_penalty": 1.5,
        "seed": 3,
        "stop": ["###", "END"],
        "max_draft_tokens": 6,
    }
    assert drafts == [(str(tmp_path), True)]
