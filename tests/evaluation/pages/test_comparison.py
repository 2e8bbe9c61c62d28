"""Tables, plots, grids and the page over scored runs, bounds, and timings."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.document import CostRecord, ModelRecord, Number, RunResults
from stepdistill.evaluation.gates import Bound, BoundBrokenError, check_bounds
from stepdistill.evaluation.generation import Generation
from stepdistill.evaluation.pages.comparison import comparison_table, number_columns
from stepdistill.evaluation.pages.comparison_page import slider_start, write_comparison
from stepdistill.evaluation.pages.comparison_plots import figures
from stepdistill.evaluation.pages.galleries import ScoredRun, extremes_grid, same_noise_grid, seeds_grid
from stepdistill.evaluation.picture_store import PictureStore
from stepdistill.evaluation.reductions import JACKKNIFE_GROUPS, jackknife, mean_estimate
from stepdistill.evaluation.timing import CostRules, measure_cost, timed_call
from stepdistill.testing import tiny_pipeline


def run(name: str, kind: str = "student", steps: int = 4, **numbers: tuple[float, str]) -> RunResults:
    titles = {"fid": ("FID", -1), "clip": ("CLIP score", 1), "brightness": ("Brightness", 0), "vendi": ("Vendi", 1)}
    metrics = {
        key: Number(
            value=value, standard_error=0.5, n=8, variant=f"{key}/x", protocol=address, protocol_name="p",
            title=titles[key][0], better=titles[key][1],
        )
        for key, (value, address) in numbers.items()
    }  # fmt: skip
    return RunResults(
        protocol={"hash": "0"},
        prompts={"digest": "0"},
        pictures={"digest": "0"},
        seeds={},
        model=ModelRecord(name=name, source="x", kind=kind, steps=steps),
        metrics=metrics,
        cost=CostRecord(nfe=float(steps), latency_s=steps / 10, device="cpu"),
        versions={"torch": "2"},
    )


RUNS = [
    run("teacher, 50 steps", "teacher", 50, fid=(10.0, "aaa111"), clip=(30.0, "ccc333"), vendi=(3.0, "d")),
    run("a, 4 steps", steps=4, fid=(12.5, "aaa111"), clip=(31.0, "ccc333"), brightness=(90.0, "e"), vendi=(2.0, "d")),
    run("a, 1 step", steps=1, fid=(20.0, "aaa111"), clip=(29.0, "ccc333"), vendi=(2.5, "d")),
    run("b_1, 4 steps", steps=4, fid=(1.0, "bbb222")),
]


def test_two_protocols_never_share_a_column() -> None:
    columns = number_columns(RUNS)
    assert [(column.name, column.protocol) for column in columns][:2] == [("fid", "aaa111"), ("fid", "bbb222")]
    head, _, *rows = [line.split(" | ") for line in comparison_table(RUNS).splitlines()[:6]]
    places = [place for place, title in enumerate(head) if title.startswith("FID")]
    assert [head[place] for place in places] == ["FID ↓ (p aaa111)", "FID ↓ (p bbb222)"]
    assert [[row[place] for place in places] for row in rows] == [
        ["**10.0 ± 0.5**"[:2] + "10.00 ± 0.50**", ""],
        ["<u>12.50 ± 0.50</u>", ""],
        ["20.00 ± 0.50", ""],
        ["", "1.00 ± 0.50"],
    ], "the lowest number of all is of another protocol, and is not best of anything"


def test_the_same_numbers_in_every_style() -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_table(RUNS, "csv"))))
    assert [row["fid@aaa111"] for row in rows] == ["10.0", "12.5", "20.0", ""]
    assert rows[3]["fid@bbb222"] == "1.0"
    assert rows[0]["fid@aaa111 se"] == "0.5"
    latex = comparison_table(RUNS, "latex")
    assert "\\textbf{10.00 $\\pm$ 0.50}" in latex
    assert "b\\_1, 4 steps" in latex
    assert {line.count("&") for line in latex.splitlines() if line.endswith("\\\\")} == {9}
    assert all(f"`{address}`" in comparison_table(RUNS) for address in ("aaa111", "bbb222", "ccc333"))


def test_no_plot_mixes_protocols() -> None:
    drawn = figures(RUNS)
    assert "fid-aaa111-steps" in drawn
    assert "fid-aaa111-latency" in drawn
    assert "fid-aaa111-diversity" in drawn
    assert not any(name.startswith(("fid-bbb222", "brightness")) for name in drawn), "one point is no curve"
    assert all("<svg" in svg for svg in drawn.values())


def scored_run(folder: Path, results: RunResults, *, seed: int = 0, samples: int = 1) -> ScoredRun:
    store = PictureStore(folder)
    generator = torch.Generator().manual_seed(seed)
    for index in range(6):
        level = torch.randint(0, 256, (3,), generator=generator).tolist()
        record = {"index": index, "prompt_index": index // samples, "sample": index % samples, "id": str(index)}
        record |= {"prompt": f"prompt <{index // samples}>", "category": None, "seed": index}
        store.add([Image.new("RGB", (16, 16), tuple(level))], [record])
    store.merge()
    results.write(folder)
    return ScoredRun.open(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[ScoredRun]:
    return [scored_run(tmp_path / str(place), each, seed=place) for place, each in enumerate(RUNS)]


def test_the_page_has_everything_and_fetches_nothing(runs: list[ScoredRun], tmp_path: Path) -> None:
    text = write_comparison(runs, tmp_path / "out", title="a <title>").read_text()
    for part in ("a &lt;title&gt;", "p <code>aaa111</code>", "20.00 ± 0.50", "prompt &lt;5&gt;", 'class="slider"'):
        assert part in text, part
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert text.count('class="slider"') == 6
    assert text.count("data-value") >= 4 * 10
    for name in ("table.md", "table.tex", "table.csv", "plots/fid-aaa111-steps.svg", "grids/same_noise.png"):
        assert (tmp_path / "out" / name).is_file(), name
    assert slider_start(runs) == (0, 3)


def test_a_page_without_pictures(runs: list[ScoredRun], tmp_path: Path) -> None:
    import shutil

    for each in runs:
        shutil.rmtree(each.folder / "images")
    text = write_comparison(runs, tmp_path / "out").read_text()
    assert "20.00 ± 0.50" in text
    assert 'class="slider"' not in text


def test_pictures_of_other_noise_are_not_set_side_by_side(runs: list[ScoredRun], tmp_path: Path) -> None:
    other = scored_run(tmp_path / "other", RUNS[0], samples=2)
    both, one = same_noise_grid([runs[0], runs[1], other]), same_noise_grid([runs[0], other])
    assert both is not None
    assert one is not None
    assert both.height > one.height
    assert seeds_grid([other]) is not None
    assert seeds_grid(runs) is None


def test_best_and_worst_go_by_the_score(runs: list[ScoredRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScoredRun, "scores", lambda self, metric: [3.0, 1.0, 2.0, 9.0, 5.0, 4.0])
    shown: list[Any] = []
    monkeypatch.setattr("stepdistill.evaluation.pages.galleries.grid", _remembering(shown))
    extremes_grid(runs[0], "fid", 2)
    extremes_grid(runs[0], "clip", 2)
    captions = [[caption.split()[0] for caption in call] for call in shown]
    assert captions == [["1", "2"], ["9", "5"], ["9", "5"], ["1", "2"]]
    with pytest.raises(UserError, match="no direction"):
        extremes_grid(runs[1], "brightness")


def _remembering(shown: list[Any]) -> Any:
    def grid(rows: Any, captions: Any) -> Image.Image:
        del rows
        shown.append(captions)
        return Image.new("RGB", (8, 8))

    return grid


def test_documents_survive_the_disk(tmp_path: Path) -> None:
    broken = RUNS[0].model_copy(update={"cost": CostRecord(nfe=math.inf)})
    broken.write(tmp_path)
    assert RunResults.read(tmp_path).cost.nfe is None
    assert RunResults.read(tmp_path).metrics == RUNS[0].metrics
    (tmp_path / "results.json").write_text('{"schema": 1, "rows": []}')
    with pytest.raises(UserError, match="not the document of one scored folder"):
        RunResults.read(tmp_path)
    with pytest.raises(UserError, match=r"there is no results\.json"):
        RunResults.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [("fid<=20", 20.0, True), ("fid < 20", 20.0, False), ("hps>=30.5", 30.5, True), ("a.b:c>1e-3", 0.002, True),
     ("x==1", 1.0, True), ("x!=1", 1.0, False), ("fid<=20", math.nan, False), ("x>-1", 0.0, True)],
)  # fmt: skip
def test_bounds(text: str, value: float, holds: bool) -> None:
    assert Bound.parse(text).holds(value) == holds


@pytest.mark.parametrize("text", ["fid", "fid<", "<=20", "fid=20", "fid<=twenty", "fid<=20 or so", "fid=<20", ""])
def test_bad_bounds_are_the_users_mistake(text: str) -> None:
    with pytest.raises(UserError, match="is not NAME COMPARISON NUMBER"):
        Bound.parse(text)


def test_a_broken_bound_names_value_and_bound() -> None:
    bounds = [Bound.parse("fid<=20"), Bound.parse("clip>=30"), Bound.parse("x>0")]
    with pytest.raises(BoundBrokenError, match=r"^fid is 23\.4, the bound is fid<=20; x is 0, the bound is x>0$"):
        check_bounds(bounds, {"fid": 23.4, "clip": 31.0, "x": 0.0})
    with pytest.raises(UserError, match="clip, x was not measured; measured: fid"):
        check_bounds(bounds, {"fid": 1.0, "clip": None})
    check_bounds(bounds[:1], {"fid": 20.0})


def test_standard_errors_count_prompts_not_pictures() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    once = mean_estimate(values, torch.arange(100))
    thrice = mean_estimate(values.repeat_interleave(3), torch.arange(100).repeat_interleave(3))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.standard_error == pytest.approx(once.standard_error)
    assert once.standard_error == pytest.approx(float(values.std()) / 10)
    assert mean_estimate(values[:1], torch.tensor([0])).standard_error is None


def test_the_jackknife_of_a_mean_is_that_of_its_folds() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(1)).double()
    error = jackknife(lambda kept: float(kept.mean()), values, torch.arange(200))
    folds = values.view(-1, JACKKNIFE_GROUPS).mean(0)
    assert error == pytest.approx(float(folds.std()) / JACKKNIFE_GROUPS**0.5)
    assert jackknife(lambda kept: 0.0, values[:19], torch.arange(19)) is None


def test_costs_of_a_picture() -> None:
    pipe = tiny_pipeline("sd")
    each = Generation(pipe, steps=3, guidance_scale=2.0)
    cost = measure_cost(each, "a cat", CostRules(warmup=1, repeats=3, throughput_batch=2, throughput_repeats=1))
    assert cost.nfe == 6.0
    assert cost.latency_s is not None
    assert cost.latency_network_s is not None
    assert 0 < cost.latency_network_s < cost.latency_s
    assert cost.encode_s is not None
    assert cost.encode_s > 0
    assert (cost.decode_s or 0) > 0
    assert (cost.images_per_s or 0) > 0
    assert (cost.peak_memory_mib or 0) > 10
    parts = timed_call(each, ["a"], [0])
    assert parts.total >= parts.encode + parts.decode
    assert "encode_prompt" not in vars(pipe), "the timers are gone"
    assert "decode" not in vars(pipe.vae)
    quick = measure_cost(each, "a cat", CostRules(repeats=0))
    assert (quick.nfe, quick.latency_s) == (6.0, None)
