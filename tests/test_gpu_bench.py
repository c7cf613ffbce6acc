"""What `bench/gpu.py` concludes from what it measured: an hour with a GPU is no time to find that wrong."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

BENCH = Path(__file__).parents[1] / "bench"
DEVICE = {"device": "Some GPU", "onnxruntime": "1.31.1"}


@pytest.fixture(autouse=True)
def _bench_modules(monkeypatch):
    """Scripts of `bench/` import one another by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in [name for name in sys.modules if name.startswith("gpu_")]:
        del sys.modules[name]


def module(name):
    return importlib.import_module(name)


def rows(path, identity=None):
    return module("gpu_rows").Rows(path, identity or DEVICE)


def product(form, ms, error=0.01, rows=1):
    return {"inner": 64, "columns": 96, "rows": rows, "form": form, "ms": ms, "error_of": error}


def speed(found, model, variant, target, decode, prefill, parameters):
    cell = {"model": model, "variant": variant, "target": target, "batch": 1, "context": 512}
    values = {"decode_rate": decode, "prefill_rate": prefill, "step_seconds": [1 / decode], "steps": 32}
    found.add(f"speed/{model}/1x512/{variant}", **cell, **values, own_bytes=0)
    costs = {"weight_bytes": 3_000_000_000, "cache_bytes_per_position": 1000, "macs": 1_300_000_000}
    found.add(f"load/{model}/{variant}", parameters=parameters, **costs)


def test_one_row_is_bound_by_bytes_and_many_rows_by_operations():
    roofline = module("gpu_roofline")
    ceilings = roofline.Ceilings(bandwidth=1e12, rate=1e14)
    weight = 1000 * 2000 * 2
    one = roofline.Product(rows=1, inner=1000, columns=2000, weight_bytes=weight, element=2)
    assert one.floor(ceilings) == pytest.approx((weight + 2 * 3000) / 1e12)
    many = roofline.Product(rows=4096, inner=1000, columns=2000, weight_bytes=weight, element=2)
    assert many.floor(ceilings) == pytest.approx(2 * 4096 * 1000 * 2000 / 1e14)
    assert roofline.percent(one.floor(ceilings), 2 * one.floor(ceilings)) == pytest.approx(50)
    assert roofline.percent(1.0, 0.0) == 0


def test_the_cache_of_all_rows_counts_for_a_step_and_not_for_a_prompt():
    roofline = module("gpu_roofline")
    ceilings = roofline.Ceilings(bandwidth=1e12, rate=1e14)
    decoder = roofline.Decoder(weight_bytes=2_000_000_000, cache_bytes=50_000, macs=1_000_000_000)
    assert decoder.decode_floor(ceilings, rows=8, depth=1000) == pytest.approx(
        (2e9 + 8 * 1000 * 50_000) / 1e12
    )
    assert decoder.prefill_floor(ceilings, tokens=4096) == pytest.approx(2 * 4096 * 1e9 / 1e14)
    assert decoder.prefill_floor(ceilings, tokens=1) == pytest.approx(2e9 / 1e12)


def test_the_next_run_goes_on_where_the_last_one_was_killed(tmp_path):
    path = tmp_path / "gpu-some-gpu.json"
    first = rows(path)
    first.add("speed/1", rate=2.0)
    first.add("speed/2", error="out of memory")
    again = rows(path)
    assert again.has("speed/1")
    assert not again.has("speed/2")  # tried again
    assert again.failures() == {"speed/2": "out of memory"}
    assert again.under("speed/") == [{"rate": 2.0}]
    again.forget("speed/1")
    assert not again.has("speed/1")


def test_rows_of_other_versions_are_not_taken_over(tmp_path):
    path = tmp_path / "gpu-some-gpu.json"
    rows(path).add("speed/1", rate=2.0)
    other = rows(path, DEVICE | {"onnxruntime": "1.32.0"})
    assert len(other) == 0
    assert other.left_behind == 1


