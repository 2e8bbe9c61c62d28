"""The benchmark: one budget for all, nothing run twice, and a table whose numbers are the runs' own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby
from pathlib import Path
from threading import Barrier

import pytest
import torch
from PIL import Image

from stepdistill import bench
from stepdistill.bench import PACE_STEPS, QUICK, BenchBudget, run_bench
from stepdistill.cli import main as cli
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.schedules.families import FlowSchedule
from stepdistill.errors import RunInterruptedError, UserError
from stepdistill.evaluation.document import ResultRow
from stepdistill.evaluation.pages.leaderboard import Entry, lines, summary, write_leaderboard
from stepdistill.evaluation.pages.tables import write_pictures
from stepdistill.testing.prompts import ComponentPrompts
from stepdistill.testing.toys import MLPDenoiser
from stepdistill.training.cost import CostMeter

RECIPE = "recipes/emoji_dmd2_demo.yaml"
FLOOR = ResultRow("floor", frechet_distance=1.5, n=64)
COST = {"network_passes": 12_345, "train_seconds": 60.0, "peak_memory_mib": 900}


def rows(steps: int, distance: float) -> list[ResultRow]:
    teacher = ResultRow("teacher", steps=50, frechet_distance=3.0, guidance_scale=2.0)
    few = ResultRow("teacher", steps=steps, frechet_distance=20.0, guidance_scale=2.0, sampler="Euler")
    student = ResultRow("student", steps=steps, frechet_distance=distance, prompt_accuracy=0.5)
    return [FLOOR, teacher, few, student]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Sequence[str]]]:
    """Runs that were asked for; each takes two seconds an iteration and writes what a real one writes."""
    calls: list[tuple[Path, Sequence[str]]] = []

    def run(recipe: str, run_dir: Path, overrides: Sequence[str], *, jobs: int) -> bool:
        calls.append((run_dir, overrides))
        run_dir.mkdir(parents=True, exist_ok=True)
        cost = {**COST, "train_seconds": 2.0 * PACE_STEPS if run_dir.name == "pace" else 60.0}
        (run_dir / "cost.json").write_text(json.dumps(cost))
        if run_dir.name != "pace":
            document = {"rows": [asdict(row) for row in rows(2, 5.0)]}
            (run_dir / "results.json").write_text(json.dumps(document))
        return "broken" not in recipe

    monkeypatch.setattr(bench, "start_run", run)
    return calls


Started = list[tuple[Path, Sequence[str]]]


def test_the_pace_turns_minutes_into_iterations(tmp_path: Path, started: Started) -> None:
    assert run_bench([RECIPE], tmp_path, BenchBudget(minutes=1.0, num_images=32, seed=3)) == []
    (trial, _), (run, overrides) = started
    assert (trial, run) == (tmp_path / "emoji_dmd2_demo/pace", tmp_path / "emoji_dmd2_demo")
    assert {"train.max_train_steps=30", "train.seed=3", "validation.num_evaluated=32"} <= set(overrides)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], BenchBudget()),
        (["--quick"], QUICK),
        (["--quick", "--seed", "3", "--n", "32"], replace(QUICK, num_images=32, seed=3)),
        (["--minutes", "2", "--quick"], replace(QUICK, minutes=2.0, iterations=None)),
        (["--n", "32"], BenchBudget(num_images=32)),
    ],
)
def test_what_is_given_wins_over_the_quick_budget(
    tmp_path: Path, started: Started, options: list[str], expected: BenchBudget
) -> None:
    cli.app(["bench", RECIPE, "--out", str(tmp_path), *options], standalone_mode=False)
    pace = json.loads((tmp_path / "emoji_dmd2_demo/pace.json").read_text())
    assert BenchBudget(**{field.name: pace[field.name] for field in fields(BenchBudget)}) == expected
    run_dir, overrides = started[-1]
    assert run_dir.name == "emoji_dmd2_demo"
    assert {f"train.seed={expected.seed}", f"validation.num_evaluated={expected.num_images}"} <= set(overrides)
    assert ("data.num_prompts=256" in overrides) == (expected.num_samples is not None)
    assert ("train.max_train_steps=8" in overrides) == (len(started) == 1), "no trial where iterations are given"


def test_what_is_there_is_not_run_again(tmp_path: Path, started: Started) -> None:
    for _ in range(2):
        run_bench([RECIPE], tmp_path, BenchBudget(minutes=1.0))
    assert len(started) == 2
    (tmp_path / "emoji_dmd2_demo/results.json").unlink()
    run_bench([RECIPE], tmp_path, BenchBudget(minutes=1.0))
    assert len(started) == 3, "the pace is known"
    with pytest.raises(UserError, match="started with 1 minutes of training"):
        run_bench([RECIPE], tmp_path, BenchBudget(minutes=2.0))


def test_a_run_that_fails_is_named_and_the_others_are_shown(tmp_path: Path, started: Started) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(Path(RECIPE).read_text())
    assert run_bench([str(broken), RECIPE], tmp_path / "out", BenchBudget(minutes=1.0)) == ["broken"]
    table = (tmp_path / "out/leaderboard.md").read_text()
    assert "emoji_dmd2_demo" in table
    assert "broken" not in table


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    twin = tmp_path / Path(RECIPE).name
    twin.write_text(Path(RECIPE).read_text())
    with pytest.raises(UserError, match="same file name"):
        run_bench([RECIPE, str(twin)], tmp_path, BenchBudget())


def test_the_table_has_each_reference_once_and_students_by_distance(tmp_path: Path) -> None:
    entries = [
        Entry(name, "dmd2", "assets/emoji-sd", tuple(rows(steps, distance)), COST)
        for name, steps, distance in (("far", 2, 9.0), ("near", 2, 4.0), ("single", 1, 30.0))
    ]
    names = [line["cells"][0] for line in lines(entries)]
    teachers = ["teacher, guidance 2", "teacher, guidance 2, Euler", "teacher, guidance 2, Euler"]
    assert names == ["real pictures", *teachers, "single", "near", "far"]
    write_leaderboard(entries, tmp_path, title="a <title>")
    page = (tmp_path / "leaderboard.html").read_text()
    assert "a &lt;title&gt;" in page
    assert "<svg" in page
    assert "| near | 2 | 4.00 | 50.0% |  |  | 12k | 1.0 min | 900 MiB |" in (tmp_path / "leaderboard.md").read_text()


def drawn_run(folder: Path, shades: dict[str, int], captions: list[str]) -> str:
    """A run folder with two pictures in one grey for each row."""
    pictures = {name: [Image.new("L", (8, 8), shade).convert("RGB")] * 2 for name, shade in shades.items()}
    write_pictures(pictures, captions, folder)
    return str(folder)


def test_pictures_of_the_same_captions_stand_below_each_other_by_distance(tmp_path: Path) -> None:
    captions = ["fox", "heart"]
    teacher = {"teacher 50 steps": 10, "teacher 2 steps": 60}
    folders = {
        "far": drawn_run(tmp_path / "far", {**teacher, "student 2 steps": 110}, captions),
        "near": drawn_run(tmp_path / "near", {**teacher, "student 2 steps": 160}, captions),
        "other": drawn_run(tmp_path / "other", {"student 2 steps": 210}, ["cat", "dog"]),
        "undrawn": None,
    }
    distances = {"far": 9.0, "near": 4.0, "other": 1.0, "undrawn": 2.0}
    shown = [
        Entry(name, "dmd2", "assets/emoji-sd", tuple(rows(2, distances[name])), COST, run_dir=folder)
        for name, folder in folders.items()
    ]
    write_leaderboard(shown, tmp_path / "out", title="four")
    assert (tmp_path / "out/leaderboard.html").read_text().count("<img") == 1
    with Image.open(tmp_path / "out/assets-emoji-sd_2step.png") as sheet:
        column = sheet.convert("L").crop((sheet.width - 50, 0, sheet.width - 49, sheet.height))
    seen = [shade for shade, _ in groupby(column.get_flattened_data()) if shade in range(10, 211, 50)]
    assert seen == [10, 60, 160, 110], "teacher, teacher at as many steps, near, far; not the one of other captions"


def test_the_quick_budget_measures_each_student_at_its_own_steps(tmp_path: Path, started: Started) -> None:
    for name, budget in (("quick", QUICK), ("whole", BenchBudget(minutes=1.0))):
        run_bench([RECIPE], tmp_path / name, budget)
    own = ["validation.evaluated_steps=[]" in overrides for run, overrides in started if run.name != "pace"]
    assert own == [True, False]


def test_the_quick_budget_leaves_coverage_out(tmp_path: Path, started: Started) -> None:
    run_bench([RECIPE], tmp_path, QUICK)
    assert "validation.with_coverage=false" in started[-1][1]


def test_one_of_several_runs_has_its_share_of_the_cores_and_its_output_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output.log"
    endings = ((0, "done after 0 s"), (3, f"failed after 0 s, see {output}"), (130, "interrupted after 0 s"))
    for status, said in endings:
        code = f"import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit({status})"
        assert bench.run_beside([sys.executable, "-c", code], output, num_threads=2) == status
        assert output.read_text() == "2\n"
        assert said in capsys.readouterr().err


def test_a_signal_outside_of_training_stops_a_run_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert bench.run_beside([sys.executable, "-c", code], tmp_path / "output.log", num_threads=1) in bench.STOPPED
    assert "interrupted after" in capsys.readouterr().err


@pytest.mark.parametrize("code", bench.STOPPED)
def test_a_stopped_run_stops_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(bench, "run_beside", lambda *_, **__: code)
    with pytest.raises(RunInterruptedError, match="resumes there"):
        bench.start_run(RECIPE, tmp_path, [], jobs=2)


def test_recipes_run_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2, timeout=30)

    def run(recipe: str, run_dir: Path, overrides: Sequence[str], *, jobs: int) -> bool:
        both.wait()
        return False

    monkeypatch.setattr(bench, "start_run", run)
    twin = tmp_path / "twin.yaml"
    twin.write_text(Path(RECIPE).read_text())
    assert run_bench([RECIPE, str(twin)], tmp_path, QUICK) == ["emoji_dmd2_demo", "twin"]


@pytest.mark.parametrize("error", [RunInterruptedError("stopped"), KeyboardInterrupt()])
def test_a_signal_cancels_what_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    begun = []

    def stopped(recipe: str, run_dir: Path, overrides: Sequence[str], *, jobs: int) -> bool:
        begun.append(run_dir.name)
        raise error

    monkeypatch.setattr(bench, "start_run", stopped)
    twin = tmp_path / "twin.yaml"
    twin.write_text(Path(RECIPE).read_text())
    with pytest.raises(RunInterruptedError):
        run_bench([RECIPE, str(twin)], tmp_path, BenchBudget())
    assert begun == ["pace"], "the second recipe was not begun"


def test_a_stopped_benchmark_shows_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Started
) -> None:
    run = bench.start_run

    def stopped(recipe: str, run_dir: Path, overrides: Sequence[str], *, jobs: int) -> bool:
        if "twin" in recipe:
            raise RunInterruptedError("stopped")
        return run(recipe, run_dir, overrides, jobs=jobs)

    monkeypatch.setattr(bench, "start_run", stopped)
    twin = tmp_path / "twin.yaml"
    twin.write_text(Path(RECIPE).read_text())
    with pytest.raises(RunInterruptedError):
        run_bench([RECIPE, str(twin)], tmp_path, BenchBudget())
    table = (tmp_path / "leaderboard.md").read_text()
    assert "interrupted after 1 of 2" in table
    assert "emoji_dmd2_demo" in table
    assert "twin" not in table


def test_sigterm_reaches_the_runs_and_they_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that is killed must not leave its run behind, writing into the folder."""
    told = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); print(flush=True); time.sleep(60)"
    codes = []

    def start(recipe: str, run_dir: Path, overrides: Sequence[str], *, jobs: int) -> bool:
        with subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            run.stdout.readline()
            os.kill(os.getpid(), signal.SIGTERM)
            codes.append(run.wait(30))
        return False

    monkeypatch.setattr(bench, "start_run", start)
    with pytest.raises(RunInterruptedError, match="resumes there"):
        run_bench([RECIPE], tmp_path, BenchBudget())
    assert codes == [130]


