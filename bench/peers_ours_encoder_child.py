"""One of our encoder artifacts answering the requests of `peers.py`: `peers_ours_encoder_child.py FOLDER`."""

import sys
from collections.abc import Callable

from peer_process import serve
from peers_encoder_child import answered

from onnxforge.compiler.proof_session import threads
from onnxforge.runtimes import Encoder, load


def main() -> None:
    def opened() -> Callable[[dict], dict]:
        model = load(sys.argv[1], threads=threads(), verify="off")
        assert isinstance(model, Encoder)
        return lambda request: answered(lambda texts: model.encode(texts, normalize_embeddings=True), request)

    serve(opened)


if __name__ == "__main__":
    main()