def test_numbers_that_are_none_do_not_break_the_file(tmp_path):
    found = rows(tmp_path / "rows.json")
    found.add("a", values=[float("nan"), 1.0], inner={"x": float("inf")})
    written = json.loads((tmp_path / "rows.json").read_text())["rows"]["a"]
    assert written == {"values": ["nan", 1.0], "inner": {"x": "inf"}}


def test_the_fastest_form_wins_only_if_its_numbers_are_right():
    winners = module("gpu_table").winners
    found = [product("A-fp16", 10.0, 0.001), product("E-nbits8", 6.0), product("G-matmulinteger", 2.0, 0.9)]
    found += [product("F-nbits8-mixed", 5.0, "nan"), product("H-nbits4", 3.0, 0.1)]
    assert winners(found, 8) == {("64 x 96", 1): ("E-nbits8", pytest.approx(10 / 6))}
    assert winners(found, 4) == {("64 x 96", 1): ("H-nbits4", pytest.approx(10 / 3))}


def test_where_float16_is_faster_it_wins_and_where_it_is_wrong_nobody_does():
    winners = module("gpu_table").winners
    found = [product("A-fp16", 10.0, 0.001), product("E-nbits8", 12.0)]
    found += [product("A-fp16", 10.0, 1.0, rows=8), product("E-nbits8", 12.0, rows=8)]
    assert winners(found, 8) == {("64 x 96", 1): ("A-fp16", 1.0)}


def test_aims_count_large_models_only_and_each_way_of_stepping_by_itself(tmp_path):
    found = rows(tmp_path / "rows.json")
    speed(found, "1.5B", "cuda-fp16", "cuda-fp16", decode=100, prefill=1000, parameters=1.5e9)
    speed(found, "1.5B", "cuda-int8", "cuda-int8", decode=160, prefill=900, parameters=1.5e9)
    speed(found, "1.5B", "cuda-fp16 CUDA graph", "cuda-fp16", decode=200, prefill=1000, parameters=1.5e9)
    speed(found, "1.5B", "cuda-int8 CUDA graph", "cuda-int8", decode=280, prefill=990, parameters=1.5e9)
    speed(found, "0.13B", "cuda-fp16", "cuda-fp16", decode=100, prefill=1000, parameters=1.3e8)
    speed(found, "0.13B", "cuda-int8", "cuda-int8", decode=900, prefill=9000, parameters=1.3e8)
    ratios = module("gpu_verdict").ratios(found, "decode_rate")
    assert ratios == {"": {"1.5B 1 x 512": 1.6}, "CUDA graph": {"1.5B 1 x 512": 1.4}}
    said = " ".join(module("gpu_verdict").verdict(found))
    assert "decode >= 1.5x of cuda-fp16 at 1B parameters and more, no CUDA graph: held in 1 of 1" in said
    assert "decode >= 1.5x of cuda-fp16 at 1B parameters and more, CUDA graph: held in 0 of 1" in said
    assert "prefill >= 0.95x of cuda-fp16 at 1B parameters and more, no CUDA graph: held in 0 of 1" in said


def test_bounds_stand_in_the_table_of_speeds(tmp_path):
    found = rows(tmp_path / "rows.json")
    found.add("ceilings", copy_bytes_per_second=3e12, row_bytes_per_second=2e12, operations_per_second=1e15)
    speed(found, "1.5B", "cuda-fp16", "cuda-fp16", decode=500, prefill=100_000, parameters=1.5e9)
    line = module("gpu_table").speed_table(found)[0]
    assert line[4:9] == ("1.00x", "26%", "500.0", "1.00x", "50%")


