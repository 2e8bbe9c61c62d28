"""The command line: exit codes, one-line errors that say the fix, JSON output, and a whole run."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from stepdistill.cli import main as cli
from stepdistill.errors import UserError
from stepdistill.testing import tiny_pipeline
from stepdistill.training.recipe import load_recipe
from stepdistill.training.run import build_trainer, distill, restore


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "tiny-sd"
    tiny_pipeline("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path) -> Path:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\ntwo cats\n")
    document = {
        "model": {"pretrained_model_name_or_path": str(teacher)},
        "roles": {"mode": "shared", "rank": 2},
        "method": {"name": "dmd2", "num_steps": 2, "guidance_scale": 2.0, "student_every": 2},
        "data": {"prompts": str(prompts)},
        "train": {
            "train_batch_size": 2, "max_train_steps": 3, "learning_rate": "1e-3",
            "output_dir": str(tmp_path / "run"), "device": "cpu", "log_every": 1,
        },
        "validation": {"every": 2, "teacher_steps": 3},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of the console script, in this process."""
    old = sys.argv
    sys.argv = ["stepdistill", *arguments]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1e-5", "did you mean 'learning_rate'?"),
        ("train.max_train_steps=many", "train.max_train_steps"),
        ("method.num_steps=9", "method.num_steps"),
        ("method.num_steps=0", "method.num_steps"),
        ("method.gan.weight=1", "method.gan.weight: unknown key"),
        ("method.name=dmd3", "did you mean 'dmd2'?"),
        ("roles.mode=both", "roles.mode"),
        ("nonsense", "write key.sub=value"),
        ("data.prompts=missing.txt", "there is no file 'missing.txt'"),
        ("data.prompts=prompts.doc", "neither 'emoji' nor"),
        ("data.images=nowhere", "data.images"),
        ("model.pretrained_model_name_or_path=/nowhere/model", "there is no folder"),
        ("train.start_from=/nowhere", "holds no last checkpoint"),
        ("train.device=cuda", "train.device=cpu"),
        ("train.use_8bit_adam=true", "stepdistill[quant]"),
        ("train.output_dir=/proc/run", "set train.output_dir"),
        ("track.report_to=[wandb]", "stepdistill[tracking]"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], recipe: Path, override: str, message: str
) -> None:
    code, out, err = run(capsys, "distill", str(recipe), override)
    lines = [line for line in err.splitlines() if line.startswith("stepdistill: ")]
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err + out


def test_experts_that_no_pipeline_can_switch_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    code, _, err = run(capsys, "distill", str(recipe), "method={name: phased_dmd}", "roles.mode=full")
    assert (code, "use roles.mode=shared" in err) == (2, True)


def test_missing_and_broken_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "distill", "nowhere.yaml")
    assert (code, "there is no recipe 'nowhere.yaml'" in err) == (2, True)
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    code, _, err = run(capsys, "distill", str(broken))
    assert (code, "not valid YAML" in err) == (2, True)
    broken.write_text("method: {name: dmd2}\n")
    code, _, err = run(capsys, "distill", str(broken))
    assert (code, "model: this key is required" in err) == (2, True)


