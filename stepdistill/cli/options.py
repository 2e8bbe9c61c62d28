"""The options of `stepdistill evaluate`, by the name of their parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

PIPELINE, PROTOCOL, HOW = "Model", "Protocol", "Execution"

Run = Annotated[Path | None, typer.Argument(help="run folder; or give --pipeline, --images or --watch")]
N = Annotated[int | None, typer.Option(help="prompts per row of RUN; default: the protocol's", min=16)]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output, and nothing else")]
Which = Annotated[Literal["last", "best"], typer.Option(help="which student of RUN")]
Pipeline = Annotated[
    str | None, typer.Option(help="diffusers pipeline (folder or hub id) or export", rich_help_panel=PIPELINE)
]
Lora = Annotated[
    str | None, typer.Option(help="LoRA for the pipeline: file, folder, hub id or export", rich_help_panel=PIPELINE)
]
Images = Annotated[Path | None, typer.Option(help="folder of existing pictures", rich_help_panel=PIPELINE)]
Steps = Annotated[int | None, typer.Option(help="inference steps", min=1, rich_help_panel=PIPELINE)]
Guidance = Annotated[float | None, typer.Option(help="guidance scale", rich_help_panel=PIPELINE)]
Argument = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE passed to the pipeline's call, such as height=512; repeatable", rich_help_panel=PIPELINE
    ),
]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16", rich_help_panel=PIPELINE)]
Name = Annotated[str | None, typer.Option(help="name shown in tables", rich_help_panel=PIPELINE)]
Kind = Annotated[Literal["student", "teacher"], typer.Option(help="role shown in reports", rich_help_panel=PIPELINE)]
Watch = Annotated[
    Path | None, typer.Option(help="evaluate every new checkpoint of this run folder", rich_help_panel=PIPELINE)
]
Once = Annotated[
    bool,
    typer.Option("--once", help="with --watch: evaluate the existing checkpoints and stop", rich_help_panel=PIPELINE),
]
Interval = Annotated[
    float, typer.Option(help="with --watch: seconds between polls", min=0.1, rich_help_panel=PIPELINE)
]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="protocol, see docs/evaluation.md; default: the recipe's, or emoji for the embedded teachers",
        rich_help_panel=PROTOCOL,
    ),
]
Prompts = Annotated[
    str | None, typer.Option(help="file of prompts in place of the protocol's own", rich_help_panel=PROTOCOL)
]
Column = Annotated[str | None, typer.Option(help="column of the prompts in that file", rich_help_panel=PROTOCOL)]
Limit = Annotated[int | None, typer.Option(help="use only the first prompts", min=1, rich_help_panel=PROTOCOL)]
Samples = Annotated[int, typer.Option(help="pictures per prompt", min=1, rich_help_panel=PROTOCOL)]
Seed = Annotated[
    int | None, typer.Option(help="seed of the pictures; default: the protocol's", rich_help_panel=PROTOCOL)
]
Metrics = Annotated[
    str | None,
    typer.Option(help="comma-separated names; NAME=VARIANT selects another variant", rich_help_panel=PROTOCOL),
]
Reference = Annotated[
    str | None, typer.Option(help="statistics (.npz) or folder of reference pictures", rich_help_panel=PROTOCOL)
]
Teacher = Annotated[
    Path | None,
    typer.Option(
        help="the teacher's --out; with RUN: folder of teacher rows that runs share", rich_help_panel=PROTOCOL
    ),
]
Bounds = Annotated[
    list[str] | None, typer.Option("--assert", help="bound such as 'fid<=20'; exit code 1 if it is broken; repeatable")
]
Out = Annotated[Path | None, typer.Option(help="output folder; the same command resumes there")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="pictures drawn at once; default: 8, for RUN by their size", min=1, rich_help_panel=HOW),
]
FileFormat = Annotated[
    Literal["png", "webp"], typer.Option("--format", help="picture format, both lossless", rich_help_panel=HOW)
]
LatencyRepeats = Annotated[
    int | None, typer.Option(help="timed calls, 0 for none; default: 20, for RUN 3", min=0, rich_help_panel=HOW)
]