@pytest.mark.parametrize("key", ["A", "B", "C", "D", "E", "F", "G", "H", "I"])
def test_every_form_says_the_same_product(key):
    forms, sessions = module("gpu_forms"), module("gpu_sessions")
    form = next(form for form in forms.FORMS if form.key.startswith(key))
    weight = forms.drawn(64, 96)
    session = sessions.open_graph(forms.form_model(form, weight, 2, np.float32), "cpu")
    x = np.random.default_rng(1).standard_normal((4, 64), dtype=np.float32)
    first, second = session.run(None, {"x": x})
    wanted = x @ weight.values
    off = np.sqrt(np.mean((first - wanted) ** 2) / np.mean(wanted**2))
    assert off < {16: 1e-5, 8: 0.03, 4: 0.15}[form.bits]
    np.testing.assert_allclose(second, np.roll(first, 1, axis=1), atol=1e-4)


def test_a_hollow_artifact_is_filled_with_draws_from_its_own_values(tmp_path):
    hollow = module("gpu_hollow")
    large = np.random.default_rng(0).integers(3, 9, (64, 512)).astype(np.uint8)
    small = np.arange(4096, dtype=np.float16)
    source = tmp_path / "artifact"
    (source / "onnx").mkdir(parents=True)
    (source / "artifact.json").write_text("{}")
    values = [ir.Value(name=n, const_value=ir.tensor(a)) for n, a in (("large", large), ("small", small))]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    ir.save(model, source / "onnx/model.onnx", external_data="model.onnx_data", size_threshold_bytes=0)
    hollow.empty(source, tmp_path / "hollow")
    assert not (tmp_path / "hollow/onnx/model.onnx_data").exists()
    hollow.fill(tmp_path / "hollow", tmp_path / "filled")
    filled = ir.load(tmp_path / "filled/onnx/model.onnx").graph.initializers
    np.testing.assert_array_equal(filled["small"].const_value.numpy(), small)
    drawn = filled["large"].const_value.numpy()
    assert drawn.shape == large.shape
    assert set(np.unique(drawn)) == set(range(3, 9))
    assert (tmp_path / "filled/artifact.json").read_text() == "{}"


def test_a_worker_that_fails_says_why_and_takes_nobody_along(tmp_path):
    process = module("gpu_process")
    script = tmp_path / "worker.py"
    script.write_text(
        f"import os, sys, time\nsys.path.insert(0, {str(BENCH)!r})\nfrom gpu_process import serve\n"
        "def answer(asked):\n"
        "    print('noise')\n"
        "    if asked['do'] == 'raise': raise ValueError('bad\\nluck')\n"
        "    if asked['do'] == 'die': sys.stderr.write('the GPU is gone'); sys.stderr.flush(); os._exit(7)\n"
        "    if asked['do'] == 'sleep': time.sleep(60)\n"
        "    return {'said': asked['do']}\n"
        "serve(answer)\n"
    )
    with process.Worker(str(script)) as worker:
        assert worker.ask(30, do="this") == {"said": "this"}
        with pytest.raises(process.WorkerFailed, match="ValueError: bad luck"):
            worker.ask(30, do="raise")
        with pytest.raises(process.WorkerFailed, match=r"ended with 7: .*the GPU is gone"):
            worker.ask(30, do="die")
    with process.Worker(str(script)) as worker, pytest.raises(process.WorkerFailed, match="no answer within"):
        worker.ask(1, do="sleep")


def test_the_device_is_in_the_name_of_the_file():
    assert module("gpu_report").slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_a_page_is_made_of_what_a_killed_run_left(tmp_path, capsys):
    found = rows(tmp_path / "gpu-some-gpu.json")
    speed(found, "1.5B", "cuda-fp16", "cuda-fp16", decode=500, prefill=100_000, parameters=1.5e9)
    found.add("speed/1.5B/1x512/cuda-int8", error="the GPU is gone")
    module("gpu_report").write_report(module("gpu_rows").Rows(found.path), ["said"])
    page = (tmp_path / "gpu-some-gpu.md").read_text()
    assert "CUDA targets on Some GPU" in page
    assert "500.0" in page
    assert "the GPU is gone" in page
    assert rows(found.path).has("speed/1.5B/1x512/cuda-fp16")  # the next run goes on from it