def test_empty_prompts_corrupt_parquet_and_unknown_family(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    empty, corrupt, odd = tmp_path / "empty.txt", tmp_path / "corrupt.parquet", tmp_path / "odd"
    empty.write_text("\n\n")
    corrupt.write_bytes(b"PAR1 but not really")
    odd.mkdir()
    (odd / "model_index.json").write_text('{"_class_name": "KandinskyPipeline", "_diffusers_version": "0.42.1"}')
    for override, message in {
        f"data.prompts={empty}": "has no prompts",
        f"data.prompts={corrupt}": "not a readable parquet file",
        f"model.pretrained_model_name_or_path={odd}": "KandinskyPipeline is not supported",
    }.items():
        code, _, err = run(capsys, "distill", str(recipe), override)
        assert code == 2
        assert message in err


def test_a_prediction_type_that_a_method_cannot_use(monkeypatch: pytest.MonkeyPatch, teacher: Path) -> None:
    import stepdistill as sd
    from stepdistill.distillers.config import Requirements

    monkeypatch.setattr(sd.DMD2, "requires", Requirements(critic=True, predictions=("flow",)))
    with pytest.raises(sd.UserError, match="does not support a teacher that predicts 'eps'"):
        sd.DMD2(sd.load_teacher(teacher))


def test_no_write_permission(capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = run(capsys, "distill", str(recipe), f"train.output_dir={locked}/run")
    assert (code, "set train.output_dir" in err) == (2, True)


def test_dry_run_prints_the_resolved_recipe_and_its_memory(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    code, out, _ = run(capsys, "distill", str(recipe), "--dry-run", "train.seed=5")
    assert code == 0
    assert "seed: 5" in out
    assert "total" in out
    assert not (recipe.parent / "run").exists()


def test_json_commands_print_one_document(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    code, out, _ = run(capsys, "methods", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {"name", "class", "paper", "family", "requires", "status", "summary", "steps", "passes"} == set(rows[0])
    assert json.loads(run(capsys, "doctor", "--json")[1])["packages"]["torch"]
    estimate = json.loads(run(capsys, "plan", str(recipe), "--json")[1])
    assert estimate["parameters"]["trained_per_player"] > 0
    shared = estimate["total_gib"]
    full = json.loads(run(capsys, "plan", str(recipe), "roles.mode=full", "--json")[1])["total_gib"]
    assert full > shared


@pytest.mark.slow
def test_a_run_from_recipe_to_export_and_again(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    """Distil, export through the gate, report; the resolved recipe is a recipe; a finished run is not repeated."""
    run_dir = recipe.parent / "run"
    assert run(capsys, "distill", str(recipe))[0] == 0
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "export/stepdistill.json", "export/README.md",
                 "export/pytorch_lora_weights.safetensors", "export/run_kohya.safetensors",
                 "export/scheduler/scheduler_config.json", "samples/step_000000.png", "checkpoints/latest"):  # fmt: skip
        assert (run_dir / name).is_file(), name
    contract = json.loads((run_dir / "export/stepdistill.json").read_text())
    assert contract["steps"] == 2
    assert contract["verified"]
    assert run(capsys, "plan", str(run_dir / "recipe.yaml"), "--json")[0] == 0
    out = recipe.parent / "pictures"
    assert run(capsys, "sample", str(run_dir), "--prompt", "a red fox", "--out", str(out))[0] == 0
    assert (out / "00.png").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("gate_in_this_process")
def test_a_student_starts_from_another_runs_average(recipe: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    distill(load_recipe(recipe, [f"train.output_dir={first}"]))
    there, _ = restore(first)
    trained = there.student.role_state_dict()
    second = [f"train.output_dir={tmp_path / 'second'}", f"train.start_from={first}"]
    trainer = build_trainer(load_recipe(recipe, second))
    begun = trainer.distiller.student.role_state_dict()
    assert any(value.abs().max() > 0 for name, value in begun.items() if "lora_B" in name)
    assert all(torch.equal(begun[name], trained[name]) for name in trained)
    assert all(
        torch.equal(mean, parameter)
        for mean, parameter in zip(trainer.ema.average, trainer.ema.parameters, strict=True)
    )
    with pytest.raises(UserError, match="does not fit the recipe"):
        build_trainer(load_recipe(recipe, [*second, "roles.rank=3"]))


@pytest.mark.slow
def test_pairs_are_computed_once_and_read_by_the_run(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    method = ["method={name: dmd, regression: pseudo_huber}", "train.max_train_steps=1"]
    settings = ["data.pairs={num: 5, steps: 2, shard_size: 2}", f"data.cache_dir={tmp_path / 'cache'}"]
    code, _, err = run(capsys, "pairs", str(recipe), *method, *settings[:1])
    assert code == 2
    assert "data.cache_dir" in err
    code, _, err = run(capsys, "distill", str(recipe), *method)
    assert code == 2
    assert "data.pairs.num" in err
    code, out, _ = run(capsys, "pairs", str(recipe), *method, *settings)
    assert code == 0
    assert "5 pairs" in out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    resolved = load_recipe(recipe, [*method, *settings])
    trainer = build_trainer(resolved)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    assert trainer.data.pairs is not None
    assert len(trainer.data.pairs) == 5
    trainer.fit()
    assert "loss/regression" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_terminated_run_exits_with_130_and_a_checkpoint(recipe: Path) -> None:
    command = [sys.executable, "-m", "stepdistill", "distill", str(recipe), "train.max_train_steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics, deadline = recipe.parent / "run/metrics.jsonl", time.time() + 120
    while not (metrics.exists() and '"loss/' in metrics.read_text()) and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-2000:]
    assert "the same command resumes there" in err
    assert (recipe.parent / "run/checkpoints/latest").is_file()


def scored(capsys: pytest.CaptureFixture[str], teacher: Path, out: Path, *more: str) -> tuple[int, str, str]:
    prompts = out.parent / "words.csv"
    prompts.write_text("id,caption\n1,a cat\n2,a dog\n3,two cats\n")
    settings = ["--protocol", "partiprompts", "--prompts", str(prompts), "--metrics", "brightness,contrast"]
    return run(
        capsys, "evaluate", "--pipeline", str(teacher), "--steps", "2", "--guidance", "2", "--out", str(out),
        "--latency-repeats", "0", *settings, *more,
    )  # fmt: skip


@pytest.mark.slow
def test_evaluate_a_pipeline_and_compare(capsys: pytest.CaptureFixture[str], teacher: Path, tmp_path: Path) -> None:
    code, out, _ = scored(
        capsys, teacher, tmp_path / "two", "--json", "--argument", "height=24", "--argument", "width=24"
    )
    document = json.loads(out)
    assert code == 0
    assert document["model"]["arguments"] == {"height": 24, "width": 24}
    assert document["metrics"]["brightness"]["n"] == 3
    assert document["rows"][0]["steps"] == 2
    bounds = ["--assert", "brightness<=0", "--assert", "nfe==4"]
    code, out, err = scored(capsys, teacher, tmp_path / "one", *bounds)
    assert code == 1
    assert "| tiny-sd, 2 steps | 2 | 4 | 2 |" in out
    lines = [line for line in err.splitlines() if line.startswith("stepdistill:")]
    assert len(lines) == 1
    assert re.fullmatch(r"stepdistill: brightness is [\d.]+, the bound is brightness<=0", lines[0])
    other = json.loads(scored(capsys, teacher, tmp_path / "other", "--json", "--seed", "1")[1])
    assert other["seeds"]["protocol_seed"] == 1
    assert other["seeds"]["first"] != document["seeds"]["first"]
    code, out, _ = run(
        capsys, "compare", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "both")
    )
    assert code == 0
    assert out.count("tiny-sd, 2 steps") == 2
    assert (tmp_path / "both/comparison.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "takes one of RUN, --pipeline, --images and --watch, not none"),
        (("runs/x", "--pipeline", "x"), "not RUN and --pipeline"),
        (("--pipeline", "x", "--assert", "fid<"), "--assert 'fid<' is not NAME COMPARISON NUMBER"),
        (("--pipeline", "x"), "--out FOLDER is required"),
        (("--pipeline", "x", "--out", "o", "--protocol", "coco"), "unknown protocol 'coco'"),
        (("--pipeline", "no/where/at/all", "--out", "o"), "--protocol NAME is required"),
        (("--pipeline", "no/where/at/all", "--out", "o", "--protocol", "emoji"), "cannot be loaded"),
        (("--images", "nowhere", "--out", "o"), "there is no folder 'nowhere'"),
        (("--images", "recipes", "--out", "o"), "--protocol NAME is required"),
        (("nowhere",), "there is no recipe"),
        (("--pipeline", "x", "--out", "o", "--argument", "height"), "is not NAME=VALUE"),
        (("--watch", "nowhere", "--limit", "4", "--once"), "there is no recipe"),
    ],
)
def test_evaluate_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, "evaluate", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out


@pytest.mark.slow
def test_watching_scores_each_checkpoint_once(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    run_dir = recipe.parent / "run"
    assert run(capsys, "evaluate", "--watch", str(run_dir), "--once", "--limit", "4")[0] == 2
    settings = [
        "train.checkpointing_steps=1",
        "train.max_train_steps=2",
        "train.learning_rate=0.05",
        "validation.every=9",
    ]
    trainer = build_trainer(load_recipe(recipe, [*settings, "method.student_every=1"]))
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(recipe.read_text().replace("max_train_steps: 3", "max_train_steps: 2"))
    trainer.fit()
    words = recipe.parent / "prompts.txt"
    command = ["evaluate", "--watch", str(run_dir), "--once", "--protocol", "partiprompts", "--prompts", str(words),
               "--metrics", "brightness", "--latency-repeats", "0"]  # fmt: skip
    code, out, err = run(capsys, *command, "--assert", "brightness>0")
    assert code == 0, err
    lines = [json.loads(line) for line in (run_dir / "watch/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["metrics"]["brightness"] != lines[1]["metrics"]["brightness"], "another student draws"
    assert "<svg" in (run_dir / "watch/curves.svg").read_text()
    assert (run_dir / "watch/step_2/manifest.jsonl").is_file()
    code, out, err = run(capsys, *command, "--assert", "brightness<0")
    assert code == 1
    assert "step 1" not in out, "scored checkpoints are not scored again"
    run_before = (run_dir / "watch/metrics.jsonl").read_text()
    assert len(run_before.splitlines()) == 2
