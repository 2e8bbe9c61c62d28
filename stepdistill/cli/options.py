"""The options of `stepdistill evaluate`, by the name of their parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

PIPELINE, PROTOCOL, HOW = "What draws", "What is measured", "How"

Run = Annotated[Path | None, typer.Argument(help="a run folder; or give --pipeline, --images or --watch")]
N = Annotated[int, typer.Option(help="images per row of a run folder", min=16)]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, nothing else")]
Which = Annotated[Literal["last", "best"], typer.Option(help="which of the run's students")]
Pipeline = Annotated[
    str | None,
    typer.Option(help="folder or hub id of a diffusers pipeline, or an export", rich_help_panel=PIPELINE),
]
Lora = Annotated[
    str | None,
    typer.Option(help="a LoRA for it: file, folder, hub id or export", rich_help_panel=PIPELINE),
]
Images = Annotated[
    Path | None, typer.Option(help="a folder of pictures instead of a pipeline", rich_help_panel=PIPELINE)
]
Steps = Annotated[int | None, typer.Option(help="inference steps", min=1, rich_help_panel=PIPELINE)]
Guidance = Annotated[float | None, typer.Option(help="guidance scale", rich_help_panel=PIPELINE)]
Argument = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE for the pipeline's call, such as height=512; repeatable",
        rich_help_panel=PIPELINE,
    ),
]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16", rich_help_panel=PIPELINE)]
Name = Annotated[str | None, typer.Option(help="name in tables", rich_help_panel=PIPELINE)]
Kind = Annotated[
    Literal["student", "teacher"], typer.Option(help="what it is in reports", rich_help_panel=PIPELINE)
]
Watch = Annotated[
    Path | None,
    typer.Option(help="score every new checkpoint of this run folder", rich_help_panel=PIPELINE),
]
Once = Annotated[
    bool,
    typer.Option("--once", help="with --watch: score what is there and stop", rich_help_panel=PIPELINE),
]
Interval = Annotated[
    float, typer.Option(help="with --watch: seconds between looks", min=0.1, rich_help_panel=PIPELINE)
]
Protocol = Annotated[str, typer.Option(help="its name, see docs/evaluation.md", rich_help_panel=PROTOCOL)]
Prompts = Annotated[
    str | None,
    typer.Option(help="file of prompts instead of the protocol's own", rich_help_panel=PROTOCOL),
]
Column = Annotated[str | None, typer.Option(help="of the prompts in that file", rich_help_panel=PROTOCOL)]
Limit = Annotated[
    int | None, typer.Option(help="fewer prompts, from the start", min=1, rich_help_panel=PROTOCOL)
]
Samples = Annotated[int, typer.Option(help="pictures of each prompt", min=1, rich_help_panel=PROTOCOL)]
Seed = Annotated[
    int | None,
    typer.Option(help="of the pictures' noise; the protocol's own if not given", rich_help_panel=PROTOCOL),
]
Metrics = Annotated[
    str | None,
    typer.Option(help="names with commas, NAME=VARIANT for another variant", rich_help_panel=PROTOCOL),
]
Reference = Annotated[
    str | None,
    typer.Option(help="statistics (.npz) or a folder of real pictures", rich_help_panel=PROTOCOL),
]
Teacher = Annotated[
    Path | None,
    typer.Option(help="folder of the teacher's pictures, such as its --out", rich_help_panel=PROTOCOL),
]
Bounds = Annotated[
    list[str] | None,
    typer.Option("--assert", help="a bound such as 'fid<=20'; exit code 1 where it breaks; repeatable"),
]
Out = Annotated[Path | None, typer.Option(help="folder of this run; the same command again goes on there")]
BatchSize = Annotated[int, typer.Option(help="pictures drawn at once", min=1, rich_help_panel=HOW)]
FileFormat = Annotated[
    Literal["png", "webp"],
    typer.Option("--format", help="of the pictures, both lossless", rich_help_panel=HOW),
]
LatencyRepeats = Annotated[
    int, typer.Option(help="timed calls; 0 measures no times", min=0, rich_help_panel=HOW)
]