def test_a_benchmark_begun_before_a_budget_had_a_field_goes_on(tmp_path: Path, started: Started) -> None:
    run_bench([RECIPE], tmp_path, BenchBudget(minutes=1.0))
    pace = tmp_path / "emoji_dmd2_demo/pace.json"
    older = {key: value for key, value in json.loads(pace.read_text()).items() if key != "own_steps_only"}
    pace.write_text(json.dumps(older))
    run_bench([RECIPE], tmp_path, BenchBudget(minutes=1.0))
    assert len(started) == 2


def test_teachers_drawn_in_different_number_types_are_told_apart(tmp_path: Path) -> None:
    entries = [
        Entry(dtype, "dmd2", "assets/emoji-sd", tuple(replace(row, dtype=dtype) for row in rows(2, 4.0)), COST)
        for dtype in ("float32", "bfloat16")
    ]
    names = [line["cells"][0] for line in lines(entries)]
    assert {"teacher, guidance 2, float32", "teacher, guidance 2, bfloat16"} < set(names)
    assert names.count("real pictures") == 1
    assert "teacher, best stock sampler, bfloat16" in summary(entries)
    write_leaderboard(entries, tmp_path, title="two")
    assert "teacher, float32" in (tmp_path / "leaderboard.html").read_text()


def test_a_teacher_guided_otherwise_replaces_none(tmp_path: Path) -> None:
    """A recipe may measure its teacher at a worse guidance: both have a line, and the summary has the better one."""
    worse = ResultRow("teacher", steps=2, frechet_distance=90.0, guidance_scale=1.0, sampler="Euler")
    entries = [
        Entry("good", "dmd2", "folder", tuple(rows(2, 5.0)), COST),
        Entry("other", "pso", "folder", (worse,), COST),
    ]
    names = [line["cells"][0] for line in lines(entries)]
    assert {"teacher, guidance 1, Euler", "teacher, guidance 2, Euler"} < set(names)
    assert "| 20.0 / - / - |" in summary(entries)
    assert "90.0" not in summary(entries)


