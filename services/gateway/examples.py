"""Requests that work as they stand, for the OpenAPI document, by method."""

from typing import Any

EXAMPLES: dict[str, Any] = {
    "CreateDataset": {"name": "wdbc", "description": "Breast cancer Wisconsin (diagnostic)"},
    "CreateUpload": {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "size_bytes": 41943040},
    "CreateBatchPrediction": {"model": "wdbc", "dataset": "wdbc@2", "output": "wdbc-predicted", "columns": ["id"]},
    "CreateTransform": {
        "version": 1,
        "steps": [
            {"dedupe": {}},
            {"drop_missing": {"columns": ["diagnosis"]}},
            {"impute": {"strategy": "median"}},
            {"derive": {"column": "diagnosis", "expression": "upper(trim(diagnosis))"}},
            {"split": {"test": 0.2, "seed": 7, "stratify": "diagnosis"}},
        ],
    },
    "CreateTrainingJob": {
        "name": "wdbc",
        "dataset": "wdbc@2",
        "task": "classification",
        "target": "diagnosis",
        "output_model": "wdbc",
        "model": {"architecture": "mlp", "params": {"hidden": [64, 64]}, "init": "random"},
        "training": {"epochs": 30, "batch_size": 32, "learning_rate": 0.001, "optimizer": "adamw", "seed": 7},
        "resources": {"accelerator": "cpu", "count": 1},
    },
    "CreateEndpoint": {"name": "wdbc", "model": "wdbc@1", "replicas": 1},
    "UpdateEndpoint": {"model": "wdbc@2"},
    "CreateListing": {
        "slug": "breast-check",
        "title": "Breast check",
        "summary": "Benign or malignant, from ten measurements of a cell nucleus.",
        "card": "---\nlicense: apache-2.0\ntags: [medical]\n---\n# Breast check\n",
        "endpoint": "wdbc",
        "price": {"per_row": {"currency": "USD", "micros": 2000}},
    },
    "CreateReview": {"stars": 5, "text": "Fast and right."},
    "CreateWorkspace": {"name": "acme", "display_name": "Acme Inc."},
    "UpdateWorkspace": {"plan": "pro"},
    "CreateApiKey": {"name": "ci", "role": "editor"},
    "SetMember": {"role": "editor"},
    "UpdateNode": {"state": "cordoned"},
}
