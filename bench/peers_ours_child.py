"""One of our artifacts scoring token windows for `peers.py`: `peers_ours_child.py FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from peer_process import serve

from onnxforge.compiler.eval_text import Window
from onnxforge.compiler.perplexity import losses
from onnxforge.compiler.proof_session import GraphSession


def main() -> None:
    def opened() -> Callable[[dict], dict]:
        session = GraphSession(Path(sys.argv[1]))

        def score(request: dict) -> dict:
            window = Window(np.asarray([request["ids"]], np.int64), request["first"])
            found = losses(session, window)
            return {"nll": float(found.sum()), "tokens": len(found)}

        return score

    serve(opened)


if __name__ == "__main__":
    main()
