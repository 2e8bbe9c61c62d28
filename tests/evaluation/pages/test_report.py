"""The page: everything of a run folder is on it, nothing is fetched, and parts may be missing."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from stepdistill.evaluation.document import ResultRow, write_document
from stepdistill.evaluation.pages.pictures import grid
from stepdistill.evaluation.pages.report import read_records, sample_series, write_report
from stepdistill.evaluation.pages.tables import escaped, headlines, write_pictures
from stepdistill.evaluation.protocols import protocol_named

EMOJI = protocol_named("emoji")
ROWS = [
    ResultRow(
        "teacher",
        name="teacher 50 steps",
        steps=50,
        nfe=100.0,
        frechet_distance=2.0,
        prompt_accuracy=0.8,
        coverage=0.9,
    ),
    ResultRow(
        "teacher", name="teacher 4 steps", steps=4, nfe=8.0, frechet_distance=5.0, sampler_search={"Euler <a>": 5.0}
    ),
    ResultRow(
        "student", name="student 4 steps", steps=4, nfe=4.0, frechet_distance=2.25, prompt_accuracy=0.76, coverage=0.81
    ),
    ResultRow("floor", name="floor", frechet_distance=0.5, n=1000),
]


class Page(HTMLParser):
    """Collects tags, and fails on one that is never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    recipe = {
        "model": {"pretrained_model_name_or_path": "assets/emoji-sd"},
        "roles": {"mode": "shared", "rank": 8},
        "method": {"name": "DMD2", "num_steps": 4},
        "train": {"train_batch_size": 32, "seed": 7},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {
            "step": i,
            "time": i / 2,
            "loss/dm": 1 / i,
            "health/std_student": 1.0,
            "health/std_teacher": 0.9,
            "odd/nan": float("nan"),
        }
        for i in range(1, 9)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    document = {"schema": 1, "protocol": EMOJI.to_json(), "rows": [asdict(row) for row in ROWS]}
    write_document(document, tmp_path)
    pictures = {row.name or "": [Image.new("RGB", (16, 16), (row.steps or 0, 0, 0))] * 3 for row in ROWS[:3]}
    write_pictures(pictures, ["a <cat>", "dog on red", "x & y"], tmp_path)
    for step in (0, 10, 2):
        Image.new("RGB", (40, 20), (step, 0, 0)).save(tmp_path / f"samples/step_{step:06d}.png")
    (tmp_path / "export/images").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "export/images/0.png")
    (tmp_path / "export/README.md").write_text("# card\n\n```python\nprint('load me')\n```\n")
    return tmp_path


def test_everything_is_on_the_page(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    page = Page(text)
    assert page.open == []
    for part in (
        "emoji-sd in 4 steps", "DMD2", "LoRA, rank 8", "8 steps", "4 s", "student 4 steps", "2.25", "floor", EMOJI.hash,
        "a &lt;cat&gt;", "x &amp; y", "loss / dm", "health / std", "step 10", "print(&#39;load me&#39;)", "seed: 7",
        "25x", "95% of the teacher", "Euler &lt;a&gt;", "<code>emoji-clip</code>",
    ):  # fmt: skip
        assert part in text, part
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    assert text.index("step 0<") < text.index("step 2<") < text.index("step 10<")
    comparison, curves, frames, drawn = 9, 2, 3, 1
    assert len(page.sources) == comparison + curves + frames + drawn


def test_the_page_is_self_contained(run_dir: Path) -> None:
    page = Page(write_report(run_dir).read_text())
    assert all(source.startswith("data:") for source in page.sources)
    assert "@import" not in (text := (run_dir / "report.html").read_text())
    assert "url(" not in text


def test_code_and_picture_may_be_given(run_dir: Path) -> None:
    Image.new("RGB", (300, 200), (255, 0, 0)).save(run_dir / "own.png")
    text = write_report(run_dir, code="my own code", picture=run_dir / "own.png").read_text()
    assert "my own code" in text
    assert "load me" not in text


@pytest.mark.parametrize("missing", ["recipe.yaml", "metrics.jsonl", "results.json", "samples", "export"])
def test_a_missing_part_is_left_out(run_dir: Path, missing: str) -> None:
    (run_dir / missing).rename(run_dir / "gone")
    assert Page(write_report(run_dir).read_text()).open == []


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    assert "A distilled model" in write_report(tmp_path).read_text()


def test_a_line_cut_off_is_left_out(run_dir: Path) -> None:
    assert [record["step"] for record in read_records(run_dir / "metrics.jsonl")] == list(range(1, 9))


def test_long_series_are_thinned_evenly(tmp_path: Path) -> None:
    for step in range(40):
        Image.new("RGB", (4, 4)).save(tmp_path / f"step_{step}.png")
    steps = [int(frame["step"]) for frame in sample_series(tmp_path)["step"]]
    assert (len(steps), steps[0], steps[-1]) == (12, 0, 39)
    assert steps == sorted(set(steps))


def test_text_of_users_is_escaped_in_tables() -> None:
    assert escaped("a|b\n<c>") == "a\\|b &lt;c>"


def test_headlines_need_both_sides() -> None:
    assert [tile["value"] for tile in headlines(ROWS)] == ["2.25", "25x", "76.0%", "81.0%"]
    assert headlines(ROWS[2:]) == []


def test_headlines_are_of_the_number_of_steps_that_was_trained() -> None:
    student = next(row for row in ROWS if row.model == "student")
    more = [*ROWS, replace(student, steps=2, frechet_distance=1.5)]
    assert headlines(more, steps=2)[0]["value"] == "1.50"
    assert headlines(more)[0]["value"] == headlines(more, steps=8)[0]["value"] == "2.25"


def test_grid_has_a_row_per_generator_and_a_column_per_caption() -> None:
    images = torch.rand(3, 3, 16, 16)
    sheet = grid(
        {"teacher": images, "student": [Image.new("RGB", (64, 32), (255, 0, 0))] * 3}, ["a", "b c", "d"], tile=64
    )
    taller = grid({"teacher": images, "student": images, "floor": images}, ["a", "b c", "d"], tile=64)
    assert taller.size == (sheet.width, sheet.height + 70)
    assert sheet.getpixel((sheet.width - 40, 12 + 64 + 6 + 32)) == (255, 0, 0)
    with pytest.raises(ValueError, match="at least one"):
        grid({})
