"""GenEval and DPG-Bench: the folders that their evaluators read, and the files that they write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation.dpg_bench import read_dpg_prompts, read_dpg_results, write_dpg_folder
from stepdistill.evaluation.geneval import read_geneval_prompts, read_geneval_results, write_geneval_folder

PROMPTS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"},
]


def picture(level: int, side: int = 4) -> Image.Image:
    return Image.new("RGB", (side, side), (level, level, level))


def test_geneval_folder_is_what_the_evaluator_walks(tmp_path: Path) -> None:
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    prompts = read_geneval_prompts(metadata)
    assert prompts == PROMPTS
    picture(9).save(tmp_path / "own.jpg", quality=100)
    picture(8).save(tmp_path / "own.png")
    sets = [[picture(n) for n in range(4)], [picture(4), picture(5), tmp_path / "own.jpg", tmp_path / "own.png"]]
    folder = tmp_path / "images"
    assert write_geneval_folder(folder, prompts, iter(sets)) == 8
    levels = []
    for number, row in enumerate(PROMPTS):  # as `evaluate_images.py` does
        place = folder / f"{number:05d}"
        assert place.name.isdigit()
        assert json.loads((place / "metadata.jsonl").read_text()) == row
        names = sorted(file.name for file in (place / "samples").iterdir())
        assert names == ["0000.png", "0001.png", "0002.png", "0003.png"]
        assert all(re.match(r"\d+\.png", name) for name in names)
        levels += [Image.open(place / "samples" / name).getpixel((0, 0))[0] for name in names]  # type: ignore[index]
    assert levels == [0, 1, 2, 3, 4, 5, 9, 8]
    with pytest.raises(ValueError, match="zip"):
        write_geneval_folder(tmp_path / "short", prompts, sets[:1])


def test_geneval_scores_are_means_over_tasks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"single_object": 5, "counting": 3, "position": 2}
    right = {tag: rng.random((prompts, 4)) < 0.6 for tag, prompts in sizes.items()}
    right["position"][0] = False
    lines = [
        {"filename": "x.png", "tag": tag, "prompt": f"{tag} {i}", "correct": bool(value), "reason": "",
         "metadata": json.dumps({"tag": tag, "prompt": f"{tag} {i}"}), "details": "{}"}
        for tag, table in right.items() for i, row in enumerate(table) for value in row
    ]  # fmt: skip
    rng.shuffle(lines)  # the evaluator walks folders in the file system's order
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = read_geneval_results(file)
    assert scores.tasks == pytest.approx({tag: table.mean() for tag, table in right.items()})
    assert scores.overall == pytest.approx(np.mean([table.mean() for table in right.values()]))
    assert scores.correct_images == pytest.approx(np.concatenate(list(right.values())).mean())
    assert scores.correct_prompts == pytest.approx(np.concatenate([table.any(1) for table in right.values()]).mean())
    assert (scores.num_images, scores.num_prompts) == (40, 10)
    assert json.loads(json.dumps(scores.to_json()))["overall"] == scores.overall


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("", "contains no results"),
        ('{"tag": "a"}\n', "lacks 'metadata'"),
        ("no\n", "not a JSON lines file"),
        ("[1]\n", "not JSON objects"),
    ],
)
def test_other_files_are_no_geneval_results(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "results.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_geneval_results(file)


def test_other_files_are_no_geneval_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a cat"}\n')
    with pytest.raises(UserError, match="line 1 is not a GenEval prompt"):
        read_geneval_prompts(tmp_path / "prompts.jsonl")


def test_dpg_grids_are_cut_as_the_evaluator_cuts_them(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    for name, text in (("whoops3", "A cat.\n"), ("12", "A dog.")):
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    prompts = read_dpg_prompts(tmp_path / "prompts")
    assert prompts == {"12": "A dog.", "whoops3": "A cat."}
    sets = [[picture(n) for n in (10, 20, 30, 40)], [picture(n) for n in (50, 60, 70, 80)]]
    folder = tmp_path / "grids"
    assert write_dpg_folder(folder, prompts, iter(sets), resolution=4) == 2
    assert sorted(file.name for file in folder.iterdir()) == ["12.png", "whoops3.png"]
    boxes = [(0, 0, 4, 4), (4, 0, 8, 4), (0, 4, 4, 8), (4, 4, 8, 8)]  # `crop_tuples_list` at resolution 4
    with Image.open(folder / "whoops3.png") as grid:
        parts = [grid.crop(box) for box in boxes]
    assert [part.getextrema()[0] for part in parts] == [(50, 50), (60, 60), (70, 70), (80, 80)]


def test_dpg_takes_one_picture_without_a_grid_and_no_other_number(tmp_path: Path) -> None:
    write_dpg_folder(tmp_path / "one", ["a"], [[picture(3)]], resolution=4)
    with Image.open(tmp_path / "one" / "a.png") as single:
        assert single.size == (4, 4)
    with pytest.raises(ValueError, match="a: 2 pictures"):
        write_dpg_folder(tmp_path / "two", ["a"], [[picture(3)] * 2], resolution=4)
    with pytest.raises(ValueError, match="a: a picture of 5 x 5 pixels, not 4 x 4"):
        write_dpg_folder(tmp_path / "size", ["a"], [[picture(3, side=5)]], resolution=4)
    (tmp_path / "one" / "results.txt").write_text("")
    with pytest.raises(UserError, match=r"contains 'results\.txt'"):
        write_dpg_folder(tmp_path / "one", ["a"], [[picture(3)]], resolution=4)
    with pytest.raises(UserError, match="no prompts of DPG-Bench"):
        read_dpg_prompts(tmp_path / "none")


def test_pictures_of_an_earlier_run_would_be_counted(tmp_path: Path) -> None:
    four = [picture(n) for n in range(4)]
    write_geneval_folder(tmp_path / "geneval", PROMPTS, [four, four])
    assert write_geneval_folder(tmp_path / "geneval", PROMPTS, [four, four]) == 8
    with pytest.raises(UserError, match=r"00001/samples/0000\.png is from an earlier run"):
        write_geneval_folder(tmp_path / "geneval", PROMPTS[:1], [four])
    write_dpg_folder(tmp_path / "dpg", ["a", "b"], [four, four], resolution=4)
    with pytest.raises(UserError, match=r"contains 'b\.png'"):
        write_dpg_folder(tmp_path / "dpg", ["a"], [four], resolution=4)


RESULTS = """images/run, 1/12.png, 1.0, 0.5, 0.75, 0.25, 0.625
images/run, 1/whoops3.png, 0.5, 0.5, 1.0, 1.0, 0.75
Model: run, 1
L1 category scores:
\tentity: 81.25
\tattribute: 70.0
L2 category scores:
\tattribute - color: 75.0
\tattribute - other: 65.0
\tentity - whole: 81.25
Image path: images/run, 1
Save results to: images/run, 1/results.txt
DPG-Bench score: 68.75
"""


def test_dpg_results_by_category(tmp_path: Path) -> None:
    file = tmp_path / "results.txt"
    file.write_text(RESULTS)
    scores = read_dpg_results(file)
    assert scores.overall == 68.75
    assert scores.prompts == {"12": 62.5, "whoops3": 75.0}
    assert scores.overall == np.mean(list(scores.prompts.values()))
    assert scores.categories == {"entity": 81.25, "attribute": 70.0}
    assert scores.subcategories == {"attribute - color": 75.0, "attribute - other": 65.0, "entity - whole": 81.25}
    assert scores.to_json()["num_prompts"] == 2
    file.write_text(RESULTS.rpartition("DPG")[0])
    with pytest.raises(UserError, match="to completion"):
        read_dpg_results(file)
    with pytest.raises(UserError, match="cannot read"):
        read_dpg_results(tmp_path / "none.txt")
