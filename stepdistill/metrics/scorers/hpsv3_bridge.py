"""Score a manifest in HPSv3's own environment, without stepdistill: `python hpsv3_bridge.py MANIFEST SCORES`.

`stepdistill/metrics/scorers/external.py` describes the files. Written for Python 3.8 and hpsv3 1.0.0, whose rewards are pairs
of mean and spread; the score is the mean.
"""

import json
import sys

BATCH = 8


def main(manifest: str, scores: str) -> None:
    """Score the pictures of a manifest."""
    import torch
    from hpsv3 import HPSv3RewardInferencer  # pyright: ignore[reportMissingImports] - in its own environment

    with open(manifest, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    scorer = HPSv3RewardInferencer(device="cuda" if torch.cuda.is_available() else "cpu")
    with open(scores, "w", encoding="utf-8") as file, torch.no_grad():
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            rewards = scorer.reward(
                image_paths=[row["image"] for row in part], prompts=[row["prompt"] for row in part]
            )
            for row, reward in zip(part, rewards):  # noqa: B905 - not in Python 3.8
                file.write(json.dumps({"index": row["index"], "score": float(reward[0])}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
