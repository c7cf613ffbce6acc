"""Half an installation of onnxruntime is told as what it is, with the commands that repair it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Only a part of onnxruntime is left in ["),
        ("raise ImportError('libstdc++.so.6: too old')", "cannot be imported: libstdc++.so.6: too old."),
    ],
)
def test_what_is_left_of_onnxruntime_is_refused(tmp_path, content, message):
    module = tmp_path / "onnxruntime" / "__init__.py"
    module.parent.mkdir()
    module.write_text(content)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import onnxforge.runtimes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: ")
    assert message in last
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime " in last
