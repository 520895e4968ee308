"""Tasks whose scores need the outputs of all examples, over two processes: the same runs and scores as in one."""

import dataclasses
import json
import socket
import subprocess
import sys

import jax
import pytest

from eca_jax.config import Config, DataConfig, ModelConfig, OptimConfig, to_dict
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.runs.directory import read_config
from eca_jax.sharding import make_mesh
from eca_jax.tasks import MultiLabel
from eca_jax.training import loop
from eca_jax.training.loop import train
from tests import boxes, tiny
from tests.boxes import Boxes
from tests.commands import ROOT, environment
from tests.tasks.test_multi_label import write_tables
from tests.training.test_loop import rows

pytestmark = pytest.mark.system

# Trains, and evaluates the last checkpoint once more.
WORKER = """
import dataclasses, json, pathlib, sys
sys.path.insert(0, ".")
from eca_jax.sharding import ClusterConfig, initialize_cluster, leave_cluster

out, coordinator, process, *runs = sys.argv[1:]
initialize_cluster(ClusterConfig(coordinator, 2, int(process)))
import jax
from eca_jax.config import from_dict
from eca_jax.training.evaluate import evaluate_run
from eca_jax.training.loop import train
from tests import boxes, tiny

tiny.register()
boxes.register()
found = []
try:
    for run in runs:
        result = train(from_dict(json.loads(pathlib.Path(run).read_text())))
        found.append([result.step, result.evaluation, jax.process_count(), jax.device_count()])
    again = evaluate_run(str(result.checkpoint.parents[1]))[2]
    pathlib.Path(out).write_text(json.dumps([found, again]))
except Exception:
    leave_cluster(1)
"""


def configs() -> dict[str, Config]:
    """Held-out examples that are no multiple of the batch: one process has the padding alone."""
    common = Config(
        model=ModelConfig("eca_tiny", dtype="float64"),
        optim=OptimConfig(lr=0.1, warmup_epochs=1),
        batch_size=32,
        epochs=2,
        log_every=2,
        eval_every_epochs=2,
    )
    labels = MultiLabel(PreprocessConfig(image_size=8, eval_resize=8, augment="pad_and_crop", pad=1, flip=False))
    return {
        "labels": dataclasses.replace(common, task=labels, data=DataConfig("csv:", eval_split="val", num_threads=1)),
        "boxes": dataclasses.replace(common, task=Boxes(), data=DataConfig("boxes:96", num_threads=1)),
    }


def test_two_processes_train_and_score_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", lambda: make_mesh(jax.devices()[:2]))
    tables = write_tables(tmp_path / "tables", 96, 40)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    env = environment(JAX_ENABLE_X64="1", JAX_ENABLE_COMPILATION_CACHE="false")
    with tiny.brought_from_outside(), jax.enable_x64(True):
        tiny.register()
        boxes.register()
        files, alone = [], {}
        for name, config in configs().items():
            if name == "labels":
                config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=tables))
            files.append(tmp_path / f"{name}.json")
            two = dataclasses.replace(config, workdir=str(tmp_path / "two" / name))
            files[-1].write_text(json.dumps(to_dict(two)))
            alone[name] = dataclasses.replace(config, workdir=str(tmp_path / "one" / name))
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tmp_path / f"{i}.out"), coordinator, str(i), *map(str, files)],
                cwd=ROOT,
                env=env,
                stdout=(tmp_path / f"{i}.txt").open("w"),
                stderr=subprocess.STDOUT,
            )
            for i in range(2)
        ]
        try:
            expected = {name: train(config) for name, config in alone.items()}
            statuses = [worker.wait(timeout=300) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        print(*(path.read_text() for path in sorted(tmp_path.glob("*.txt"))), sep="\n")
        assert statuses == [0, 0]

        first, second = (json.loads((tmp_path / f"{i}.out").read_text()) for i in range(2))
        assert first == second
        found, again = first
        for (name, result), (step, scores, processes, devices) in zip(expected.items(), found, strict=True):
            assert (step, processes, devices) == (6, 2, 2)
            assert scores == pytest.approx(result.evaluation, rel=1e-5)
            metrics = [rows(tmp_path / way / name) for way in ("one", "two")]
            for a, b in zip(*metrics, strict=True):
                assert (a.pop("kind"), a.pop("step")) == (b.pop("kind"), b.pop("step"))
                assert a == pytest.approx(b, rel=1e-5)
            assert read_config(tmp_path / "two" / name).task == alone[name].task
        assert again == pytest.approx(found[-1][1], rel=1e-6)