def test_passes_are_counted_per_sample_and_only_within_the_block() -> None:
    toy = MLPDenoiser((2,), FlowSchedule(), prompts=ComponentPrompts(torch.full((2,), 0.5)))
    meter = CostMeter([toy, toy, torch.nn.Linear(1, 1)])
    x_t, t, cond = torch.zeros(3, 2), torch.full((3,), 0.5), toy.uncond(3)
    toy(x_t, t, cond)
    with meter.counted():
        toy(x_t, t, cond)
        toy(x_t, t, cond, guidance=Guidance(2.0, cond))
    assert meter.num_passes == 9
    other = CostMeter([])
    other.load_state(meter.state())
    assert other.record()["network_passes"] == 9


def test_the_peak_of_a_resumed_run_is_that_of_all_its_processes(monkeypatch) -> None:
    peaks = iter([1800.0, 1500.0, 700.0])
    monkeypatch.setattr("stepdistill.training.cost.peak_memory_mib", lambda: next(peaks))
    first, second = CostMeter([]), CostMeter([])
    for _ in range(2):
        with first.counted():
            pass
    second.load_state(first.state())
    assert second.record()["peak_memory_mib"] == 1800  # gone on with only to be measured
    with second.counted():
        pass
    assert second.record()["peak_memory_mib"] == 1800


def test_the_summary_has_a_line_for_each_recipe_and_a_column_for_each_number_of_steps() -> None:
    entries = [
        Entry("ours", "dmd2", "folder", (*rows(2, 5.0), ResultRow("student", steps=4, frechet_distance=4.0)), COST)
    ]
    entries.append(Entry("theirs", "lcm", "folder", tuple(rows(1, 9.0)), COST))
    table = summary(entries).splitlines()
    assert table[0] == "|  | 1 step | 2 steps | 4 steps | 50 steps |"
    assert [line.split(" | ")[0] for line in table[2:5]] == ["| teacher, best stock sampler", "| ours", "| theirs"]
    assert table[3] == "| ours |  | 5.0 / 50 % / - | 4.0 / - / - |  |"
    assert table[-1].endswith("Real pictures: 1.5 / - / -.")
